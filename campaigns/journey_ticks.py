# ruff: noqa: E501, S608  (lines of SQL; queries are put together from checked conditions, names of checked files and escaped literals)
"""One tick of a journey: who wants in comes in, who is due goes on, in set-based SQL.

A tick goes in passes. Each pass notes what makes people move (`campaigns.journey_signals`: the goal, a rule of exit, a
request, an event or condition that somebody waits for, what became of a message), moves everybody concerned one step
on, and those who then stand at a step that is passed at once (branch, split, crm_task, tag, exit) again, until all rest.
Then it commits (`campaigns.journey_state`) and hands the people at send steps to `deliver`; what became of their
messages is what the next pass begins with. The tick is over when a pass moves nobody.

Who is where is never read into this process; only the ids of people who are to get a message are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import polars as pl

from campaigns.assignment import OUTSIDE
from campaigns.audience import profile_columns
from campaigns.experiments import Decision, winners_of
from campaigns.journey_state import (
    DELETED,
    EXIT,
    FINISHED,
    GOAL,
    GONE,
    LEFT,
    RESTRICTED,
    Cursors,
    Fence,
    apply_tick,
    count_moves,
    define_tables,
    kept_versions,
    message_name,
    record_journey,
    recover,
    sql_text,
    sql_time,
    table_exists,
    write_moves,
)
from campaigns.journeys import END, KIND, JourneySpec, Node
from campaigns.permissions import restricted_sql
from campaigns.predicates import Predicate, check_types
from campaigns.reasons import RETRYABLE, listed
from warehouse.client import Warehouse

GIVEN_UP_AFTER = timedelta(days=3)
"""How long a message is tried that the provider puts off, and how long somebody without a profile is waited for."""
RETRY_AFTER = timedelta(minutes=10)
REQUEST_DAYS = 7
"""How long a request is kept for somebody whom the models do not know yet."""
MOST_KEPT = 10_000
"""Events of people who were not known then that one tick looks at again."""
SCHEDULE_CATCH_UP = timedelta(hours=24)
MOST_PASSES = 50
LATE_EVENTS = {"marts": timedelta(minutes=60), "live": timedelta(minutes=1)}
"""Rows may become visible so much later than `loaded_at` says."""
_MAIL_EVENTS = frozenset(("opened", "clicked"))
_EVENT_COLUMNS = {
    # what the SQL of a condition reads of an event (campaigns.predicates): the column of events, and what stands for none
    "event_type": ("toString(type)", "''"),
    "event_source": ("toString(source)", "''"),
    "event_occurred_at": ("occurred_at", "now64(3, 'UTC')"),
    "event_properties": ("toJSONString(properties)", "''"),
}
_UNSEEN = "1970-01-01 00:00:00.000"

Deliver = Callable[["Departure"], int]
"""Sends what a departure says; returns how many messages were handed over now."""


@dataclass(frozen=True)
class Departure:
    """People who are to get a message now.

    Attributes:
        occurrence: which time round it is for them: the number of their entry.
        contacts: one column, `contact_id`, ascending.
        is_last: no other departure of this tick has the same step and occurrence (people of another version may).
    """

    spec: JourneySpec
    node: Node
    occurrence: str
    contacts: pl.DataFrame
    is_last: bool = True


@dataclass
class TickSummary:
    """What a tick did.

    Attributes:
        moves: moves that were committed, arrivals among them.
        entered: people who came in.
        endings: people who left, by how.
        delivered: messages handed over.
        refused: requests not followed.
        recovered: moves of an earlier tick that had died before they were applied.
        passes: passes that moved somebody.
        seconds: time by the clock apart from sending.
    """

    moves: int = 0
    entered: int = 0
    endings: dict[str, int] = field(default_factory=dict)
    delivered: int = 0
    refused: int = 0
    recovered: int = 0
    passes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Present:
    """Of the people at a step the earliest: when they came to it, when they came in, when they are due."""

    entered_at: datetime
    started_at: datetime
    due_at: datetime


@dataclass(frozen=True)
class _Listener:
    """An event that some step, rule or goal of some version listens to."""

    version: str
    kind: str
    priority: int
    step: str
    event: str
    message: str | None
    where: str | None
    outcome: str
    within: timedelta | None = None


class JourneyTick:
    """Moves the people of one journey.

    Args:
        warehouse: where the marts and the tables of journeys are.
        spec: the journey as its file has it now; people who come in go through this version.
        now: the time, by the settings' clock.
        fence: the lease that the caller holds.
        deliver: sends; left out, nobody goes past a send step.
        clock_offset: seconds by which `now` is ahead of the warehouse's own clock.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        spec: JourneySpec,
        now: datetime,
        fence: Fence,
        deliver: Deliver | None = None,
        *,
        clock_offset: float = 0.0,
    ) -> None:
        self.warehouse, self.spec, self.now, self.fence, self.deliver = warehouse, spec, now, fence, deliver
        self.offset = timedelta(seconds=clock_offset)
        self.journey = {"journey": spec.name}
        self.parameters: dict[str, Any] = {
            **self.journey,
            "now": now.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        }
        self.tick = 0
        self.specs: dict[str, JourneySpec] = {}
        self.columns: list[str] = []
        self._zones: list[str] | None = None
        self.decided: dict[str, Decision] = {}

    def run(self) -> TickSummary:
        """One tick.

        Raises:
            MailhouseError: the warehouse or the lease fails, or a message cannot be sent; nothing is lost, the next tick
                goes on from what was committed.
        """
        summary = TickSummary()
        define_tables(self.warehouse)
        self.columns = profile_columns(self.warehouse)
        record_journey(self.warehouse, self.spec)
        self.specs = {**kept_versions(self.warehouse, self.spec.name), self.spec.version: self.spec}
        self.decided = winners_of(
            self.warehouse, {placed.name for spec in self.specs.values() for placed in spec.experiments()}
        )
        summary.recovered = recover(self.warehouse, self.spec.name, self.fence, self.specs, self.now)
        self.cursors = Cursors(self.warehouse, self.spec.name)
        self._begin()
        for number in range(MOST_PASSES):
            moves = self._pass(summary, is_first=number == 0)
            if number == 0:
                self.cursors.save()
            elif not moves:
                break
            summary.moves += moves
            summary.passes += bool(moves)
            delivered = self._depart()
            summary.delivered += delivered
            if not delivered and not (moves and self._may_go_on()):
                break
        return summary

    def _look(self) -> None:
        """Read which steps people are at: what follows leaves all other steps out."""
        rows = self.warehouse.frame(
            """
            select toString(version) as version, toString(step) as step, min(entered_at) as entered_at,
                min(started_at) as started_at, min(due_at) as due_at
            from campaigns.journey_states final
            where journey = {journey:String} and step != '' group by version, step
            """,
            self.journey,
        )
        self.present: dict[tuple[str, str], _Present] = {
            (version, step): _Present(*moments)
            for version, step, *moments in rows.iter_rows()
            if version in self.specs
        }
        self.earliest: dict[str, datetime] = {}
        for (version, _), one in self.present.items():
            self.earliest[version] = min(one.started_at, self.earliest.get(version, one.started_at))

    def _may_go_on(self) -> bool:
        """Whether somebody who has moved may move again at once: due, or at a step whose condition may hold."""
        for (version, step), one in self.present.items():
            node = self.specs[version].nodes.get(step)
            if node is None or node.kind == "send":
                continue
            wait = node.step.wait_for
            if one.due_at <= self.now or (wait is not None and wait.event is None):
                return True
        return False

    # what a tick begins with

    def _begin(self) -> None:
        """Read how far everything is, before anything is looked at."""
        if not self.cursors.get("start"):
            self.cursors.set("start", _text(self.now))
            # at once: what happens from now on lets people in, whatever becomes of this tick
            self.cursors.save()
            self.start = self.now
        else:
            self.start = _time(self.cursors.get("start"))
        stamp = profile_stamp(self.warehouse)
        self.is_profile_new = self.cursors.get("profile") != stamp or stamp in ("", "0")
        self.cursors.set("profile", stamp)
        asked = self.warehouse.value(
            "select toString(max(loaded_at)) from campaigns.journey_requests where journey = {journey:String}",
            self.journey,
        )
        self.cursors.set("requests", asked or "")
        self.judged_at = _time(self.cursors.get("judged", _UNSEEN))
        self.cursors.set("judged", _text(self.now))
        self._look()
        self.sources = [
            name
            for name, (database, table) in {"marts": ("marts", "events"), "live": ("live", "events")}.items()
            if table_exists(self.warehouse, database, table)
        ]
        self.through: dict[tuple[str, str], datetime] = {}
        for event in sorted(self._event_types()):
            for source in self.sources:
                key = f"{source}:{event}"
                seen = _time(self.cursors.get(key, _UNSEEN))
                self.through[source, event] = seen
                newest = self.warehouse.value(
                    f"select max(loaded_at) from {source}.events where type = {{event:String}}"
                    + (f" and loaded_on >= toDate({sql_time(seen)}, 'UTC')" if source == "marts" else ""),
                    {"event": event},
                )
                if newest is not None and newest > seen:
                    self.cursors.set(key, _text(newest))

    def _event_types(self) -> set[str]:
        entry = {self.spec.entry.event} if self.spec.entry.event else set()
        return entry | {one.event for one in self._listeners()}

    def _listeners(self) -> Iterator[_Listener]:
        """Events that matter to somebody under way; of versions that nobody is in, none."""
        for version in self._versions():
            spec = self.specs[version]
            if spec.goal is not None:
                goal = spec.goal
                yield _Listener(version, GOAL, 1, "", goal.event, goal.message, goal.where, GOAL, goal.within)
            for rule in spec.exits:
                if rule.event is not None:
                    yield _Listener(version, EXIT, 2, "", rule.event, rule.message, rule.where, EXIT)
            for node in spec.nodes.values():
                wait = node.step.wait_for
                if wait is not None and wait.event is not None:
                    yield _Listener(
                        version, "met", 4, node.id, wait.event, wait.message, wait.where, "happened"
                    )

    def _versions(self) -> list[str]:
        return [version for version in self.specs if version in self.earliest or version == self.spec.version]

    # one pass

    def _pass(self, summary: TickSummary, *, is_first: bool) -> int:
        self.tick = self.fence.next_tick()
        if is_first:
            for listener in self._listeners():
                if listener.version in self.earliest and (
                    not listener.step or (listener.version, listener.step) in self.present
                ):
                    self._note_event(listener)
            self._note_requests()
        for version in self.earliest:
            self._note_conditions(version, is_first=is_first)
            self._note_outcomes(version)
            self._note_quiet(version)
        for version in self.earliest:
            self._move(version, 0)
        if is_first:
            self._enter()
        moves, round_ = 0, 0
        while moved := self._moved(round_):
            moves += sum(moved.values())
            passing = {
                version
                for version, step in moved
                if (node := self.specs[version].nodes.get(step)) is not None and not node.is_resting
            }
            round_ += 1
            for version in sorted(passing):
                self._move(version, round_)
        if moves:
            self._count(summary)
            self.fence.commit(self.tick)
            apply_tick(self.warehouse, self.spec.name, self.tick, self.specs, self.now)
            self._look()
        if is_first and summary.refused == 0:
            summary.refused = self._refuse()
        return moves

    def _count(self, summary: TickSummary) -> None:
        rows = self.warehouse.frame(
            f"""
            select if(previous_step = '' and outcome = 'entered', 'entered', toString(ending)) as what, count() as contacts
            from campaigns.journey_moves
            where journey = {{journey:String}} and tick = {self.tick} and (ending != '' or previous_step = '')
            group by what
            """,
            self.journey,
        )
        for what, contacts in rows.iter_rows():
            if what == "entered":
                summary.entered += contacts
            else:
                summary.endings[what] = summary.endings.get(what, 0) + contacts

    def _note(self, kind: str, priority: int, step: str, select: str) -> None:
        """Note signals by a query that gives contact_id, outcome and cause."""
        self.warehouse.execute(
            f"""
            insert into campaigns.journey_signals (tick, journey, contact_id, kind, priority, step, outcome, cause)
            select {self.tick}, {{journey:String}}, contact_id, '{kind}', {priority}, {sql_text(step)}, outcome, cause
            from ({select})
            settings join_use_nulls = 0
            """,
            self.parameters,
        )

    def _there(self, version: str, step: str = "") -> str:
        """People under way in a version, or at one of its steps."""
        at = f"step = {sql_text(step)}" if step else "step != ''"
        return f"""(
            select contact_id as state__contact, sequence as state__sequence, entry as state__entry,
                entered_at as state__entered_at, due_at as state__due_at, started_at as state__started_at
            from campaigns.journey_states final
            where journey = {{journey:String}} and version = {sql_text(version)} and {at}
        )"""

    def _note_event(self, listener: _Listener) -> None:
        since = "state__entered_at" if listener.step else "state__started_at"
        late = ""
        if listener.within is not None:
            late = f"and event__at <= state__started_at + toIntervalSecond({int(listener.within.total_seconds())})"
        predicate = self.specs[listener.version].predicate(listener.where) if listener.where else None
        condition, used = event_sql(predicate)
        events = self._events(listener.event, used, self.earliest[listener.version], listener.message)
        profile = _profile_of(predicate)
        self._note(
            listener.kind,
            listener.priority,
            listener.step,
            f"""
            select state__contact as contact_id, {sql_text(listener.outcome)} as outcome,
                concat({sql_text(listener.event + " ")}, event__id, ' at ', toString(event__at)) as cause
            from {events} as event
            inner join {self._there(listener.version, listener.step)} as state
                on state.state__contact = event.event__contact
            {self._join_profile(profile, "event__contact")}
            where event__at >= {since} {late} and {condition}
            order by event__at limit 1 by contact_id
            """,
        )

    def _events(
        self,
        event: str,
        used: Collection[str],
        earliest: datetime,
        message: str | None = None,
        *,
        pending: Sequence[str] = (),
    ) -> str:
        """New events of a type, with the properties that a condition uses; from marts, and sooner from the stream.

        `pending` are ids of older ones that are to be looked at again.

        Opens and clicks are read from marts alone: only there is known which of them machines made.
        """
        parts: list[str] = []
        for source in self.sources:
            if source == "live" and (event in _MAIL_EVENTS or message is not None):
                continue
            since = self.through[source, event]
            seen = "" if since.year == 1970 else f"and loaded_at > {sql_time(since - LATE_EVENTS[source])}"
            if pending and seen:
                seen = f"and ({seen[4:]} or event_id in {_list_sql(pending)})"
            columns = event_columns(used)
            if source == "marts":
                first = max(since - LATE_EVENTS[source], datetime(1970, 1, 2, tzinfo=UTC))
                if pending:
                    first = max(
                        self.start - self.offset - timedelta(days=1), datetime(1970, 1, 2, tzinfo=UTC)
                    )
                seen += f" and loaded_on >= toDate({sql_time(first)}, 'UTC') and not is_machine"
            if message is not None:
                seen += f"""
                    and message_id in (
                        select message_id from raw.messages
                        where kind = '{KIND}' and name = {sql_text(f"{self.spec.name}.{message}")}
                            and changed_at >= {sql_time(earliest - timedelta(days=1))}
                    )
                """
            parts.append(
                f"""
                select event_id as event__id, assumeNotNull(contact_id) as event__contact, occurred_at as event__at
                    {columns}
                from {source}.events
                where type = {sql_text(event)} and occurred_at >= {sql_time(earliest)} and contact_id is not null
                    and contact_id != 0 {seen}
                """
            )
        if not parts:
            empty = "".join(f", {_EVENT_COLUMNS[name][1]} as {name}" for name in sorted(used))
            parts.append(
                f"select '' as event__id, toInt64(0) as event__contact, now64(3, 'UTC') as event__at {empty} where false"
            )
        return f"({' union all '.join(parts)})"

    def _join_profile(self, columns: Sequence[str], on: str, *, kind: str = "inner") -> str:
        if not columns:
            return ""
        listed = ", ".join(f"`{name}`" for name in columns)
        return f"""
            {kind} join (select contact_id as profile__contact, {listed} from marts.contact_profiles) as profile
                on profile.profile__contact = {on}
        """

    def _note_requests(self) -> None:
        self._note(
            LEFT,
            3,
            "",
            f"""
            select state__contact as contact_id, '{LEFT}' as outcome, request_cause as cause
            from (
                select contact_id as request_contact, argMin(cause, loaded_at) as request_cause,
                    min(requested_at) as request_at
                from campaigns.journey_requests
                where journey = {{journey:String}} and action = 'leave' and {self._recent_requests()}
                group by request_id, contact_id
            ) as request
            inner join (
                select contact_id as state__contact, started_at as state__started_at
                from campaigns.journey_states final where journey = {{journey:String}} and step != ''
            ) as state on state.state__contact = request.request_contact
            where request_at >= state__started_at
            limit 1 by contact_id
            """,
        )

    def _recent_requests(self) -> str:
        return f"loaded_at >= now64(3) - toIntervalDay({REQUEST_DAYS})"

    def _note_conditions(self, version: str, *, is_first: bool) -> None:
        """What people wait for that can be read off the profile, and rules of exit."""
        spec = self.specs[version]
        todo: list[tuple[str, int, str, str, str]] = []
        if is_first:
            todo += [
                (EXIT, 2, "", rule.where, EXIT) for rule in spec.exits if rule.event is None and rule.where
            ]
        todo += [
            ("met", 4, node.id, node.step.wait_for.where, "happened")
            for node in spec.nodes.values()
            if (version, node.id) in self.present
            and node.step.wait_for is not None
            and node.step.wait_for.event is None
            and node.step.wait_for.where
        ]
        for kind, priority, step, text, outcome in todo:
            predicate = spec.predicate(text)
            # a profile that was not built anew says of the same people what it said the last time
            is_old = not (is_first and self.is_profile_new) and not predicate.uses_now
            some = f"where state__entered_at >= {sql_time(self.judged_at)} or state__due_at <= {sql_time(self.now)}"
            self._note(
                kind,
                priority,
                step,
                f"""
                select state__contact as contact_id, {sql_text(outcome)} as outcome, {_values_sql(predicate)} as cause
                from (select * from {self._there(version, step)} {some if is_old else ""}) as state
                {self._join_profile(_profile_of(predicate) or ["contact_id"], "state__contact")}
                where ifNull({predicate.sql}, false)
                """,
            )

    def _occurrence(self, spec: JourneySpec, step: str) -> str:
        """SQL: which time round a send step is for somebody: their entry, and when they came if they may come again."""
        if step in spec.repeated:
            return "concat(toString(state__entry), '.', toString(toUnixTimestamp64Milli(state__entered_at)))"
        return "toString(state__entry)"

    def _note_outcomes(self, version: str) -> None:
        """What became of messages, as the ledger has told the warehouse."""
        spec = self.specs[version]
        for node in spec.nodes.values():
            if node.kind != "send" or (version, node.id) not in self.present:
                continue
            earliest = self.present[version, node.id].entered_at
            given_up = sql_time(self.now - GIVEN_UP_AFTER)
            self._note(
                "sent",
                4,
                node.id,
                f"""
                select state__contact as contact_id, if(message_status = 'skipped', message_reason, message_status) as outcome,
                    concat('message ', message) as cause
                from ({self._message_states(spec, node.id, earliest)}) as message
                inner join {self._there(version, node.id)} as state
                    on state.state__contact = message.message_contact
                where message_occurrence = {self._occurrence(spec, node.id)}
                    and message_status not in ('claimed', 'dispatching')
                    and (
                        message_status != 'failed' or message_reason not in {listed(RETRYABLE)}
                        or state__entered_at < {given_up}
                    )
                """,
            )
            self._note(
                "later",
                5,
                node.id,
                f"""
                select state__contact as contact_id, message_reason as outcome, concat('message ', message) as cause
                from ({self._message_states(spec, node.id, earliest)}) as message
                inner join {self._there(version, node.id)} as state
                    on state.state__contact = message.message_contact
                where message_occurrence = {self._occurrence(spec, node.id)} and message_status = 'failed'
                    and message_changed_at >= state__due_at and state__due_at <= {sql_time(self.now)}
                """,
            )

    def _message_states(self, spec: JourneySpec, step: str, earliest: datetime) -> str:
        """The newest state of every message of a step since somebody came to it."""
        loaded = earliest - self.offset - timedelta(minutes=5)
        return f"""
            select message_id as message, any(contact_id) as message_contact, any(occurrence) as message_occurrence,
                argMax(toString(status), sequence) as message_status, argMax(toString(reason), sequence) as message_reason,
                max(changed_at) as message_changed_at
            from raw.messages
            where kind = '{KIND}' and name = {sql_text(message_name(spec, step))}
                and changed_at >= {sql_time(earliest - timedelta(minutes=5))} and loaded_at >= {sql_time(loaded)}
            group by message_id
        """

    def _note_quiet(self, version: str) -> None:
        """People who are due for a message though it is quiet where they live: a send took long, or clocks changed."""
        spec = self.specs[version]
        hours = spec.quiet_hours
        if hours is None:
            return
        for node in spec.nodes.values():
            present = self.present.get((version, node.id))
            if node.kind == "send" and present is not None and present.due_at <= self.now:
                quiet = ", ".join(sql_text(zone) for zone in self.zones() if hours.is_quiet(self.now, zone))
                here = "true" if hours.is_quiet(self.now, spec.timezone) else "false"
                self._note(
                    "quiet",
                    5,
                    node.id,
                    f"""
                    select state__contact as contact_id, 'quiet hours' as outcome, profile__zone as cause
                    from {self._there(version, node.id)} as state
                    inner join {self._profile_zones()} as profile on profile.profile__contact = state__contact
                    where state__due_at <= {sql_time(self.now)}
                        and if(has({self._known_zones()}, profile__zone),
                            has(cast([{quiet}], 'Array(String)'), profile__zone), {here})
                    """,
                )

    def _profile_zones(self) -> str:
        return f"""(
            select contact_id as profile__contact, {self.zone_column()} as profile__zone from marts.contact_profiles
        )"""

    def zones(self) -> list[str]:
        """Time zones that profiles have, as far as they are any."""
        if self._zones is None:
            found: list[str] = []
            if "timezone" in self.columns:
                found = self.warehouse.frame(
                    "select distinct ifNull(timezone, '') as zone from marts.contact_profiles order by zone"
                )["zone"].to_list()
            known = available_timezones()
            self._zones = [
                zone for zone in found if zone in known and re.fullmatch(r"[A-Za-z0-9_+/-]+", zone)
            ]
        return self._zones

    def _known_zones(self) -> str:
        return f"cast([{', '.join(map(sql_text, self.zones()))}], 'Array(String)')"

    # moving

    def _move(self, version: str, round_: int) -> None:
        """Move everybody of a version who is to, one step on."""
        spec = self.specs[version]
        moves = _Moves(self, spec)
        if round_ == 0:
            moving = f"""
                select contact_id as state__contact, sequence as state__sequence, entry as state__entry,
                    step as state__step, entered_at as state__entered_at, due_at as state__due_at,
                    started_at as state__started_at, source_at as state__source_at, signal__kind, signal__outcome, signal__cause
                from (
                    select * from campaigns.journey_states final
                    where journey = {{journey:String}} and version = {sql_text(version)} and step != ''
                ) as state
                left any join (
                    select contact_id as signal__contact, argMin(toString(kind), priority) as signal__kind,
                        argMin(toString(outcome), priority) as signal__outcome, argMin(cause, priority) as signal__cause
                    from campaigns.journey_signals
                    where journey = {{journey:String}} and tick = {self.tick}
                    group by contact_id
                ) as signal on signal.signal__contact = state.contact_id
                where signal__kind != '' or (due_at <= {sql_time(self.now)} and step in {moves.waiting})
                    or due_at < {sql_time(self.now - GIVEN_UP_AFTER)}
            """
        else:
            moving = f"""
                select contact_id as state__contact, sequence as state__sequence, entry as state__entry,
                    step as state__step, entered_at as state__entered_at, due_at as state__due_at,
                    started_at as state__started_at, source_at as state__source_at, '' as signal__kind, '' as signal__outcome, '' as signal__cause
                from campaigns.journey_moves
                where journey = {{journey:String}} and tick = {self.tick} and version = {sql_text(version)}
                    and round = {round_ - 1} and step in {moves.passing}
            """
        write_moves(self.warehouse, moves.sql(moving, round_), self.parameters)

    def _moved(self, round_: int) -> dict[tuple[str, str], int]:
        """What a round has moved: from version and step to people."""
        rows = self.warehouse.frame(
            f"""
            select toString(version) as version, toString(step) as step, count() as contacts
            from campaigns.journey_moves
            where journey = {{journey:String}} and tick = {self.tick} and round = {round_}
            group by version, step
            """,
            self.journey,
        )
        return {(version, step): contacts for version, step, contacts in rows.iter_rows()}

    # coming in

    def _enter(self) -> None:
        """Let those in who want in."""
        spec, entry = self.spec, self.spec.entry
        candidates = self._candidates()
        predicate = spec.predicate(entry.where) if entry.where and not entry.event else None
        used = _profile_of(predicate)
        moves = _Moves(self, spec)
        deleted = "and not is_deleted" if "is_deleted" in self.columns else ""
        listed = "".join(f", `{name}`" for name in used)
        write_moves(
            self.warehouse,
            f"""
            select {self.tick}, {{journey:String}}, candidate__contact, state__sequence + 1, state__entry + 1,
                {sql_text(spec.version)}, 0, '', 'entered', candidate__cause, {sql_text(spec.first)}, '',
                {sql_time(self.now)}, {moves.due(sql_text(spec.first))}, {sql_time(self.now)}, candidate__at
            from ({self._qualified(candidates)}) as candidate
            inner join (
                select contact_id as profile__contact, {self.zone_column()} as profile__zone {listed}
                from marts.contact_profiles where true {deleted} and not {restricted_sql("contact_id", "email")}
            ) as profile on profile.profile__contact = candidate__contact
            where {f"ifNull({predicate.sql}, false)" if predicate else "true"}
            settings join_use_nulls = 0
            """,
            self.parameters,
        )

    def zone_column(self) -> str:
        """SQL: the time zone of a profile, empty where none is known."""
        return "ifNull(timezone, '')" if "timezone" in self.columns else "''"

    def _policy(self) -> str:
        """SQL: whether somebody may come in now because of what happened at `candidate__at`."""
        after = self.spec.reentry_after
        if after is None:
            return "state__entry = 0"
        again = f"""
            state__step = '' and candidate__at > state__source_at and candidate__at > state__left_at
            and candidate__at >= state__left_at + toIntervalSecond({int(after.total_seconds())})
        """
        return f"(state__entry = 0 or ({again}))"

    def _qualified(self, candidates: str) -> str:
        """Of candidates those who may come in, each once, because of what happened first."""
        return f"""
            select candidate__contact, first.1 as candidate__at, first.2 as candidate__cause, state__sequence, state__entry
            from (
                select candidate__contact, argMin((candidate__at, candidate__cause), candidate__at) as first,
                    any(known__sequence) as state__sequence, any(known__entry) as state__entry
                from (
                    select candidate.*, state.state__sequence as known__sequence, state.state__entry as known__entry
                    from ({candidates}) as candidate
                    left any join {self._left()} as state on state.state__contact = candidate.candidate__contact
                    where {self._policy()}
                )
                group by candidate__contact
            )
        """

    def _left(self) -> str:
        return """(
            select contact_id as state__contact, sequence as state__sequence, entry as state__entry, step as state__step,
                source_at as state__source_at, entered_at as state__left_at
            from campaigns.journey_states final where journey = {journey:String}
        )"""

    def _candidates(self) -> str:
        """SQL: what lets people in, as candidate__contact, candidate__at, candidate__cause."""
        entry = self.spec.entry
        parts: list[str] = self._requested()
        if entry.schedule is not None:
            parts += self._scheduled()
        elif entry.segment is not None:
            parts.append(self._came_into(entry.segment))
        if entry.event is not None:
            self._ask_later()
            events, condition = self._entry_events(is_known=True)
            profile = _profile_of(self.spec.predicate(entry.where)) if entry.where else []
            parts.append(
                f"""
                select event__contact as candidate__contact, event__at as candidate__at,
                    concat({sql_text(entry.event + " ")}, event__id) as candidate__cause
                from {events} as event {self._join_profile(profile, "event__contact")}
                where {condition}
                """
            )
        if not parts:
            return """
                select toInt64(0) as candidate__contact, now64(3, 'UTC') as candidate__at, '' as candidate__cause
                where false
            """
        return " union all ".join(parts)

    def _entry_events(self, *, is_known: bool) -> tuple[str, str]:
        """Events that let people in and the condition on them, SQL; of people known now, those kept before too."""
        entry = self.spec.entry
        assert entry.event is not None
        condition, used = event_sql(self.spec.predicate(entry.where) if entry.where else None)
        pending: list[str] = []
        if is_known:
            prefix = self._kept_prefix()
            kept = self.warehouse.frame(
                f"""
                select distinct substring(request_id, {len(prefix) + 1}) as event_id from campaigns.journey_requests
                where journey = {{journey:String}} and startsWith(request_id, {sql_text(prefix)})
                    and {self._open_requests()} and contact_id in (select contact_id from marts.contact_profiles)
                order by event_id limit {MOST_KEPT}
                """,
                self.journey,
            )
            pending = kept["event_id"].to_list()
        return self._events(entry.event, used, self.start, pending=pending), condition

    def _kept_prefix(self) -> str:
        return f"event:{self.spec.name}:"

    def _ask_later(self) -> None:
        """Keep events of people whom the models do not know yet: they come in once they are known."""
        events, _ = self._entry_events(is_known=False)
        kept = f"concat({sql_text(self._kept_prefix())}, event__id)"
        self.warehouse.execute(
            f"""
            insert into campaigns.journey_requests (request_id, journey, contact_id, action, cause, requested_at)
            select {kept}, {{journey:String}}, event__contact, 'enter',
                concat({sql_text(str(self.spec.entry.event) + " ")}, event__id), event__at
            from {events} as event
            where event__contact not in (select contact_id from marts.contact_profiles)
                and {kept} not in (
                    select request_id from campaigns.journey_requests where journey = {{journey:String}}
                )
            limit 1 by event__id
            """,
            self.parameters,
        )

    def _open_requests(self) -> str:
        return f"""{self._recent_requests()} and request_id not in (
            select request_id from campaigns.journey_refusals where journey = {{journey:String}}
        )"""

    def _requested(self) -> list[str]:
        if not self.spec.entry.requests:
            return []
        return [
            f"""
            select argMin(contact_id, loaded_at) as candidate__contact,
                argMin(requested_at, loaded_at) as candidate__at, argMin(cause, loaded_at) as candidate__cause
            from campaigns.journey_requests
            where journey = {{journey:String}} and action = 'enter' and {self._open_requests()}
                and not startsWith(request_id, {sql_text(self._kept_prefix())})
            group by request_id
            """
        ]

    def _came_into(self, segment: str) -> str:
        since = self.cursors.get("segment") or (_UNSEEN if self.spec.entry.existing else _text(self.start))
        newest = self.warehouse.value(
            "select max(changed_at) from marts.segment_changes where segment = {segment:String}",
            {"segment": segment},
        )
        if newest is not None:
            self.cursors.set("segment", max(_text(newest), since))
        return f"""
            select contact_id as candidate__contact, changed_at as candidate__at,
                {sql_text(f"entered {segment}")} as candidate__cause
            from marts.segment_changes
            where segment = {sql_text(segment)} and change = 'entered' and changed_at > {sql_time(_time(since))}
                and contact_id in (select contact_id from segments.`{segment}`)
        """

    def _scheduled(self) -> list[str]:
        entry = self.spec.entry
        assert entry.schedule is not None and entry.segment is not None
        instant = entry.schedule.latest(self.now)
        if instant is None or instant < self.start or self.now - instant > SCHEDULE_CATCH_UP:
            return []
        if _time(self.cursors.get("schedule", _UNSEEN)) >= instant:
            return []
        self.cursors.set("schedule", _text(instant))
        return [
            f"""
            select contact_id as candidate__contact, {sql_time(instant)} as candidate__at,
                {sql_text(f"in {entry.segment} at {_text(instant)[:16]}")} as candidate__cause
            from segments.`{entry.segment}`
            """
        ]

    def _refuse(self) -> int:
        """Note requests that were not followed though the contact is known, and why."""
        spec = self.spec
        deleted = "and not is_deleted" if "is_deleted" in self.columns else ""
        after = spec.reentry_after
        closed = "false"
        if not spec.entry.requests:
            closed = f"not startsWith(request, {sql_text(self._kept_prefix())})"
        too_soon = "state__entry > 0"
        if after is not None:
            soonest = f"state__left_at + toIntervalSecond({int(after.total_seconds())})"
            too_soon = f"state__entry > 0 and request_at < {soonest}"
        self.warehouse.execute(
            f"""
            insert into campaigns.journey_refusals (request_id, journey, contact_id, reason, refused_at)
            select request, {{journey:String}}, request_contact,
                multiIf({closed}, 'not open to requests', state__step != '', 'in the journey', {too_soon}, 'reentry',
                    'condition'),
                {sql_time(self.now)}
            from (
                select request_id as request, argMin(contact_id, loaded_at) as request_contact,
                    argMin(requested_at, loaded_at) as request_at
                from campaigns.journey_requests
                where journey = {{journey:String}} and action = 'enter' and {self._open_requests()}
                group by request_id
            ) as asked
            left any join {self._left()} as state on state.state__contact = asked.request_contact
            where (state__entry = 0 or request_at > state__source_at)
                and request_contact in (select contact_id from marts.contact_profiles where true {deleted})
            settings join_use_nulls = 0
            """,
            self.parameters,
        )
        return int(
            self.warehouse.value(
                f"""
                select count() from campaigns.journey_refusals
                where journey = {{journey:String}} and refused_at = {sql_time(self.now)}
                """,
                self.journey,
            )
        )

    # sending

    def _depart(self) -> int:
        """Hand everybody who stands at a send step and is due to `deliver`."""
        if self.deliver is None:
            return 0
        departures: list[Departure] = []
        for version in self._versions():
            spec = self.specs[version]
            for node in spec.nodes.values():
                if node.kind == "send":
                    departures += self._departures(version, spec, node)
        delivered = 0
        last = {(one.node.id, one.occurrence): number for number, one in enumerate(departures)}
        for number, one in enumerate(departures):
            is_last = last[one.node.id, one.occurrence] == number
            delivered += self.deliver(Departure(one.spec, one.node, one.occurrence, one.contacts, is_last))
        return delivered

    def _departures(self, version: str, spec: JourneySpec, node: Node) -> list[Departure]:
        there = self._there(version, node.id)
        present = self.present.get((version, node.id))
        if present is None or present.due_at > self.now:
            return []
        rows = self.warehouse.frame(
            f"""
            select state__contact as contact_id, {self._occurrence(spec, node.id)} as occurrence
            from {there} as state
            left any join ({self._message_states(spec, node.id, present.entered_at)}) as message
                on message.message_contact = state.state__contact
                    and message.message_occurrence = {self._occurrence(spec, node.id)}
            where state__due_at <= {sql_time(self.now)}
                and state__contact in (select contact_id from marts.contact_profiles)
                and message_status in ('', 'failed', 'claimed', 'dispatching')
            order by contact_id
            settings join_use_nulls = 0
            """,
            self.parameters,
        )
        return [
            Departure(spec, node, str(key[0]), group.select("contact_id"))
            for key, group in rows.group_by("occurrence", maintain_order=True)
        ]


class _Moves:
    """The query that moves people of one version: every edge of its graph has a number."""

    def __init__(self, tick: JourneyTick, spec: JourneySpec) -> None:
        self.tick, self.spec = tick, spec
        names = [(node.id, node.is_resting, node.kind) for node in spec.nodes.values()]
        self.waiting = _list_sql([name for name, _, kind in names if kind in ("wait", "wait_for")])
        self.passing = _list_sql([name for name, is_resting, _ in names if not is_resting])
        self.labels: dict[int, tuple[str, str, str]] = {}
        self.flags: dict[str, str] = {}
        self.cases: list[str] = []
        self.causes: list[str] = []
        self.stays: list[int] = []
        for node in spec.nodes.values():
            self._add(node)

    def _edge(self, label: str, target: str, ending: str = "") -> int:
        number = len(self.labels) + 1
        self.labels[number] = (label, target, ending or (FINISHED if target == END else ""))
        return number

    def _add(self, node: Node) -> None:
        here = f"state__step = {sql_text(node.id)}"
        numbers = [
            self._edge(edge.label, edge.target, EXIT if node.kind == "exit" else "") for edge in node.edges
        ]
        match node.kind:
            case "wait_for":
                self.cases.append(f"{here}, if(signal__kind = 'met', {numbers[0]}, {numbers[1]})")
            case "send":
                # at the same step, to wait for the end of quiet hours or for another try
                stay = self._edge("stays", node.id)
                self.stays.append(stay)
                self.cases.append(
                    f"{here}, multiIf(signal__kind in ('quiet', 'later'), {stay}, signal__kind = 'sent', {numbers[0]}, 0)"
                )
            case "branch":
                ways: list[str] = []
                values: list[str] = []
                for edge, number in zip(node.edges, numbers, strict=True):
                    if edge.when:
                        predicate = self.spec.predicate(edge.when)
                        flag = f"flag__{len(self.flags)}"
                        self.flags[flag] = f"toUInt8(ifNull({predicate.sql}, false) != 0)"
                        ways.append(f"{flag} = 1, {number}")
                        values += [name for name in _profile_of(predicate) if name not in values]
                self.cases.append(f"{here}, multiIf({', '.join(ways)}, {numbers[-1]})")
                self.flags[cause := f"cause__{len(self.causes)}"] = _columns_sql(values)
                self.causes.append(f"{here}, {cause}")
            case "split":
                assert node.step.split is not None
                allocation = self.spec.allocation(node.id)
                names = [variant.name for variant in node.step.split]
                decision = self.tick.decided.get(self.spec.experiment(node.id))
                if decision is not None and decision.winner in names:
                    # who went one way before goes on there; a decision is no exposure, so no cause that begins with hash
                    self.cases.append(f"{here}, {numbers[names.index(decision.winner)]}")
                    cause = f"decided {decision.decided_at:%Y-%m-%d %H:%M UTC}: {decision.headline}"
                    self.causes.append(f"{here}, {sql_text(cause)}")
                    return
                variant, control = allocation.sql("state__contact"), names.index(self.spec.control(node.id))
                self.cases.append(f"{here}, transform({variant}, {names}, {numbers}, {numbers[control]})")
                cause = f"concat('hash ', toString({allocation.bucket_sql('state__contact')}))"
                if allocation.layer is not None:
                    cause = f"if({variant} = '{OUTSIDE}', 'outside its layer', {cause})"
                self.causes.append(f"{here}, {cause}")
            case "exit":
                self.cases.append(f"{here}, {numbers[0]}")
                self.causes.append(f"{here}, {sql_text(node.step.exit or '')}")
            case "crm_task" | "tag":
                # the step is passed and nothing is done (`apply_tick`): whose data may not be processed is no task
                (edge,) = node.edges
                skipped = self._edge(RESTRICTED, edge.target)
                self.flags["profile__restricted"] = f"toUInt8({restricted_sql('contact_id', 'email')})"
                self.cases.append(f"{here}, if(profile__restricted = 1, {skipped}, {numbers[0]})")
                said = sql_text("skipped: processing of the contact's data is restricted")
                self.causes.append(f"{here} and profile__restricted = 1, {said}")
            case _:
                self.cases.append(f"{here}, {numbers[0]}")

    def sql(self, moving: str, round_: int) -> str:
        """The query for `write_moves`."""
        tick = self.tick
        goal, exit_, left = (self._edge(name, END, name) for name in (GOAL, EXIT, LEFT))
        deleted, gone = self._edge(DELETED, END, DELETED), self._edge(GONE, END, GONE)
        is_deleted = "toUInt8(is_deleted)" if "is_deleted" in tick.columns else "toUInt8(0)"
        entered = due = ""
        if self.stays:
            tomorrow = tick.now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
            entered = f"edge__ in {tuple(self.stays)}, state__entered_at, "
            due = f"""edge__ in {tuple(self.stays)} and signal__kind = 'later',
                if(signal__outcome = 'warm_up', {sql_time(tomorrow)}, {sql_time(tick.now + RETRY_AFTER)}), """
        entered = f"multiIf({entered}{sql_time(tick.now)})" if entered else sql_time(tick.now)
        due = f"multiIf({due}{self.due('target__')})" if due else self.due("target__")
        flags = "".join(f", {expression} as {name}" for name, expression in self.flags.items())
        numbers = list(self.labels)
        label, target, ending = (
            f"transform(edge__, {numbers}, {_array_sql([self.labels[number][at] for number in numbers])}, '')"
            for at in range(3)
        )
        return f"""
            select {tick.tick}, {{journey:String}}, state__contact, state__sequence + 1, state__entry,
                {sql_text(self.spec.version)}, {round_}, state__step,
                if(signal__kind in ('sent', 'quiet', 'later') and edge__ < {goal}, signal__outcome, {label}) as outcome__,
                cause__, {target} as target__, {ending}, {entered}, {due}, state__started_at, state__source_at
            from (
                select *,
                    toUInt16(multiIf(
                        signal__kind = '{GOAL}', {goal},
                        signal__kind = '{EXIT}', {exit_},
                        signal__kind = '{LEFT}', {left},
                        profile__deleted = 1, {deleted},
                        profile__contact = 0 and signal__kind != 'sent',
                            if(state__due_at < {sql_time(tick.now - GIVEN_UP_AFTER)}, {gone}, 0),
                        {", ".join(self.cases)},
                        0
                    )) as edge__,
                    {f"multiIf({', '.join(self.causes)}, signal__cause)" if self.causes else "signal__cause"} as cause__
                from ({moving}) as state
                left any join (
                    select contact_id as profile__contact, {is_deleted} as profile__deleted,
                        {tick.zone_column()} as profile__zone {flags}
                    from marts.contact_profiles
                    where contact_id in (select state__contact from ({moving}))
                ) as profile on profile.profile__contact = state__contact
            )
            where edge__ != 0
            settings join_use_nulls = 0
        """

    def due(self, target: str) -> str:
        """SQL: when somebody who comes to `target` now, with the time zone `profile__zone`, is due there."""
        spec, now = self.spec, self.tick.now
        cases: list[str] = []
        for node in spec.nodes.values():
            step, chosen = node.step, ""
            if step.wait is not None or step.until is not None:
                base = now + (step.wait or timedelta(0))
                chosen = sql_time(base)
                if (until := step.until) is not None:
                    chosen = self._by_zone(
                        lambda zone, until=until, base=base: until.following(base, ZoneInfo(zone))
                    )
            elif step.wait_for is not None:
                chosen = sql_time(now + step.wait_for.within)
            elif step.send is not None and (hours := spec.quiet_hours) is not None:
                chosen = self._by_zone(lambda zone, hours=hours: hours.end(now, zone))
            if chosen:
                cases.append(f"{target} = {sql_text(node.id)}, {chosen}")
        return f"multiIf({', '.join(cases)}, {sql_time(now)})" if cases else sql_time(now)

    def _by_zone(self, instant: Callable[[str], datetime]) -> str:
        here = sql_time(instant(self.spec.timezone))
        zones = self.tick.zones()
        if not zones:
            return here
        instants = ", ".join(sql_time(instant(zone)) for zone in zones)
        return f"transform(profile__zone, {_array_sql(zones)}, [{instants}], {here})"


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _list_sql(names: Sequence[str]) -> str:
    # no step is called '-'; the empty name is that of having left
    return f"({', '.join(sql_text(name) for name in names)})" if names else "('-')"


def _array_sql(names: Sequence[str]) -> str:
    return f"[{', '.join(sql_text(name) for name in names)}]"


def _profile_of(predicate: Predicate | None) -> list[str]:
    """Columns of the profile that a condition reads."""
    return sorted(name for name in predicate.columns if "." not in name) if predicate else []


def _values_sql(predicate: Predicate) -> str:
    return _columns_sql(_profile_of(predicate))


def _columns_sql(names: Sequence[str]) -> str:
    """SQL: a text with the values of columns, as they were when a condition was judged."""
    if not names:
        return "''"
    parts = [
        f"concat({sql_text(('' if number == 0 else ', ') + name)}, ' = ', ifNull(toString(`{name}`), 'null'))"
        for number, name in enumerate(names)
    ]
    return parts[0] if len(parts) == 1 else f"concat({', '.join(parts)})"


def event_columns(used: Collection[str]) -> str:
    """SQL: the columns of an event that a condition reads, each behind a comma."""
    return "".join(f", {_EVENT_COLUMNS[name][0]} as {name}" for name in sorted(used))


def event_sql(predicate: Predicate | None) -> tuple[str, frozenset[str]]:
    """A condition over an event as SQL, false where it is not known, and the columns that it reads of the event."""
    if predicate is None:
        return "true", frozenset()
    used = frozenset(name for name in _EVENT_COLUMNS if f"`{name}`" in predicate.sql)
    return f"ifNull(({predicate.sql}), false)", used


def profile_stamp(warehouse: Warehouse) -> str:
    """Changes whenever `marts.contact_profiles` is built anew; empty where the warehouse cannot tell."""
    stamp = warehouse.value(
        """
        select toString(groupBitXor(cityHash64(name, hash_of_all_files))) from system.parts
        where database = 'marts' and table = 'contact_profiles' and active
        """
    )
    return str(stamp or "")


def migrate_people(
    warehouse: Warehouse, spec: JourneySpec, specs: Mapping[str, JourneySpec], fence: Fence, now: datetime
) -> tuple[int, dict[str, int]]:
    """Move people under way in other versions to this one, each to the step of the same id and kind.

    Whoever stands at a send step finishes it first: the message may be on its way.

    Returns:
        How many were moved, and how many stay behind at which steps.
    """
    tick = fence.next_tick()
    for version, old in specs.items():
        same = [
            node.id
            for node in old.nodes.values()
            if node.kind in ("wait", "wait_for") and node.id in spec.nodes
            and spec.nodes[node.id].kind == node.kind
        ]  # fmt: skip
        if version != spec.version and same:
            write_moves(
                warehouse,
                f"""
                select {tick}, journey, contact_id, sequence + 1, entry, {sql_text(spec.version)}, 0, step, 'migrated',
                    {sql_text(f"from version {version}")}, step, '', entered_at, due_at, started_at, source_at
                from campaigns.journey_states final
                where journey = {{journey:String}} and version = {sql_text(version)} and step in {_list_sql(same)}
                """,
                {"journey": spec.name},
            )
    moved = count_moves(warehouse, spec.name, tick)
    if moved:
        fence.commit(tick)
        # nobody has passed a step, so no list or task follows
        apply_tick(warehouse, spec.name, tick, {}, now)
    left = warehouse.frame(
        """
        select toString(step) as step, count() as contacts from campaigns.journey_states final
        where journey = {journey:String} and version != {version:String} and step != '' group by step order by step
        """,
        {"journey": spec.name, "version": spec.version},
    )
    return moved, dict(left.iter_rows())


def check_conditions(warehouse: Warehouse, spec: JourneySpec) -> None:
    """Let the warehouse judge the conditions over profiles once, to see that types fit.

    Raises:
        InputError: names file and line of a condition that does not fit the columns.
    """
    now = {"now": _text(datetime.now(UTC))}
    for condition in spec.conditions():
        predicate = spec.predicate(condition.text)
        if any("." in name for name in predicate.columns):
            continue
        check_types(
            predicate, warehouse, "marts.contact_profiles", now,
            place=spec.place(*condition.location), key=str(condition.location[-1]),
        )  # fmt: skip
