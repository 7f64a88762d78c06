# ruff: noqa: S608  (names of this module)
"""What a trigger would have decided about events that have long come in: the same rule, the state as of each event.

Columns that events move, and counts of events, are added up from all events up to the event's own time. Scores,
segments, suppression, consent and what the CRM says are those of now: the past of these is not kept by contact.
Frequency caps are the ledger's, and judged when something is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from campaigns.deciding import Decider, Decision, firing_rows
from campaigns.live import Needs
from campaigns.triggers import TriggerSpec
from warehouse.errors import InputError
from warehouse.loads import EVENT_COLUMNS

_BATCH = 1_000
_INSTANT = timedelta(milliseconds=1)
"""The warehouse's times are so exact."""


def replay(decider: Decider, spec: TriggerSpec, since: datetime, until: datetime) -> list[Decision]:
    """Decisions about all events of a time, oldest first: `fired` where it would have.

    Raises:
        InputError: the trigger follows the clock, not events.
        WarehouseError: the models have not been built.
    """
    if spec.event is None:
        raise InputError(
            f"Trigger {spec.name} follows the clock ({spec.source}), so there are no events to replay.",
            fix="Look at its decisions: `mailhouse why --trigger NAME --contact ID`.",
        )
    decisions: list[Decision] = []
    for frame in _events(decider, spec, since, until).iter_slices(_BATCH):
        resolved = decider.live.resolved(frame)
        decided = decider.decide(resolved, until, is_history=True, names=[spec.name])
        times = dict(resolved.select("event_id", "occurred_at").iter_rows())
        decisions += [one._replace(decided_at=times[one.event_id]) for one in decided.all()]
    decisions.sort(key=lambda one: (one.decided_at, one.event_id))
    due = [one for one in decisions if one.outcome == "due"]
    called_off = _called_off(decider, spec, due)
    zones = _zones(decider, due) if spec.quiet_hours else {}
    last: dict[int, datetime] = {}
    judged: dict[tuple[str, int], Decision] = {}
    # in the order in which they fire: a cooldown is judged then
    for one in sorted(
        due, key=lambda decision: (decision.due_at or until, decision.decided_at, decision.event_id)
    ):
        assert one.due_at is not None
        key = (one.event_id, one.contact_id)
        fires_at = one.due_at
        quiet = (
            spec.quiet_hours.quiet_until(fires_at, zones.get(one.contact_id)) if spec.quiet_hours else None
        )
        if reason := called_off.get(key):
            judged[key] = one._replace(outcome="unless", reason=reason)
            continue
        if quiet and spec.quiet_hours and spec.quiet_hours.then == "skip":
            judged[key] = one._replace(outcome="quiet_hours", reason=f"until {quiet:%Y-%m-%d %H:%M} UTC")
            continue
        fires_at = quiet or fires_at
        before = last.get(one.contact_id)
        if before is not None and spec.cooldown and fires_at - before < spec.cooldown:
            judged[key] = one._replace(outcome="cooldown", reason=f"it fired {before:%Y-%m-%d %H:%M:%S} UTC")
            continue
        last[one.contact_id] = fires_at
        judged[key] = one._replace(outcome="fired", due_at=fires_at)
    return [judged.get((one.event_id, one.contact_id), one) for one in decisions]


def _events(decider: Decider, spec: TriggerSpec, since: datetime, until: datetime) -> pl.DataFrame:
    columns = ", ".join(
        "toJSONString(properties) as properties" if name == "properties"
        else f"{name}::String as {name}" if dtype == pl.String else name
        for name, dtype in EVENT_COLUMNS.items() if name != "esp_event"
    )  # fmt: skip
    found = decider.live.warehouse.frame(
        f"""
        select * from (
            select {columns} from raw.events
            where type in {{types:Array(String)}} and occurred_at >= {{since:DateTime64(3, 'UTC')}}
                and occurred_at < {{until:DateTime64(3, 'UTC')}}
            order by occurred_at, event_id limit 1 by event_id
        ) order by occurred_at, event_id
        """,
        {"types": spec.event, "since": _text(since), "until": _text(until)},
    )
    return found.with_columns(pl.lit("").alias("esp_event")).select(
        pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items()
    )


def _called_off(decider: Decider, spec: TriggerSpec, due: Sequence[Decision]) -> dict[tuple[str, int], str]:
    reasons: dict[tuple[str, int], str] = {}
    for start in range(0, len(due), _BATCH):
        part = due[start : start + _BATCH]
        keys = [(one.event_id, one.contact_id) for one in part]
        # what happens in the very instant in which it is due has not reached the gateway by then
        ends = {
            place: max(one.due_at - _INSTANT, one.decided_at)
            for place, one in enumerate(part)
            if one.due_at is not None
        }
        if types := spec.unless_events:
            rows = pl.DataFrame(
                {
                    "row": range(len(part)),
                    "contact_id": [one.contact_id for one in part],
                    "since": [one.decided_at for one in part],
                    "until": [ends.get(place) for place in range(len(part))],
                }
            ).with_columns(pl.col("since", "until").cast(pl.Datetime("ms", "UTC")))
            for place, kind, event_id, occurred_at in decider.live.happened(rows, types).iter_rows():
                if event_id != part[place].event_id:
                    what = f"{kind} {occurred_at:%Y-%m-%d %H:%M:%S} UTC, event {event_id}"
                    reasons.setdefault(keys[place], what)
        if conditions := decider.conditions(spec).unless:
            named = {f"unless {number}": one for number, one in enumerate(conditions)}
            state = decider.live.judge(
                firing_rows(part, ends), named, Needs.of(named.values()), is_history=True
            )
            for place, *verdicts in state.select("row", *named).iter_rows():
                for text, is_met in zip(spec.unless_conditions, verdicts, strict=True):
                    if is_met:
                        reasons.setdefault(keys[place], text)
    return reasons


def _zones(decider: Decider, due: Sequence[Decision]) -> dict[int, Any]:
    if "timezone" not in decider.live.columns() or not due:
        return {}
    found = decider.live.warehouse.frame(
        f"select contact_id, timezone from {decider.live.prefix}marts.contact_profiles"
        " where contact_id in (select contact_id from wanted)",
        external={"wanted": pl.DataFrame({"contact_id": [one.contact_id for one in due]})},
    )
    return dict(found.iter_rows())


def _text(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"


def parse_moment(text: str, now: datetime) -> datetime:
    """An instant: `2026-06-01`, `2026-06-01T12:00Z`, or so long ago as `7d`.

    Raises:
        InputError: it is none.
    """
    from warehouse.yaml_specs import parse_duration

    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"{text!r} is no time.", fix="Write 2026-06-01, 2026-06-01T12:00Z, or 7d for a week ago."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
