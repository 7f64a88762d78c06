# ruff: noqa: S608  (names of this module)
"""What triggers decide about events: one judgement a trigger and event, with the values that it read.

The same rule serves the gateway, `mailhouse trigger test` and `mailhouse replay`. Every decision becomes a row of
`campaigns.trigger_decisions`, from which `mailhouse why` answers; that a condition was not met is kept for a week, the
rest for half a year.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from campaigns.live import JUDGED_COLUMNS, Ahead, Live, Needs, judged_rows
from campaigns.predicates import MISFITS, Predicate
from campaigns.recent import UTC_MS
from campaigns.triggers import Conditions, TriggerSpec, conditions_of, plain
from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError

LATE: Final = timedelta(hours=24)
"""An event that took longer than this to reach us is history: it fires nothing."""

OUTCOMES: Final = {
    "fired": "it fired",
    "due": "it is to fire, now or when its wait is over",
    "condition": "its condition was not met",
    "no_contact": "the event led to no contact",
    "late": f"the event reached us more than {LATE.total_seconds() / 3600:.0f} hours after it happened",
    "unless": "what calls it off had happened",
    "cooldown": "it had fired for this contact within its cooldown",
    "frequency_cap": "the contact had got as many messages as the frequency cap allows",
    "quiet_hours": "it was night where the contact lives",
    "no_consent": "there is no consent to this purpose on this channel",
    "suppressed": "the address is suppressed (unsubscribed, complained or bounced)",
    "invalid": "the contact has no address that can be written to",
    "deleted": "the contact has been deleted",
    "restricted": "processing of the contact's data is restricted",
    "put_off": "the provider or the other system put it off; it is tried again",
    "paused": "the trigger is paused",
    "failed": "it failed",
    "unknown": "it may have gone: the sender died while the provider was called",
}
"""What may become of a trigger and an event, in words."""

TABLE: Final = """
    create table if not exists campaigns.trigger_decisions (
        decided_at DateTime64(3, 'UTC'),
        trigger LowCardinality(String),
        version LowCardinality(String),
        contact_id Int64,
        event_id String,
        event_type LowCardinality(String),
        firing_id String,
        outcome LowCardinality(String),
        reason String codec(ZSTD(1)),
        details String codec(ZSTD(3)),
        written_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree partition by toMonday(written_at) order by (trigger, contact_id, decided_at)
    ttl toDateTime(written_at) + toIntervalDay(7) delete where outcome = 'condition',
        toDateTime(written_at) + toIntervalDay(180)
    comment 'One decision of one trigger about one event; the same decision may stand there twice after a crash.'
"""


class Decision(NamedTuple):
    """What a trigger makes of an event; a tuple, for there are as many as events times triggers.

    Attributes:
        outcome: one of `OUTCOMES`.
        values: what its conditions read, by name.
        due_at: when it is to fire, for `due`.
        event: type, source, email, occurred_at, properties, message words: what acting needs of the event.
        state: of the contact, as `Live.judge` returns it, if more was asked for than conditions read.
    """

    trigger: str
    version: str
    contact_id: int
    event_id: str
    event_type: str
    outcome: str
    decided_at: datetime
    reason: str = ""
    values: Mapping[str, Any] = MappingProxyType({})
    due_at: datetime | None = None
    firing_id: str = ""
    event: Mapping[str, Any] = MappingProxyType({})
    state: Mapping[str, Any] | None = None


ROW_COLUMNS: Final[dict[str, pl.DataType]] = {
    "decided_at": UTC_MS,
    "trigger": pl.String(),
    "version": pl.String(),
    "contact_id": pl.Int64(),
    "event_id": pl.String(),
    "event_type": pl.String(),
    "firing_id": pl.String(),
    "outcome": pl.String(),
    "reason": pl.String(),
    "details": pl.String(),
}
"""Columns of `campaigns.trigger_decisions` that are written."""


@dataclass(frozen=True)
class Decided:
    """What triggers make of events.

    Attributes:
        due: what is to be done, in the order of the events.
        make_rest: puts `rest` together; by any thread.
    """

    due: list[Decision]
    make_rest: Callable[[], pl.DataFrame] = lambda: pl.DataFrame(schema=ROW_COLUMNS)

    @cached_property
    def rest(self) -> pl.DataFrame:
        """All else, columns of `ROW_COLUMNS`: with many triggers nearly all, so it never becomes objects, and it is
        put together when it is asked for: nobody who is to get a message waits for it.
        """
        return self.make_rest()

    def all(self) -> list[Decision]:
        """All of them, oldest event first; for a few."""
        others = [
            Decision(
                row["trigger"], row["version"], row["contact_id"], row["event_id"], row["event_type"], row["outcome"],
                row["decided_at"], row["reason"], json.loads(row["details"])["values"],
            )
            for row in self.rest.iter_rows(named=True)
        ]  # fmt: skip
        return [*self.due, *others]


def decision_rows(decisions: Sequence[Decision]) -> pl.DataFrame:
    """Decisions as rows of `campaigns.trigger_decisions`."""
    rows = [(*one[6:7], *one[:5], one[10], one[5], one[7], _details(one[8], one[9])) for one in decisions]
    return pl.DataFrame(rows, schema=ROW_COLUMNS, orient="row")


@dataclass
class _Known:
    """What follows from the conditions of all triggers while the profile has these columns; made when it is needed."""

    columns: dict[str, str]
    parsed: dict[str, Conditions] = field(default_factory=dict)
    needs: dict[frozenset[str], Needs] = field(default_factory=dict)
    read: frozenset[str] | None = None
    watched: frozenset[str] | None = None


class Decider:
    """Judges events by all triggers.

    Args:
        specs: the triggers in force.
        live: the state.
    """

    def __init__(self, specs: Iterable[TriggerSpec], live: Live) -> None:
        self.live = live
        self.specs = {spec.name: spec for spec in specs}
        self._known = _Known({})

    def _look(self) -> _Known:
        """What follows from the conditions; nothing yet if the profile has other columns now."""
        columns = self.live.columns()
        known = self._known
        if known.columns is not columns:
            known = self._known = _Known(columns)
        return known

    def conditions(self, spec: TriggerSpec) -> Conditions:
        """A trigger's conditions, read with the types that the profile's columns have now."""
        known = self._look()
        if spec.name not in known.parsed:
            known.parsed[spec.name] = conditions_of(spec, known.columns or None)
        return known.parsed[spec.name]

    @property
    def columns(self) -> frozenset[str]:
        """What all conditions read, of triggers whose conditions can be read."""
        known = self._look()
        if known.read is None:
            names: set[str] = set()
            for spec in self.specs.values():
                with contextlib.suppress(InputError):
                    names.update(name for one in self.conditions(spec).all for name in one.columns)
            known.read = frozenset(names)
        return known.read

    @cached_property
    def event_types(self) -> frozenset[str]:
        """Types of events that fire anything."""
        return frozenset(kind for spec in self.specs.values() for kind in spec.event or ())

    def needs(self, types: Iterable[str]) -> Needs:
        """What of the state the conditions read of triggers that these types of events may fire."""
        wanted = self.event_types.intersection(types)
        known = self._look()
        if wanted not in known.needs:
            found: list[Predicate] = []
            for spec in self.specs.values():
                if wanted.intersection(spec.event or ()):
                    with contextlib.suppress(InputError):
                        when = self.conditions(spec).when
                        found += [when] if when is not None else []
            known.needs[wanted] = Needs.of(found)
        return known.needs[wanted]

    @property
    def watched_types(self) -> frozenset[str]:
        """Types of events that matter to any trigger: that fire it, that it counts, or that call it off."""
        known = self._look()
        if known.watched is None:
            types = set(self.event_types)
            for spec in self.specs.values():
                types.update(spec.unless_events)
                with contextlib.suppress(InputError):
                    types.update(call.event_type for one in self.conditions(spec).all for call in one.calls)
            known.watched = frozenset(types)
        return known.watched

    def decide(
        self,
        events: pl.DataFrame,
        now: datetime,
        *,
        sent: pl.DataFrame | None = None,
        is_history: bool = False,
        names: Sequence[str] | None = None,
        more: Needs | None = None,
        ahead: Ahead | None = None,
    ) -> Decided:
        """What all triggers, or those named, make of events.

        Args:
            events: as `Live.store` returns them.
            sent: as for `Live.judge`.
            is_history: judge the past: no event is late.
            more: of the state, for whoever acts: decisions that are due have it.
            ahead: as for `Live.judge`.
        """
        chosen = [spec for name, spec in self.specs.items() if names is None or name in names]
        by_type: dict[str, list[TriggerSpec]] = {}
        for spec in chosen:
            for kind in spec.event or ():
                by_type.setdefault(kind, []).append(spec)
        if names is not None and all(spec.event is None for spec in chosen):
            # due by the clock: the caller says for which triggers
            by_type = dict.fromkeys(events["type"].unique(), chosen)
        if not by_type.keys() >= set(events["type"].to_list()):
            events = events.filter(pl.col("type").is_in(list(by_type)))
        keys = list(
            zip(events["occurred_at"].to_physical().to_list(), events["event_id"].to_list(), strict=True)
        )
        if len({event_id for _, event_id in keys}) < len(keys):
            events = events.unique("event_id", keep="first", maintain_order=True).sort(
                "occurred_at", "event_id"
            )
        elif any(one > other for one, other in pairwise(keys)):
            events = events.sort("occurred_at", "event_id")
        if events.is_empty():
            return Decided([])
        return self._decided(events, by_type, now, sent, is_history, more, ahead)

    def _decided(
        self,
        events: pl.DataFrame,
        by_type: Mapping[str, Sequence[TriggerSpec]],
        now: datetime,
        sent: pl.DataFrame | None,
        is_history: bool,
        more: Needs | None,
        ahead: Ahead | None,
    ) -> Decided:
        types = set(events["type"])
        specs = {spec.name: spec for kind in types for spec in by_type[kind]}
        when: dict[str, Predicate] = {}
        broken: dict[str, str] = {}
        for name, spec in specs.items():
            try:
                condition = self.conditions(spec).when
            except InputError as error:
                broken[name] = error.message
            else:
                if condition is not None:
                    when[name] = condition
        rows = judged_rows(events)
        is_nobody = rows["contact_id"].to_numpy() == 0
        known = rows.filter(pl.col("contact_id") != 0) if is_nobody.any() else rows
        judged: dict[str, Any] = {}
        if known.height and (when or more is not None):
            judged, unfit = self._judged(known, when, sent, is_history, more, ahead)
            broken |= unfit
        asked = _Asked(events, known, judged, when)
        due: list[tuple[int, Decision]] = []
        rest: list[_Part] = []
        is_late = np.zeros(events.height, bool)
        if not is_history:
            is_late = (events["received_at"] - events["occurred_at"] > LATE).to_numpy()
        kinds = np.array(events["type"].to_list(), object)
        for kind in types:
            is_kind = kinds == kind
            nobody = np.flatnonzero(is_kind & is_nobody)
            late = np.flatnonzero(is_kind & ~is_nobody & is_late)
            fit = is_kind & ~is_nobody & ~is_late
            for spec in by_type[kind]:
                name = spec.name
                left, read = fit, None
                parts: list[tuple[str, str, np.ndarray, _Read | None]] = [
                    ("no_contact", "", nobody, None),
                    ("late", "", late, None),
                ]
                if name in broken:
                    parts.append(("failed", broken[name], np.flatnonzero(left), None))
                    left = is_nobody & ~is_nobody
                elif name in when:
                    read = asked.read_by(name)
                    met = asked.met(name)
                    parts.append(("condition", spec.when or "", np.flatnonzero(left & ~met), read))
                    left = left & met
                rest += [_Part(spec, *part) for part in parts if part[2].size]
                for place in np.flatnonzero(left).tolist():
                    event = asked.event(place)
                    decision = Decision(
                        name, spec.version, event["contact_id"], event["event_id"], kind, "due", now, "",
                        asked.values(place, *read) if read is not None else _NO_VALUES,
                        event["occurred_at"] + (spec.wait or _NO_WAIT), "", asked.words(place),
                        asked.state(place) if more is not None else None,
                    )  # fmt: skip
                    due.append((place, decision))
        # in the order of the events, whose cooldowns and caps are judged in that order
        due.sort(key=lambda one: one[0])
        return Decided([decision for _, decision in due], partial(asked.rows, rest, now))

    def _judged(
        self,
        known: pl.DataFrame,
        when: Mapping[str, Predicate],
        sent: pl.DataFrame | None,
        is_history: bool,
        more: Needs | None,
        ahead: Ahead | None,
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Columns with verdicts, in the order of `known`; a condition that does not fit leaves all others judged."""

        def asked(names: Iterable[str]) -> dict[str, Any]:
            conditions = {f"met {name}": when[name] for name in names}
            needs = Needs.of(conditions.values())
            needs = needs if more is None else needs.and_also(more)
            found = self.live.judged(known, conditions, needs, sent=sent, is_history=is_history, ahead=ahead)
            return {
                name: np.array(values, bool) if name in conditions else values
                for name, values in found.items()
            }

        try:
            return asked(when), {}
        except WarehouseError as error:
            if error.code not in MISFITS:
                raise
        columns: dict[str, Any] = {} if more is None else asked(())
        unfit: dict[str, str] = {}
        for name in when:
            try:
                columns |= asked([name])
            except WarehouseError as error:
                if error.code not in MISFITS:
                    raise
                unfit[name] = f"its condition does not fit the values: {error.message[:300]}"
        return columns, unfit


_Read = tuple[tuple[str, ...], tuple[Any, ...]]


class _Part(NamedTuple):
    """Events of which a trigger made the same; what its condition read, if it was not met."""

    spec: TriggerSpec
    outcome: str
    reason: str
    places: np.ndarray
    read: _Read | None


class _Asked:
    """Events with what was judged of them; what is asked twice is put together once."""

    def __init__(
        self,
        events: pl.DataFrame,
        known: pl.DataFrame,
        judged: Mapping[str, Any],
        when: Mapping[str, Predicate],
    ) -> None:
        self._events, self._judged = events, judged
        self._columns: dict[str, list[Any]] = {}
        self._stated = [
            (name, found) for name, found in judged.items() if name != "row" and not name.startswith("met ")
        ]
        # rows of `judged` for events that lead to somebody
        self._rows = known["row"].to_numpy()
        self._at = {row: place for place, row in enumerate(self._rows.tolist())}
        self._reads = {
            name: (tuple(sorted(one.columns)), tuple(sorted(one.calls))) for name, one in when.items()
        }
        self._events_of: dict[int, dict[str, Any]] = {}
        self._words: dict[int, dict[str, Any]] = {}
        self._values: dict[tuple[int, Any], dict[str, Any]] = {}
        self._texts: dict[Any, pl.Series] = {}
        self._states: dict[int, dict[str, Any]] = {}

    def event(self, place: int) -> dict[str, Any]:
        if place not in self._events_of:
            if not self._columns:
                self._columns = self._events.to_dict(as_series=False)
            self._events_of[place] = {name: found[place] for name, found in self._columns.items()}
        return self._events_of[place]

    def words(self, place: int) -> dict[str, Any]:
        if place not in self._words:
            self._words[place] = _event_words(self.event(place))
        return self._words[place]

    def read_by(self, name: str) -> _Read:
        """What a trigger's condition reads: columns and calls."""
        return self._reads[name]

    def met(self, name: str) -> np.ndarray:
        """Of which events a trigger's condition is met."""
        made = np.zeros(self._events.height, bool)
        if (column := self._judged.get(f"met {name}")) is not None:
            made[self._rows] = column
        return made

    def values(self, place: int, columns: tuple[str, ...], calls: tuple[Any, ...]) -> dict[str, Any]:
        """What a condition read of an event."""
        key = place, (columns, calls)
        if key not in self._values:
            self._values[key] = _values(self._judged, self._at[place], self.event(place), columns, calls)
        return self._values[key]

    def state(self, place: int) -> dict[str, Any]:
        """The state of an event's contact; empty for nobody."""
        if place not in self._states:
            at = self._at[place]
            self._states[place] = {name: found[at] for name, found in self._stated}
        return self._states[place]

    def rows(self, parts: Sequence[_Part], now: datetime) -> pl.DataFrame:
        """Rows of `campaigns.trigger_decisions` of events that come to nothing."""
        if not parts:
            return pl.DataFrame(schema=ROW_COLUMNS)
        height = self._events.height
        places = np.concatenate([part.places for part in parts])
        numbers = np.repeat(np.arange(len(parts)), [part.places.size for part in parts])
        # texts of all events for each set of what was read, one after the other, and one for nothing at the end
        reads = list(dict.fromkeys(part.read for part in parts if part.read is not None))
        starts = {read: place * height for place, read in enumerate(reads)}
        nothing = len(reads) * height
        texts = pl.concat([*(self._details_of(read) for read in reads), pl.Series("details", [_details({})])])
        begins = np.array([starts[part.read] if part.read is not None else nothing for part in parts])
        at = np.where(begins[numbers] == nothing, nothing, begins[numbers] + places)

        def of_part(values: Sequence[str]) -> pl.Series:
            return pl.Series(values, dtype=pl.String()).gather(numbers)

        return self._events.select("contact_id", "event_id", pl.col("type").alias("event_type"))[
            places
        ].select(
            pl.lit(now).cast(UTC_MS).alias("decided_at"),
            of_part([part.spec.name for part in parts]).alias("trigger"),
            of_part([part.spec.version for part in parts]).alias("version"),
            "contact_id",
            "event_id",
            "event_type",
            pl.lit("").alias("firing_id"),
            of_part([part.outcome for part in parts]).alias("outcome"),
            of_part([part.reason for part in parts]).alias("reason"),
            texts.gather(at).alias("details"),
        )

    def _details_of(self, read: _Read) -> pl.Series:
        """What was read of each event, as it is written down."""
        if read not in self._texts:
            texts = [
                _details(self.values(place, *read)) if place in self._at else ""
                for place in range(self._events.height)
            ]
            self._texts[read] = pl.Series("details", texts, pl.String())
        return self._texts[read]


_NO_WAIT = timedelta(0)
_NO_VALUES: Final[Mapping[str, Any]] = MappingProxyType({})


def _details(values: Mapping[str, Any], due_at: datetime | None = None) -> str:
    due = {"due_at": due_at.isoformat()} if due_at else {}
    return json.dumps({"values": dict(values), **due}, ensure_ascii=False)


def _values(
    judged: Mapping[str, Sequence[Any]],
    place: int,
    event: Mapping[str, Any],
    columns: Iterable[str],
    calls: Iterable[Any],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in columns:
        if name.startswith("message."):
            values[name] = event[f"message_{name.removeprefix('message.')}"]
        elif name in ("event.type", "event.source", "event.occurred_at"):
            values[name] = plain(event[name.removeprefix("event.")])
        else:
            values[name] = plain(judged[name][place]) if name in judged else None
    for call in calls:
        values[f"{call.function}('{call.event_type}', '{call.seconds}s')"] = plain(judged[call.column][place])
    return values


def _event_words(event: Mapping[str, Any]) -> dict[str, Any]:
    words = {
        name: event[name]
        for name in ("type", "source", "email", "properties", "message_kind", "message_name", "message_template",
                     "message_occurrence")
    }  # fmt: skip
    return {**words, "occurred_at": event["occurred_at"].isoformat()}


def firing_rows(firings: Sequence[Any], as_of: datetime | Mapping[int, datetime]) -> pl.DataFrame:
    """Firings (`senders.firings`) as `Live.judge` takes them, numbered from 0, as of now or each as of its own time."""
    rows = [
        {
            "row": place,
            "contact_id": one.contact_id,
            "email": one.event.get("email", ""),
            "as_of": as_of[place] if isinstance(as_of, Mapping) else as_of,
            "event_id": one.event_id,
            "event_type": one.event["type"],
            "event_source": one.event.get("source", ""),
            "event_occurred_at": datetime.fromisoformat(one.event["occurred_at"]),
            "event_properties": one.event.get("properties") or "{}",
            **{name: one.event.get(name, "") for name in JUDGED_COLUMNS if name.startswith("message_")},
        }
        for place, one in enumerate(firings)
    ]
    frame = pl.DataFrame(rows, schema_overrides=dict(JUDGED_COLUMNS), infer_schema_length=None)
    return frame.select(pl.col(name).cast(dtype) for name, dtype in JUDGED_COLUMNS.items())


class DecisionLog:
    """Writes and reads `campaigns.trigger_decisions`."""

    def __init__(self, warehouse: Warehouse) -> None:
        self.warehouse = warehouse

    def prepare(self) -> None:
        """Make the table, if it is not there."""
        self.warehouse.define("create database if not exists campaigns")
        self.warehouse.define(TABLE)

    def write(self, rows: pl.DataFrame) -> None:
        """Append decisions: columns of `ROW_COLUMNS`."""
        self.warehouse.insert("campaigns.trigger_decisions", rows)

    def read(
        self,
        *,
        firing_id: str = "",
        trigger: str = "",
        contact_id: int = 0,
        event_id: str = "",
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Decisions, oldest first, each once: about a firing, or about a trigger and contact."""
        if not self.warehouse.value(
            "select count() from system.tables where database = 'campaigns' and name = 'trigger_decisions'"
        ):
            return []
        where = (
            "firing_id = {firing:String}"
            if firing_id
            else "trigger = {trigger:String} and contact_id = {contact:Int64}"
        )
        if event_id:
            where += " and event_id = {event:String}"
        found = self.warehouse.frame(
            f"""
            select * from (
                select decided_at, trigger::String as trigger, version::String as version, contact_id, event_id,
                    event_type::String as event_type, firing_id, outcome::String as outcome, reason, details
                from campaigns.trigger_decisions where {where}
                order by decided_at desc, written_at desc limit 1 by event_id, outcome, decided_at limit {int(limit)}
            ) order by decided_at, event_id, outcome != 'due'
            """,
            {"firing": firing_id, "trigger": trigger, "contact": contact_id, "event": event_id},
        )
        return [{**row, "details": json.loads(row["details"])} for row in found.iter_rows(named=True)]


def clock_events(
    warehouse: Warehouse, live: Live, spec: TriggerSpec, now: datetime, *, look_back: timedelta = LATE
) -> pl.DataFrame:
    """Whom a trigger of `date`, `becomes`, `entered` or `left` concerns now, as events for `Decider.decide`.

    What has been decided already is left out. For a state, those for whom it has begun since it was last looked at; who
    is in it when the trigger is new was so before, and fires nothing. Call `note_states` once they have been decided.
    """
    live.require_marts()
    profiles = f"{live.prefix}marts.contact_profiles"
    parameters: dict[str, Any] = {
        "now": _text(now), "since": _text(now - look_back), "trigger": spec.name, "state": spec.state_key,
    }  # fmt: skip
    if spec.date is not None:
        date = spec.date
        if date.every == "year":
            shift = (date.after or timedelta(0)) - (date.before or timedelta(0))
            local = "toDate(now_, {zone:String})"
            # this year's day and those beside it: the year may turn between the clocks
            due = (
                f"arrayJoin(arrayMap(year -> toDateTime64(toString(addYears(toDate(moment, {{zone:String}}), year))"
                " || ' ' || {at:String} || ':00', 3, {zone:String}),"
                f" arrayMap(shift -> toYear({local}) - toYear(moment, {{zone:String}}) + shift, [-1, 0, 1])))"
                f" + toIntervalSecond({int(shift.total_seconds())})"
            )
            parameters |= {"zone": date.timezone, "at": date.at}
            first = "and due > moment"
        else:
            shift = (date.after or timedelta(0)) - (date.before or timedelta(0))
            due = f"moment + toIntervalSecond({int(shift.total_seconds())})"
            first = ""
        sql = f"""
            select contact_id, toTimeZone(due, 'UTC') as occurred_at,
                'trigger:' || {{trigger:String}} || ':' || toString(contact_id) || ':'
                    || toString(toUnixTimestamp64Milli(toDateTime64(due, 3, 'UTC'))) as event_id
            from (
                with {{now:DateTime64(3, 'UTC')}} as now_
                select contact_id, toDateTime64(assumeNotNull(`{date.column}`), 3, 'UTC') as moment, {due} as due
                from {profiles} where `{date.column}` is not null
            )
            where due > {{since:DateTime64(3, 'UTC')}} and due <= {{now:DateTime64(3, 'UTC')}} {first}
                and event_id not in (
                    select event_id from campaigns.trigger_decisions where trigger = {{trigger:String}}
                )
        """
    else:
        condition = conditions_of(spec, live.columns()).state
        assert condition is not None
        sql = f"""
            select contact_id, {{now:DateTime64(3, 'UTC')}} as occurred_at,
                'trigger:' || {{trigger:String}} || ':' || toString(contact_id) || ':'
                    || toString(toUnixTimestamp64Milli(assumeNotNull(before.changed_at))) as event_id
            from (
                select contact_id, ifNull(({condition.sql})::Nullable(Bool), false) as is_met from {profiles}
            ) as people
            left any join (
                select contact_id, argMax(is_met, states.changed_at) as was_met, max(states.changed_at) as changed_at
                from campaigns.trigger_states as states
                where trigger = {{trigger:String}} and state = {{state:String}} group by contact_id
            ) as before on before.contact_id = people.contact_id
            where is_met and not was_met and (
                select count() > 0 from campaigns.trigger_states
                where trigger = {{trigger:String}} and state = {{state:String}}
            )
            settings join_use_nulls = 0
        """
    found = warehouse.frame(sql, parameters)
    moment = pl.col("occurred_at").cast(UTC_MS)
    return found.select(
        "event_id",
        pl.lit(f"trigger.{spec.source}").alias("type"),
        pl.lit("clock").alias("source"),
        pl.lit("").alias("email"),
        "contact_id",
        moment.alias("occurred_at"),
        moment.alias("received_at"),
        pl.lit("{}").alias("properties"),
        *(pl.lit("").alias(f"message_{name}") for name in ("kind", "name", "template", "occurrence")),
    )


STATES: Final = """
    create table if not exists campaigns.trigger_states (
        trigger LowCardinality(String), state LowCardinality(String), contact_id Int64, is_met Bool,
        changed_at DateTime64(3, 'UTC')
    ) engine = ReplacingMergeTree(changed_at) order by (trigger, state, contact_id)
    comment 'Whether the state that a trigger watches was met when it was last looked at; contact 0: it has been.'
"""


def note_states(warehouse: Warehouse, live: Live, spec: TriggerSpec, now: datetime) -> None:
    """Note for whom the state that a trigger watches holds now."""
    condition = conditions_of(spec, live.columns()).state
    assert condition is not None
    warehouse.execute(
        f"""
        insert into campaigns.trigger_states
        select {{trigger:String}}, {{state:String}}, contact_id, is_met, {{now:DateTime64(3, 'UTC')}}
        from (
            select contact_id, ifNull(({condition.sql})::Nullable(Bool), false) as is_met
            from {live.prefix}marts.contact_profiles
            union all select 0::Int64, true
        ) as people
        left any join (
            select contact_id, argMax(is_met, changed_at) as was_met from campaigns.trigger_states
            where trigger = {{trigger:String}} and state = {{state:String}} group by contact_id
        ) as before on before.contact_id = people.contact_id
        where is_met != was_met
        settings join_use_nulls = 0
        """,
        {"trigger": spec.name, "state": spec.state_key, "now": _text(now)},
    )


def _text(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"
