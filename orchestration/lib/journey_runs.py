"""Journeys from their files to their messages: what the Dagster asset, the sensor and `mailhouse journey` share.

No Dagster in here. `tick` is safe to call at any time: it takes the journey's lease or fails, and repeats nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from campaigns.audience import Recipients, profile_columns
from campaigns.journey_state import (
    Cursors,
    define_tables,
    has_tables,
    kept_versions,
    message_name,
    record_journey,
    recover,
    sql_text,
    table_exists,
)
from campaigns.journey_ticks import (
    Departure,
    JourneyTick,
    TickSummary,
    check_conditions,
    migrate_people,
    profile_stamp,
)
from campaigns.journeys import KIND, JourneySpec, check_journeys, journey_named, load_journeys
from orchestration.lib.campaign_runs import SEGMENTS_DIR, export_ledger
from senders.leases import hold
from senders.ledger import Ledger
from senders.pipeline import SendPlan, SendSummary, send
from senders.providers import get_provider
from senders.rendering import TemplateLibrary
from senders.settings import SenderSettings, require_identity
from warehouse.client import Warehouse
from warehouse.errors import InputError, MailhouseError

BATCH_ROWS = 1_000
PAGE_ROWS = 10_000
_MARTS = ("contact_profiles", "consents", "suppressions")


class JourneyPausedError(MailhouseError):
    """Somebody has paused the journey, or did so while it was sending."""


@dataclass
class JourneyRun:
    """What one run did to a journey."""

    summary: TickSummary
    sends: dict[str, SendSummary] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """In numbers, for metadata and the command line."""
        summary = self.summary
        endings = {f"left_{name}": number for name, number in sorted(summary.endings.items())}
        sent = {"sent": 0, "skipped": 0, "failed": 0}
        for one in self.sends.values():
            sent["sent"] += one.sent
            sent["skipped"] += sum(one.skipped.values())
            sent["failed"] += one.failed + one.rejected + one.invalid + one.unknown
        return {
            "entered": summary.entered,
            "moves": summary.moves,
            **endings,
            **sent,
            "refused": summary.refused,
        }


def checked_journey(settings: SenderSettings, name: str) -> JourneySpec:
    """The journey of that name, its templates, segments and lists known to exist.

    Raises:
        InputError: there is no such journey, or its file is wrong; names file, line and nearest right name.
    """
    spec = journey_named(settings.content_dir, name)
    check_files(settings, {name: spec})
    return spec


def check_files(settings: SenderSettings, specs: dict[str, JourneySpec]) -> None:
    """Check what journeys name in other files.

    Raises:
        InputError: names file and line of each name that leads nowhere.
    """
    templates = TemplateLibrary.load(settings.content_dir / "templates").names()
    segments = [path.stem for path in SEGMENTS_DIR.glob("*.sql")]
    files = [path.stem for path in (settings.content_dir / "lists").glob("*.csv")]
    check_journeys(specs, templates, segments, lists=files, provider=settings.provider)


def tick(
    settings: SenderSettings,
    warehouse: Warehouse,
    name: str,
    *,
    say: Callable[[str], None] | None = None,
) -> JourneyRun:
    """Move the people of one journey, and send what they are to get.

    Raises:
        InputError: the journey's file is wrong.
        LeaseTakenError: another process is at work on it.
        JourneyPausedError: it is paused, or was while it sent; what was under way is recorded.
        MailhouseError: the warehouse, the ledger or a provider fails; the next tick goes on from there.
    """
    spec = checked_journey(settings, name)
    with Ledger.open(settings) as ledger:
        if name in ledger.paused(KIND):
            raise JourneyPausedError(f"{name} is paused.", fix=f"Run: mailhouse journey resume {name}")
        if spec.version not in kept_versions(warehouse, name):
            # a version is judged on all profiles once, when it is new
            check_conditions(warehouse, spec)
        templates = _judged_templates(settings, warehouse, spec)
        run = JourneyRun(TickSummary())
        sending = 0.0

        def deliver(departure: Departure) -> int:
            nonlocal sending
            start = time.monotonic()
            sent = _deliver(settings, warehouse, ledger, departure, templates)
            key = message_name(departure.spec, departure.node.id)
            run.sends[key] = _added(run.sends.get(key), sent)
            if say is not None:
                say(f"{key}: {departure.contacts.height:,} due, {sent.sent:,} sent")
            export_ledger(settings, warehouse)
            sending += time.monotonic() - start
            if sent.is_paused or sent.is_interrupted:
                raise JourneyPausedError(
                    f"{key} was stopped after {sent.seen:,} of {departure.contacts.height:,} messages.",
                    fix="Nothing is lost: the next tick goes on from there.",
                )
            return sent.seen - sent.already_claimed

        start = time.monotonic()
        with hold(ledger, f"{KIND}:{name}") as lease:
            ticker = JourneyTick(
                warehouse, spec, settings.now(), lease, deliver, clock_offset=settings.clock_offset
            )
            # messages whose outcome is known but not in the warehouse yet would be waited for
            export_ledger(settings, warehouse)
            run.summary = ticker.run()
        run.summary.seconds = time.monotonic() - start - sending
    return run


def _added(before: SendSummary | None, now: SendSummary) -> SendSummary:
    if before is None:
        return now
    for name in ("sent", "failed", "rejected", "invalid", "unknown", "already_claimed"):
        setattr(now, name, getattr(now, name) + getattr(before, name))
    for reason, number in before.skipped.items():
        now.skipped[reason] = now.skipped.get(reason, 0) + number
    return now


def _judged_templates(settings: SenderSettings, warehouse: Warehouse, spec: JourneySpec) -> TemplateLibrary:
    """The templates, those of the journey known to compile and to have what the law asks for.

    Raises:
        InputError: names template, line and what is wrong.
    """
    templates = TemplateLibrary.load(
        settings.content_dir / "templates", profile_columns(warehouse), assets_url=settings.assets_url
    )
    for node in spec.nodes.values():
        if (step := node.step.send) is None:
            continue
        place = spec.place(*node.location, "send", "subject")
        said = templates.check(
            step.template, subject=step.subject, preheader=step.preheader or "", place=place
        )
        if said:
            raise InputError(
                f"{place}: {said[0]}", fix="Correct the template; nothing was sent and nobody moved."
            )
        template = templates.template(
            step.template, subject=step.subject, preheader=step.preheader or "", place=place,
            attachments=step.attachments,
        )  # fmt: skip
        if step.category == "marketing":
            template.require_marketing(step.template, channel=step.channel)
        require_identity(settings, category=step.category, from_email=step.from_email or "")
    return templates


def send_plan(departure: Departure) -> SendPlan:
    """What a send step sends."""
    spec, node = departure.spec, departure.node
    step = node.step.send
    assert step is not None
    name = message_name(spec, node.id)
    return SendPlan.of(
        step,
        spec.cap,
        kind=KIND,
        name=name,
        version=spec.version,
        occurrence=departure.occurrence,
        place=spec.place(*node.location, "send", "subject"),
        segment=spec.entry.segment or "",
        experiment=spec.experiment(node.variant[0]) if node.variant else "",
    )


def _deliver(
    settings: SenderSettings,
    warehouse: Warehouse,
    ledger: Ledger,
    departure: Departure,
    templates: TemplateLibrary,
) -> SendSummary:
    plan = send_plan(departure)
    with get_provider(settings, plan.provider) as provider:
        return send(
            plan,
            _batches(settings, warehouse, departure),
            settings=settings,
            ledger=ledger,
            provider=provider,
            templates=templates,
            workers=settings.workers_for(departure.contacts.height),
            is_part=not departure.is_last,
        )


def _batches(settings: SenderSettings, warehouse: Warehouse, departure: Departure) -> Iterator[pl.DataFrame]:
    """The people of a departure, judged as they are now; whom it has become night for stay where they are."""
    step = departure.node.step.send
    assert step is not None
    spec = departure.spec
    recipients = Recipients(
        warehouse, step, quiet_hours=spec.quiet_hours, timezone=spec.timezone, clock=settings.now
    )
    query_of = "select contact_id from departing"
    variant = departure.node.variant[1] if departure.node.variant else ""
    for page in departure.contacts.iter_slices(PAGE_ROWS):
        frame = warehouse.frame(
            recipients.personalised(query_of), recipients.parameters(), external={"departing": page}
        )
        frame = frame.filter(pl.col("skip_reason") != "quiet_hours")
        if variant:
            frame = frame.with_columns(variant=pl.lit(variant))
        yield from frame.iter_slices(BATCH_ROWS)


def due_reason(warehouse: Warehouse, spec: JourneySpec, now: datetime) -> str:
    """Why a journey needs a tick now; empty if nobody is due and nobody can want in. A few cheap queries.

    What a condition alone would do to people who wait is looked for when the profiles have been built anew.
    """
    if not all(table_exists(warehouse, "marts", name) for name in _MARTS):
        return ""
    if spec.entry.segment is not None and not table_exists(warehouse, "segments", spec.entry.segment):
        return ""
    if not has_tables(warehouse):
        return "it begins"
    parameters = {"journey": spec.name, "now": now.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]}
    cursors = Cursors(warehouse, spec.name)
    if not cursors.get("start"):
        return "it begins"
    due = warehouse.value(
        """
        select count() from campaigns.journey_states final
        where journey = {journey:String} and step != '' and due_at <= {now:DateTime64(3, 'UTC')}
            and (contact_id in (select contact_id from marts.contact_profiles)
                or due_at < {now:DateTime64(3, 'UTC')} - toIntervalDay(3))
        """,
        parameters,
    )
    if due:
        return f"{due:,} people are due"
    asked = warehouse.value(
        """
        select count() from campaigns.journey_requests
        where journey = {journey:String} and loaded_at > now64(3) - toIntervalDay(7)
            and toString(loaded_at) > {seen:String}
        """,
        parameters | {"seen": cursors.get("requests")},
    )
    if asked:
        return f"{asked:,} requests have come in"
    entry = spec.entry
    if entry.schedule is not None:
        instant = entry.schedule.latest(now)
        if (
            instant is not None
            and cursors.get("schedule") < _text(instant)
            and cursors.get("start") <= _text(instant)
        ):
            return "its hour has come"
    elif entry.segment is not None:
        newest = warehouse.value(
            "select max(changed_at) from marts.segment_changes where segment = {segment:String} having count() > 0",
            {"segment": entry.segment},
        )
        if newest is not None and _text(newest) > (cursors.get("segment") or cursors.get("start")):
            return f"{entry.segment} has changed"
    for source in ("marts", "live"):
        if table_exists(warehouse, source, "events"):
            for event in sorted(_events_of(spec)):
                seen = cursors.get(f"{source}:{event}") or "1970-01-01 00:00:00.000"
                recent = f" and loaded_on >= toDate({sql_text(seen[:10])})" if source == "marts" else ""
                newer = warehouse.value(
                    f"""
                    select count() from {source}.events
                    where type = {{event:String}} and loaded_at > toDateTime64({sql_text(seen)}, 3, 'UTC') {recent}
                    """,  # noqa: S608
                    {"event": event},
                )
                if newer:
                    return f"{newer:,} events {event} have come in"
    stamp = profile_stamp(warehouse)
    has_conditions = any(rule.event is None for rule in spec.exits) or any(
        node.step.wait_for is not None and node.step.wait_for.event is None for node in spec.nodes.values()
    )
    if has_conditions and stamp != cursors.get("profile"):
        return "profiles have been built anew"
    return ""


def _events_of(spec: JourneySpec) -> set[str]:
    events = {rule.event for rule in spec.exits} | {spec.entry.event, spec.goal.event if spec.goal else None}
    events |= {node.step.wait_for.event for node in spec.nodes.values() if node.step.wait_for}
    return {event for event in events if event is not None}


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def pause(settings: SenderSettings, name: str) -> bool:
    """Hold a journey back: nobody moves, and a send under way stops within seconds. False if it was paused already."""
    spec = journey_named(settings.content_dir, name)
    with Ledger.open(settings) as ledger:
        is_new = ledger.pause(KIND, name, settings.now())
        for node in spec.nodes.values():
            if node.kind == "send":
                ledger.pause(KIND, message_name(spec, node.id), settings.now())
    return is_new


def resume(settings: SenderSettings, name: str) -> bool:
    """Let it go on; False if it was not paused."""
    with Ledger.open(settings) as ledger:
        was_paused = ledger.resume(KIND, name)
        for paused in ledger.paused(KIND):
            if paused.startswith(f"{name}."):
                ledger.resume(KIND, paused)
    return was_paused


def migrate(settings: SenderSettings, warehouse: Warehouse, name: str) -> tuple[int, dict[str, int]]:
    """Move people under way in older versions to the newest, each to the step of the same id.

    Returns:
        How many were moved, and how many stay behind at which steps, since the newest version has no such step or a
        message to them is under way.
    """
    spec = checked_journey(settings, name)
    define_tables(warehouse)
    record_journey(warehouse, spec)
    with Ledger.open(settings) as ledger, hold(ledger, f"{KIND}:{name}") as lease:
        specs = {**kept_versions(warehouse, name), spec.version: spec}
        recover(warehouse, name, lease, specs, settings.now())
        return migrate_people(warehouse, spec, specs, lease, settings.now())


def all_journeys(settings: SenderSettings) -> dict[str, JourneySpec]:
    """Every journey of the content folder."""
    return load_journeys(settings.content_dir)


def refusals(warehouse: Warehouse, name: str, contact_id: int) -> list[tuple[str, str, datetime]]:
    """Requests for somebody that were not followed: request_id, reason, when."""
    if not has_tables(warehouse):
        return []
    rows = warehouse.frame(
        """
        select request_id, toString(reason) as reason, refused_at from campaigns.journey_refusals
        where journey = {journey:String} and contact_id = {contact_id:Int64} order by refused_at
        """,
        {"journey": name, "contact_id": contact_id},
    )
    return rows.rows()
