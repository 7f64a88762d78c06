"""`mailhouse experiment`: what runs, how it stands, its page, how many contacts it needs, and a decision by hand."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mailhouse.console import console

app = typer.Typer(
    help="What experiments run, how they stand, how many contacts they need.", no_args_is_help=True
)
_Name = Annotated[str, typer.Argument(help="The experiment's name.")]


@app.command("list")
def list_experiments() -> None:
    """Show all experiments: what of, its metric, how it stands."""
    from mailhouse.engine import open_warehouse
    from orchestration.lib.experiment_analysis import look
    from orchestration.lib.experiment_runs import load_experiments
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    known = load_experiments(settings.content_dir)
    if not known:
        console.print(f"There are no experiments in {settings.content_dir.name}: see docs/experiments.md.")
        return
    table = Table(box=None)
    for name in ("experiment", "of", "metric", "contacts", "state"):
        table.add_column(name, justify="right" if name == "contacts" else "left")
    with open_warehouse(settings, "mailhouse experiment list") as warehouse:
        for name, running in known.items():
            seen = look(warehouse, running, settings.now())
            contacts = f"{seen.analysis.contacts:,}" if seen.analysis else ""
            of = f"{running.placed.kind} {running.placed.owner}"
            table.add_row(name, of, running.placed.measures.metric, contacts, escape(seen.headline))
    console.print(table)


@app.command()
def show(name: _Name) -> None:
    """Show what each variant came to and what follows, in plain words; decides nothing."""
    from mailhouse.engine import open_warehouse
    from orchestration.lib.experiment_analysis import look, result_table
    from orchestration.lib.experiment_runs import experiment_named
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    running = experiment_named(settings.content_dir, name)
    with open_warehouse(settings, f"mailhouse experiment show {name}") as warehouse:
        seen = look(warehouse, running, settings.now())
    placed = running.placed
    console.print(
        f"{placed.name}: {placed.kind} {placed.owner}, {placed.place()}", markup=False, soft_wrap=True
    )
    table = Table(box=None)
    for column in (
        "variant",
        "contacts",
        placed.measures.metric,
        "change",
        "interval",
        "p",
        "chance to be best",
    ):
        table.add_column(column, justify="left" if column == "variant" else "right")
    is_share = seen.analysis is not None and seen.analysis.plan.primary.kind == "proportion"
    for row in result_table(seen).to_dicts():
        table.add_row(
            row["variant"],
            f"{row['contacts']:,}",
            _number(row["value"], ".2%" if is_share else ",.2f"),
            _number(row["lift"], "+.1%"),
            _interval(row["low"], row["high"]),
            _number(row["p_value"], ".3g"),
            _number(row["chance_best"], ".1%"),
        )
    if seen.analysis is not None:
        console.print(table)
    if seen.held_out:
        console.print(f"{seen.held_out:,} are held out and got nothing.")
    if seen.decision is not None:
        console.print(seen.decision_words, markup=False, soft_wrap=True)
    if seen.verdict is None:
        console.print(seen.headline, markup=False, soft_wrap=True)
        return
    console.print(seen.verdict.headline, markup=False, soft_wrap=True)
    for line in (*seen.verdict.evidence, *seen.verdict.warnings, *seen.verdict.next_steps):
        console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(name: _Name) -> None:
    """Write the experiment's page and say where it is."""
    from mailhouse.engine import open_warehouse
    from orchestration.lib.experiment_analysis import look, write_report
    from orchestration.lib.experiment_runs import experiment_named
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    running = experiment_named(settings.content_dir, name)
    with open_warehouse(settings, f"mailhouse experiment report {name}") as warehouse:
        seen = look(warehouse, running, settings.now())
    page = write_report(settings, seen)
    console.print(str(page) if page else seen.headline, markup=False, soft_wrap=True)
    if seen.decision is not None:
        console.print(seen.decision_words, markup=False, soft_wrap=True)


@app.command()
def size(
    name: Annotated[str, typer.Argument(help="An experiment; left out, all.")] = "",
    baseline: Annotated[
        float, typer.Option("--baseline", min=0, max=1, help="What the metric is today, such as 0.04.")
    ] = 0.0,
) -> None:
    """Say how many contacts an experiment needs, and how many its audience has."""
    from mailhouse.engine import open_warehouse
    from orchestration.lib.experiment_runs import (
        available_for,
        baseline_of,
        experiment_named,
        load_experiments,
        size_words,
    )
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    folder = settings.content_dir
    chosen = [experiment_named(folder, name)] if name else list(load_experiments(folder).values())
    with open_warehouse(settings, "mailhouse experiment size") as warehouse:
        for running in chosen:
            known = baseline or baseline_of(warehouse, running)
            words = size_words(running.placed, known, available_for(warehouse, running, settings.now()))
            console.print(f"{running.name}: {words}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def decide(
    name: _Name,
    variant: Annotated[
        str, typer.Argument(help="The variant for the remainder, or all who come to the split.")
    ],
) -> None:
    """Decide by hand, whatever the data say: once, and others than the tested get it within a minute."""
    from mailhouse.engine import open_warehouse
    from orchestration.lib.experiment_analysis import decide_by_hand
    from orchestration.lib.experiment_runs import experiment_named
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    running = experiment_named(settings.content_dir, name)
    with open_warehouse(settings, f"mailhouse experiment decide {name}") as warehouse:
        made = decide_by_hand(settings, warehouse, running, variant)
    console.print(f"{name}: {made.headline}", markup=False)


def _interval(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f"{_number(low, '+.1%') or 'anything'} to {_number(high, '+.1%') or 'anything'}"


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
