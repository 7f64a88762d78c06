"""What `mailhouse trigger`, `mailhouse replay` and `mailhouse why` do; `mailhouse.triggers` has the commands."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from campaigns.deciding import OUTCOMES, Decided, Decider, DecisionLog
from campaigns.live import Live
from campaigns.replaying import parse_moment, replay
from campaigns.triggers import (
    TriggerSpec,
    check_conditions,
    check_references,
    conditions_of,
    load_trigger,
    load_triggers,
)
from mailhouse.console import console
from mailhouse.engine import open_warehouse
from senders.ledger import Ledger
from senders.rendering import TemplateLibrary
from senders.settings import SenderSettings
from warehouse.errors import InputError
from warehouse.loads import EVENT_COLUMNS
from warehouse.yaml_specs import named, nearest


def check_files(settings: SenderSettings, specs: Mapping[str, TriggerSpec], live: Live | None = None) -> None:
    """Check what triggers name, and with a warehouse that has the marts also their conditions' types.

    Raises:
        InputError: names file, line and the nearest right name.
    """
    from orchestration.lib.campaign_runs import SEGMENTS_DIR

    folder = settings.content_dir
    columns = live.columns() if live is not None else None
    library = TemplateLibrary.load(folder / "templates")
    check_references(
        specs,
        library.names(),
        [path.stem for path in SEGMENTS_DIR.glob("*.sql")],
        columns or None,
        [path.stem for path in (folder / "journeys").glob("*.yaml")],
        provider=settings.provider,
    )
    for spec in specs.values():
        if spec.send is not None and spec.event is None:
            # what follows the clock has no event that a template could name
            said = library.check(spec.send.template, place=spec.place("send", "template"))
            for problem in said:
                if problem.tag == "event":
                    raise problem.error()
    if live is not None and columns:
        for spec in specs.values():
            state = live.state_sql(conditions_of(spec).all)
            check_conditions(spec, live.warehouse, state, settings.now())


def run_check(file: Path) -> None:
    """Check a trigger: its keys, what it names, and its conditions against the marts if they are built."""
    settings = SenderSettings.load()
    spec = load_trigger(file)
    with open_warehouse(settings, "mailhouse trigger check") as warehouse:
        live = Live(warehouse)
        check_files(settings, {spec.name: spec}, live)
        is_typed = bool(live.columns())
    console.print(
        f"{spec.name} is right: {spec.source} -> {spec.action}, version {spec.version}"
        + ("." if is_typed else "; the marts are not built, so types were not checked."),
        markup=False,
    )


def run_test(
    file: Path,
    event: str,
    contact: int,
) -> None:
    """Show how a trigger would decide about an event now; nothing is stored, nothing is done."""
    settings = SenderSettings.load()
    spec = load_trigger(file)
    with open_warehouse(settings, "mailhouse trigger test") as warehouse:
        live = Live(warehouse)
        live.prepare()
        check_files(settings, {spec.name: spec}, live)
        frame = _given_event(event, spec, settings.now())
        resolved = live.resolved(frame)
        if contact:
            resolved = resolved.with_columns(pl.lit(contact, pl.Int64).alias("contact_id"))
        decisions = Decider([spec], live).decide(resolved, settings.now(), names=[spec.name]).all()
    if not decisions:
        console.print(f"{spec.name} does not look at events of type {frame['type'][0]}.", markup=False)
        return
    for line in decision_lines(_as_rows(decisions)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def run_list() -> None:
    """Show all triggers, and what became of events in the last day."""
    from datetime import timedelta

    from senders.firings import KIND, Firings

    settings = SenderSettings.load()
    specs = load_triggers(settings.content_dir)
    with Ledger.open(settings) as ledger:
        counts = Firings(ledger).counts(settings.now() - timedelta(days=1))
        paused = ledger.paused(KIND)
    for name, spec in specs.items():
        said = ", ".join(f"{number:,} {what}" for what, number in sorted(counts.get(name, {}).items()))
        state = " (paused)" if name in paused else ""
        console.print(
            f"{name}{state}: {spec.source} -> {spec.action}; {said or 'nothing in a day'}", markup=False
        )
    if not specs:
        console.print("There are no triggers yet: add a file to content/triggers.")


def run_pause(name: str) -> None:
    """Hold a trigger back: what it decides to do waits."""
    from senders.firings import KIND

    settings = SenderSettings.load()
    _named(settings, name)
    with Ledger.open(settings) as ledger:
        is_new = ledger.pause(KIND, name, settings.now())
    console.print(f"{name} {'is paused' if is_new else 'was paused already'}; what it decides to do waits.")


def run_resume(name: str) -> None:
    """Let a paused trigger go on: what has waited is done."""
    from senders.firings import KIND

    with Ledger.open(SenderSettings.load()) as ledger:
        was_paused = ledger.resume(KIND, name)
    console.print(f"{name} {'goes on' if was_paused else 'was not paused'}.")


def run_replay(name: str, since: str, until: str, *, send: bool) -> None:
    """`mailhouse replay`."""
    from gateway.triggers import TriggerHandler

    settings = SenderSettings.load()
    spec = _named(settings, name)
    now = settings.now()
    begin, end = parse_moment(since, now), parse_moment(until, now) if until else now
    with open_warehouse(settings, f"mailhouse replay {name}") as warehouse:
        live = Live(warehouse)
        live.prepare()
        decisions = replay(Decider([spec], live), spec, begin, end)
        for line in decision_lines(_as_rows(one for one in decisions if one.outcome == "fired")[:100]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        counts = Counter(one.outcome for one in decisions)
        said = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(counts.items()))
        console.print(f"{len(decisions):,} events of {name}: {said or 'none'}.")
        if not send:
            console.print("Nothing was done; --send does what would have fired.")
            return
        with (
            Ledger.open(settings) as ledger,
            TriggerHandler(settings, ledger, warehouse, is_inline=True) as handler,
        ):
            handler.prepare()
            fired = [
                one._replace(outcome="due", decided_at=now, due_at=now)
                for one in decisions
                if one.outcome == "fired"
            ]
            handler.act(Decided(fired), now)
            handler.drain(now)
            done = Counter(one for _, one in handler.counts.elements() if one != "due")
    said = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(done.items()))
    console.print(f"Done: {said or 'nothing that had not been done before'}.")


def explain(message_id: str, contact: int, name: str, event: str) -> Iterator[str]:
    """`mailhouse why`: lines about a message, or about a trigger and a contact.

    Raises:
        InputError: nothing is known of it.
    """
    from senders.firings import Firings
    from senders.why import why

    settings = SenderSettings.load()
    if not message_id and not (contact and name):
        raise InputError(
            "It is not said what to explain.",
            fix="Give a message id, or --contact ID and --trigger NAME, with --event ID for one event alone.",
        )
    with Ledger.open(settings) as ledger, open_warehouse(settings, "mailhouse why") as warehouse:
        log = DecisionLog(warehouse)
        if message_id:
            decisions = log.read(firing_id=message_id.strip().lower()) if _is_id(message_id) else []
            firing = Firings(ledger).find(message_id.strip().lower())
            try:
                yield from why(message_id, ledger, warehouse).lines()
            except InputError:
                # a trigger that did not send, or does something else
                if not decisions and firing is None:
                    raise
                yield f"Firing {message_id}"
        else:
            decisions = log.read(trigger=name, contact_id=contact, event_id=event)
            firings = [
                one for one in Firings(ledger).of_contact(name, contact) if event in ("", one.event_id)
            ]
            firing = next((one for one in firings if one.state != "done"), None)
            if not decisions and not firings:
                raise InputError(
                    f"Trigger {name} has decided nothing about contact {contact}{' and this event' if event else ''}.",
                    fix="Either no such event reached the gateway, or it was so long ago that it is forgotten.",
                )
            yield f"Trigger {name} and contact {contact}"
        yield from decision_lines(decisions)
        if firing is not None and firing.state == "waiting":
            yield f"  It waits until {firing.due_at:%Y-%m-%d %H:%M:%S} UTC."


def decision_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Decisions as text: a line each, and a line for what the condition read."""
    for row in rows:
        reason = f" ({row['reason']})" if row["reason"] else ""
        due = row["details"].get("due_at")
        until = f", due {due}" if due and row["outcome"] in ("due", "quiet_hours", "put_off") else ""
        yield (
            f"  {row['decided_at']:%Y-%m-%d %H:%M:%S UTC}  trigger {row['trigger']}, version {row['version']}, contact"
            f" {row['contact_id']}, event {row['event_id']} ({row['event_type']}): {row['outcome']}:"
            f" {OUTCOMES.get(row['outcome'], row['outcome'])}{reason}{until}"
        )
        values = row["details"].get("values")
        if values:
            yield "      it read " + ", ".join(
                f"{name} = {json.dumps(value)}" for name, value in values.items()
            )


def _as_rows(decisions: Any) -> list[dict[str, Any]]:
    return [
        {
            "decided_at": one.decided_at, "trigger": one.trigger, "version": one.version,
            "contact_id": one.contact_id, "event_id": one.event_id, "event_type": one.event_type,
            "outcome": one.outcome, "reason": one.reason,
            "details": {"values": one.values, "due_at": one.due_at.isoformat() if one.due_at else None},
        }
        for one in decisions
    ]  # fmt: skip


def _given_event(text: str, spec: TriggerSpec, now: datetime) -> pl.DataFrame:
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError("it is no object")
        strange = sorted(given.keys() - EVENT_COLUMNS.keys())
        if strange:
            raise ValueError(
                f"it has {strange[0]!r}. {nearest(strange[0], EVENT_COLUMNS)} Properties go into properties"
            )
        moment = datetime.fromisoformat(given["occurred_at"]) if given.get("occurred_at") else now
    except ValueError as error:
        raise InputError(
            f"The event is no JSON of an event: {error}.",
            fix="""Write it like '{"type": "cart.updated", "email": "a@example.com", "properties": {"value": 60}}'.""",
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    row = {name: "" for name, dtype in EVENT_COLUMNS.items() if dtype == pl.String} | {
        "event_id": str(uuid.uuid4()), "type": (spec.event or ["trigger.clock"])[0],
    }  # fmt: skip
    row |= {
        name: value
        for name, value in given.items()
        if name not in ("properties", "occurred_at", "received_at")
    }
    row |= {
        "properties": json.dumps(given.get("properties") or {}),
        "occurred_at": moment,
        "received_at": moment,
    }
    return pl.DataFrame([row]).select(pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items())


def _named(settings: SenderSettings, name: str) -> TriggerSpec:
    place = f"{settings.content_dir.name}/triggers"
    return named(load_triggers(settings.content_dir), name, "trigger", place, fix="Add a YAML file there.")


def _is_id(text: str) -> bool:
    with contextlib.suppress(ValueError):
        uuid.UUID(text.strip())
        return True
    return False
