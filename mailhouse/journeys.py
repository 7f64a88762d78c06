"""`mailhouse journey`: try a journey out, draw it, see who is where, hold it back, move people on."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mailhouse.console import console

app = typer.Typer(help="Try a journey out, draw it, see who is where, hold it back.", no_args_is_help=True)


@app.command("list")
def list_journeys() -> None:
    """Show all journeys: how many are under way, how many came in, reached the goal and left."""
    from campaigns.journey_state import has_tables
    from campaigns.journeys import KIND
    from mailhouse.engine import open_warehouse
    from orchestration.lib.journey_runs import all_journeys
    from senders.ledger import Ledger
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    specs = all_journeys(settings)
    if not specs:
        console.print(f"There are no journeys in {settings.content_dir.name}/journeys.")
        return
    with Ledger.open(settings) as ledger:
        paused = ledger.paused(KIND)
    numbers: dict[str, tuple[int, int, int, int]] = {}
    with open_warehouse(settings, "mailhouse journey list") as warehouse:
        if has_tables(warehouse):
            rows = warehouse.frame(
                """
                select toString(journey) as journey, countIf(step != '') as under_way, sum(entry) as entries,
                    countIf(ending = 'goal') as goals, countIf(ending not in ('', 'goal')) as left
                from campaigns.journey_states final group by journey
                """
            )
            numbers = {name: tuple(rest) for name, *rest in rows.iter_rows()}  # pyright: ignore
    table = Table(box=None)
    for name in ("journey", "version", "", "under way", "entries", "reached the goal", "left otherwise"):
        table.add_column(name, justify="left" if name in ("journey", "version", "") else "right")
    for name, spec in specs.items():
        counts = numbers.get(name, (0, 0, 0, 0))
        state = "[yellow]paused[/]" if name in paused else "[green]running[/]"
        table.add_row(name, spec.version, state, *(f"{number:,}" for number in counts))
    console.print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="The journey's name.")]) -> None:
    """Show a journey's steps and how many people are at each, by version."""
    from campaigns.journey_state import has_tables, journey_counts, kept_versions
    from campaigns.journeys import shown_step
    from mailhouse.engine import open_warehouse
    from orchestration.lib.journey_runs import checked_journey
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    spec = checked_journey(settings, name)
    with open_warehouse(settings, f"mailhouse journey show {name}") as warehouse:
        known = has_tables(warehouse)
        counts = journey_counts(warehouse, name) if known else None
        specs = {spec.version: spec, **(kept_versions(warehouse, name) if known else {})}
    rows = (
        {(version, step): (number, due) for version, step, number, due in counts.iter_rows()}
        if counts is not None
        else {}
    )
    for version, one in specs.items():
        if version != spec.version and not any(key[0] == version for key in rows):
            continue
        is_newest = version == spec.version
        table = Table(
            title=f"{name}, version {version}{'' if is_newest else ' (earlier; people finish it)'}",
            title_justify="left", box=None,
        )  # fmt: skip
        for column in ("step", "does", "here", "next due"):
            table.add_column(column, justify="right" if column == "here" else "left")
        for key, node in one.nodes.items():
            number, due = rows.get((version, key), (0, None))
            table.add_row(
                key,
                escape(shown_step(node)),
                f"{number:,}" if number else "",
                f"{due:%Y-%m-%d %H:%M}" if due else "",
            )
        console.print(table)


@app.command()
def graph(
    file: Annotated[Path, typer.Argument(help="A file, such as content/journeys/welcome.yaml.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write an .svg or .html file instead of Mermaid text."),
    ] = None,
) -> None:
    """Draw a journey: Mermaid text, or a picture that needs nothing else."""
    from campaigns.journey_drawing import mermaid, page, svg
    from campaigns.journeys import load_journey
    from warehouse.errors import InputError

    spec = load_journey(file)
    if output is None:
        typer.echo(mermaid(spec), nl=False)
        return
    drawers = {".svg": svg, ".html": page, ".mmd": mermaid}
    if output.suffix not in drawers:
        raise InputError(
            f"{output} is none of .svg, .html and .mmd.", fix="Give the file one of these endings."
        )
    output.write_text(drawers[output.suffix](spec), encoding="utf-8")
    console.print(f"{output} is written.", markup=False, soft_wrap=True)


@app.command()
def test(
    file: Annotated[Path, typer.Argument(help="A file, such as content/journeys/welcome.yaml.")],
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="People made up; else those who would have come in lately.")
    ] = False,
    people: Annotated[int, typer.Option("--people", min=1, max=100_000, help="At most so many.")] = 5_000,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="How far back to begin.")] = 90,
) -> None:
    """Send people through a journey in fast motion: nothing is sent and nothing is written.

    People made up are divided at each split; those of the past go where a split that was decided leads by now.
    """
    from campaigns.experiments import winners_of
    from campaigns.journey_simulation import funnel, made_up, walk_through
    from campaigns.journey_ticks import check_conditions
    from campaigns.journey_trials import past_entrants, past_people
    from campaigns.journeys import load_journey
    from mailhouse.engine import open_warehouse
    from orchestration.lib.journey_runs import check_files
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    spec = load_journey(file)
    check_files(settings, {spec.name: spec})
    now = settings.now()
    start = time.monotonic()
    winners: dict[str, str] = {}
    if synthetic:
        begin = datetime(now.year, now.month, now.day, 10, tzinfo=UTC)
        walks = [
            walk_through(spec, one, begin, begin + timedelta(days=3650))
            for one in made_up(spec, people, begin)
        ]
        whom = f"{people:,} people made up: conditions hold and events happen with even chances"
    else:
        since = now - timedelta(days=days)
        with open_warehouse(settings, f"mailhouse journey test {spec.name}") as warehouse:
            check_conditions(warehouse, spec)
            entrants = past_entrants(warehouse, spec, since, people)
            entered = dict(entrants.select("contact_id", "entered_at").iter_rows())
            known = past_people(warehouse, spec, entrants, since)
            decided = winners_of(warehouse, {placed.name for placed in spec.experiments()})
            winners = {name: decision.winner for name, decision in decided.items()}
        walks = [walk_through(spec, one, entered[one.contact_id], now, winners) for one in known]
        whom = f"{len(walks):,} who would have come in since {since:%Y-%m-%d}; profiles as they are now"
    steps, endings = funnel(spec, walks)
    table = Table(title=f"{spec.name}: {whom}", title_justify="left", box=None)
    for column in ("step", "came", "share", "median stay", "went on"):
        table.add_column(column, justify="left" if column in ("step", "went on") else "right")
    for step in steps:
        ways = ", ".join(f"{name} {number:,}" for name, number in step.outcomes.items())
        stay = "" if step.median_stay is None else _stay(step.median_stay)
        table.add_row(
            step.step, f"{step.arrivals:,}", f"{step.arrivals / max(1, len(walks)):.0%}", stay, escape(ways)
        )
    console.print(table)
    for name, number in endings.items():
        console.print(f"{number:,} {name} ({number / max(1, len(walks)):.0%}).")
    if (
        any(node.step.wait_for and node.step.wait_for.message for node in spec.nodes.values())
        and not synthetic
    ):
        console.print("Waits for events of the journey's own messages are counted as if nobody had reacted.")
    for experiment, winner in winners.items():
        console.print(f"{experiment} was decided: all who come to its split go on to {winner}.", markup=False)
    console.print(f"[dim]{time.monotonic() - start:.1f} s; nothing was sent or written.[/]")


def _stay(stay: timedelta) -> str:
    hours = stay.total_seconds() / 3600
    if hours < 1:
        return f"{hours * 60:.0f} min" if hours else "at once"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"


@app.command()
def tick(name: Annotated[str, typer.Argument(help="The journey's name.")]) -> None:
    """Move everybody who is due now, and send; the sensor does this by itself where Dagster runs."""
    from mailhouse.engine import open_warehouse
    from orchestration.lib.journey_runs import tick as run
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    with open_warehouse(settings, f"mailhouse journey tick {name}") as warehouse:
        done = run(settings, warehouse, name, say=lambda line: console.print(line, markup=False))
    for what, number in done.counts().items():
        if number:
            console.print(f"{number:,} {what.replace('_', ' ')}.")
    console.print(f"Moved in {done.summary.seconds:.1f} s, sending apart.")


@app.command()
def path(
    name: Annotated[str, typer.Argument(help="The journey's name.")],
    contact: Annotated[int, typer.Option("--contact", help="The contact_id.")],
) -> None:
    """Say how somebody went through a journey, step by step and why, or why they never came in."""
    from mailhouse.engine import open_warehouse
    from orchestration.lib.journey_runs import refusals
    from senders.settings import SenderSettings
    from senders.why import journey_path, move_text

    settings = SenderSettings.load()
    with open_warehouse(settings, f"mailhouse journey path {name}") as warehouse:
        moves = journey_path(warehouse, name, contact)
        refused = refusals(warehouse, name, contact)
    for move in moves:
        if not move["previous_step"]:
            console.print(f"Entry {move['entry']}, version {move['version']}", markup=False)
        console.print(
            f"  {move['entered_at']:%Y-%m-%d %H:%M:%S} UTC  {move_text(move)}", markup=False, soft_wrap=True
        )
    if moves and moves[-1]["step"]:
        console.print(f"Due at {moves[-1]['due_at']:%Y-%m-%d %H:%M:%S} UTC.")
    for request, reason, moment in refused:
        console.print(f"Request {request} was refused at {moment:%Y-%m-%d %H:%M}: {reason}.", markup=False)
    if not moves:
        console.print(f"Contact {contact} has never been in {name}.")


@app.command()
def pause(name: Annotated[str, typer.Argument(help="The journey's name.")]) -> None:
    """Hold a journey back: nobody moves, and a send under way stops within seconds."""
    from orchestration.lib.journey_runs import pause as hold_back
    from senders.settings import SenderSettings

    is_new = hold_back(SenderSettings.load(), name)
    console.print(
        f"{name} {'is paused' if is_new else 'was paused already'}. `mailhouse journey resume {name}` lets it go on."
    )


@app.command()
def resume(name: Annotated[str, typer.Argument(help="The journey's name.")]) -> None:
    """Let a paused journey go on where it stopped."""
    from orchestration.lib.journey_runs import resume as let_go
    from senders.settings import SenderSettings

    was_paused = let_go(SenderSettings.load(), name)
    console.print(f"{name} {'goes on' if was_paused else 'was not paused'}.")


@app.command()
def migrate(name: Annotated[str, typer.Argument(help="The journey's name.")]) -> None:
    """Move people under way in earlier versions to the newest, each to the step of the same id."""
    from mailhouse.engine import open_warehouse
    from orchestration.lib.journey_runs import migrate as move_over
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    with open_warehouse(settings, f"mailhouse journey migrate {name}") as warehouse:
        moved, left = move_over(settings, warehouse, name)
    console.print(f"{moved:,} people go on in the newest version of {name}.")
    for step, number in left.items():
        console.print(
            f"{number:,} stay in their version at {step}: the newest has no such step, or a message is under way."
        )
