# ruff: noqa: S608  (queries are put together from names of checked files and literals escaped here)
"""Where people are in journeys: an append-only log of moves, and the newest move of each as a row.

A tick writes its moves to `campaigns.journey_moves` under a number of its own, then *commits* that number where only
the holder of the journey's lease can (`Fence`), then *applies* it: the moves become rows of `campaigns.journey_states`
and last of all the number a row of `campaigns.journey_ticks`. So

- moves of a tick that died before it committed count for nobody, and everything is decided anew;
- a tick that died after it committed is applied by the next one, before anything else; applying twice changes nothing;
- a process that was believed dead and goes on cannot commit any more.

What goes out (messages) is sent only to people who stand at a send step by a move that was committed, and under an id
that follows from journey, step, entry and contact, so it goes once (`senders.ledger`).

`campaigns.journey_steps` is the log without the moves that do not count: what marts and `mailhouse why` read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import polars as pl

from campaigns.experiments import record_experiments
from campaigns.journey_requests import define_requests
from campaigns.journeys import KIND, JourneySpec, read_definition
from campaigns.specs import CrmTask
from warehouse.client import Warehouse

GOAL, EXIT, LEFT, DELETED, GONE, FINISHED = "goal", "exit", "left", "deleted", "gone", "finished"
ENDINGS = (FINISHED, GOAL, EXIT, LEFT, DELETED, GONE)
"""How a stay ends: past the last step, by the goal, by an exit step or rule, by a request, or with the contact."""

RESTRICTED = "restricted"
"""How a step is passed that does nothing for the contact, since their data may not be processed."""

_TABLES = (
    "create database if not exists campaigns",
    """
    create table if not exists campaigns.journey_moves (
        tick UInt64,
        journey LowCardinality(String),
        contact_id Int64,
        sequence UInt64,
        entry UInt32,
        version LowCardinality(String),
        round UInt16,
        previous_step LowCardinality(String),
        outcome LowCardinality(String),
        cause String codec(ZSTD(1)),
        step LowCardinality(String),
        ending LowCardinality(String),
        entered_at DateTime64(3, 'UTC'),
        due_at DateTime64(3, 'UTC'),
        started_at DateTime64(3, 'UTC'),
        source_at DateTime64(3, 'UTC'),
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree partition by toYYYYMM(entered_at) order by (journey, tick, contact_id, sequence)
    comment 'One move of one contact to one step: journey, contact_id, sequence. Counts if journey_ticks has its tick.'
    """,
    """
    create table if not exists campaigns.journey_ticks (
        journey LowCardinality(String),
        tick UInt64,
        moves UInt64,
        ticked_at DateTime64(3, 'UTC'),
        applied_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by (journey, tick)
    comment 'One tick whose moves count: journey, tick.'
    """,
    """
    create table if not exists campaigns.journey_states (
        journey LowCardinality(String),
        contact_id Int64,
        sequence UInt64,
        entry UInt32,
        version LowCardinality(String),
        step LowCardinality(String),
        ending LowCardinality(String),
        entered_at DateTime64(3, 'UTC'),
        due_at DateTime64(3, 'UTC'),
        started_at DateTime64(3, 'UTC'),
        source_at DateTime64(3, 'UTC')
    ) engine = ReplacingMergeTree(sequence) order by (journey, contact_id)
    comment 'Where one contact is in one journey, or how they left it: journey, contact_id (FINAL). Follows the moves.'
    """,
    """
    create table if not exists campaigns.journey_signals (
        tick UInt64,
        journey LowCardinality(String),
        contact_id Int64,
        kind LowCardinality(String),
        priority UInt8,
        step LowCardinality(String),
        outcome LowCardinality(String),
        cause String,
        noted_at DateTime default now()
    ) engine = MergeTree order by (journey, tick, contact_id) ttl noted_at + toIntervalDay(7)
    comment 'What a tick has seen of contacts in a journey that makes them move; scratch, kept for a week.'
    """,
    """
    create table if not exists campaigns.journey_cursors (
        journey LowCardinality(String),
        source String,
        value String,
        noted_at DateTime64(3, 'UTC') default now64(3)
    ) engine = ReplacingMergeTree(noted_at) order by (journey, source)
    comment 'How far a journey has read each of its sources: journey, source (FINAL).'
    """,
    """
    create table if not exists campaigns.journey_refusals (
        request_id String,
        journey LowCardinality(String),
        contact_id Int64,
        reason LowCardinality(String),
        refused_at DateTime64(3, 'UTC')
    ) engine = MergeTree order by (journey, refused_at, request_id)
    comment 'One request that was not followed, and why: request_id.'
    """,
)
_VIEWS = (
    # made anew rather than kept, so that a newer Mailhouse brings its own
    """
    create or replace view campaigns.journey_steps as
    select
        concat(journey, '/', toString(contact_id), '/', toString(entry)) as entry_id,
        journey, contact_id, entry, sequence, version, previous_step, outcome, cause, step, ending, entered_at, due_at,
        started_at, source_at, loaded_at, tick
    from campaigns.journey_moves
    where (journey, tick) in (select journey, tick from campaigns.journey_ticks)
    """,
)
_NAMES = (
    "journey_moves", "journey_ticks", "journey_states", "journey_signals", "journey_cursors", "journey_refusals",
    "journey_steps", "journey_requests",
)  # fmt: skip


class Fence(Protocol):
    """What lets one process at a time move people of a journey (`senders.leases.Lease`)."""

    def next_tick(self) -> int:
        """A number that no other tick of the journey has or had, greater than all before."""
        ...

    def committed(self) -> int:
        """The tick that was committed last; 0 if none was."""
        ...

    def commit(self, tick: int) -> None:
        """Commit a tick.

        Raises:
            MailhouseError: the lease has gone to another process; the tick counts for nothing.
        """
        ...


def define_tables(warehouse: Warehouse) -> None:
    """Make the tables of journeys that are not there."""
    if has_tables(warehouse):
        return
    for statement in _TABLES:
        warehouse.define(statement)
    define_requests(warehouse)
    for statement in _VIEWS:
        # no DDL of a table, so not of `define`: a view is made on every node that asks
        warehouse.execute(statement)


def has_tables(warehouse: Warehouse) -> bool:
    """Whether journeys have run in this warehouse."""
    found = warehouse.value(
        "select count() from system.tables where database = 'campaigns' and name in {names:Array(String)}",
        {"names": list(_NAMES)},
    )
    return int(found) == len(_NAMES)


def sql_text(value: str) -> str:
    """A text literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def sql_time(moment: datetime) -> str:
    """A time literal, UTC, milliseconds."""
    text = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return f"toDateTime64('{text}', 3, 'UTC')"


class Cursors:
    """How far a journey has read its sources; what is `set` is written by `save`."""

    def __init__(self, warehouse: Warehouse, journey: str) -> None:
        self.warehouse, self.journey = warehouse, journey
        rows = warehouse.frame(
            "select source, value from campaigns.journey_cursors final where journey = {journey:String}",
            {"journey": journey},
        )
        self.values: dict[str, str] = dict(rows.iter_rows())
        self._new: dict[str, str] = {}

    def get(self, source: str, default: str = "") -> str:
        """Where a source was read to."""
        return self.values.get(source, default)

    def set(self, source: str, value: str) -> None:
        """Note where a source has been read to."""
        if self.values.get(source) != value:
            self._new[source] = value

    def save(self) -> None:
        """Write what was noted; only after the moves that follow from it were committed."""
        if self._new:
            frame = pl.DataFrame(
                {
                    "journey": [self.journey] * len(self._new),
                    "source": list(self._new),
                    "value": list(self._new.values()),
                }
            )
            self.warehouse.insert("campaigns.journey_cursors", frame)
            self.values |= self._new
            self._new = {}


# Versions


def record_journey(warehouse: Warehouse, spec: JourneySpec) -> bool:
    """Keep this version of a journey in `raw.campaigns` unless it is the newest there; whether it was new.

    Beside the journey each of its send steps is a row, named as its messages are, so that marts know channel,
    category and goal of them.
    """
    newest = warehouse.value(
        """
        select argMax(version, loaded_at) from raw.campaigns
        where kind = {kind:String} and name = {name:String} having count() > 0
        """,
        {"kind": KIND, "name": spec.name},
    )
    if newest == spec.version:
        return False
    common = {
        "kind": KIND, "version": spec.version, "description": spec.description, "segment": spec.entry.segment or "",
        "goal_event": spec.goal.event if spec.goal else "", "goal_where": "",
        "goal_within_seconds": int(spec.goal.within.total_seconds()) if spec.goal and spec.goal.within else 0,
        "spec": "{}",
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for node in spec.nodes.values():
        if (send := node.step.send) is not None:
            experiment = spec.experiment(node.variant[0]) if node.variant else ""
            rows.append({
                **common, "name": message_name(spec, node.id), "channel": send.channel, "category": send.category,
                "experiment": experiment,
            })  # fmt: skip
    sends = [node.step.send for node in spec.nodes.values() if node.step.send]
    category = "marketing" if any(send.category == "marketing" for send in sends) else "transactional"
    # the JSON type keeps no order, no nulls and no empty lists: the definition is kept as text within it
    row = {
        **common, "name": spec.name, "channel": sends[0].channel if sends else "", "experiment": "",
        "category": category if sends else "", "spec": json.dumps({"definition": spec.definition}, ensure_ascii=False),
    }  # fmt: skip
    warehouse.insert("raw.campaigns", pl.DataFrame([*rows, row]))
    record_experiments(warehouse, [(one, spec.version) for one in spec.experiments()])
    return True


def message_name(spec: JourneySpec, step: str) -> str:
    """What messages of a send step are called: `journey.step`."""
    return f"{spec.name}.{step}"


def kept_versions(warehouse: Warehouse, name: str) -> dict[str, JourneySpec]:
    """Every version of a journey that was recorded, oldest first."""
    rows = warehouse.frame(
        """
        select version, any(toString(spec.definition)) as definition, min(loaded_at) as first_at
        from raw.campaigns where kind = {kind:String} and name = {name:String}
        group by version order by first_at
        """,
        {"kind": KIND, "name": name},
    )
    return {str(version): read_definition(str(definition)) for version, definition, _ in rows.iter_rows()}


# Moves


def write_moves(warehouse: Warehouse, select: str, parameters: Mapping[str, Any] | None = None) -> None:
    """Write moves by a query that gives the columns of `campaigns.journey_moves` down to `source_at`, in order."""
    warehouse.execute(
        f"""
        insert into campaigns.journey_moves (tick, journey, contact_id, sequence, entry, version, round, previous_step,
            outcome, cause, step, ending, entered_at, due_at, started_at, source_at)
        {select}
        """,
        parameters,
    )


def count_moves(warehouse: Warehouse, journey: str, tick: int, round_: int | None = None) -> int:
    """Moves that a tick has written, in one of its rounds or in all."""
    only = "" if round_ is None else f" and round = {round_}"
    return int(
        warehouse.value(
            f"select count() from campaigns.journey_moves where journey = {{journey:String}} and tick = {tick}{only}",
            {"journey": journey},
        )
    )


def apply_tick(
    warehouse: Warehouse, journey: str, tick: int, specs: Mapping[str, JourneySpec], now: datetime
) -> int:
    """Let the moves of a committed tick count; returns their number. Safe to repeat.

    Args:
        specs: the journey's versions, for the lists and tasks of the steps that were passed.
    """
    parameters = {"journey": journey}
    rows = f"campaigns.journey_moves where journey = {{journey:String}} and tick = {tick}"
    # of several moves of one contact the last is where they are
    warehouse.execute(
        f"""
        insert into campaigns.journey_states (journey, contact_id, sequence, entry, version, step, ending, entered_at,
            due_at, started_at, source_at)
        select journey, contact_id, sequence, entry, version, step, ending, entered_at, due_at, started_at, source_at
        from {rows} order by contact_id, sequence desc limit 1 by contact_id
        """,
        parameters,
    )
    for version, spec in specs.items():
        for node in spec.nodes.values():
            passed = (
                f"{rows} and version = {sql_text(version)} and previous_step = {sql_text(node.id)}"
                f" and outcome != '{RESTRICTED}'"
            )
            if node.step.tag is not None:
                _apply_tag(warehouse, passed, node.step.tag.add, node.step.tag.remove, parameters)
            if (task := node.step.crm_task) is not None:
                _apply_task(warehouse, passed, task, parameters)
    moves = count_moves(warehouse, journey, tick)
    warehouse.insert(
        "campaigns.journey_ticks",
        pl.DataFrame(
            {"journey": [journey], "tick": [tick], "moves": [moves], "ticked_at": [now]},
            schema_overrides={"tick": pl.UInt64, "moves": pl.UInt64, "ticked_at": pl.Datetime("ms", "UTC")},
        ),
    )
    return moves


def _apply_task(warehouse: Warehouse, passed: str, task: CrmTask, parameters: Mapping[str, Any]) -> None:
    """Ask for a task of a colleague, once for each pass of the step, as triggers do."""
    due = f"entered_at + toIntervalSecond({int(task.due_in.total_seconds())})" if task.due_in else "null"
    warehouse.execute(
        f"""
        insert into raw.events (event_id, type, source, email, occurred_at, received_at, properties, run_id)
        select concat('crm.task_requested:', journey, '/', toString(contact_id), '/', toString(sequence)) as event_id,
            'crm.task_requested', 'journey', profiles.email, entered_at, entered_at,
            toJSONString(map(
                'contact_id', toString(contact_id), 'subject', {sql_text(task.subject)}, 'note', {sql_text(task.note)},
                'owner', {sql_text(task.owner or "")},
                'due_at', ifNull(formatDateTime(toTimeZone(({due})::Nullable(DateTime), 'UTC'), '%FT%TZ'), ''),
                'journey', journey, 'step', previous_step
            ))::JSON, 'journeys'
        from (select * from {passed}) as passed
        left any join (
            select contact_id, email from marts.contact_profiles where contact_id in (select contact_id from {passed})
        ) as profiles on profiles.contact_id = passed.contact_id
        where event_id not in (select event_id from raw.events where type = 'crm.task_requested')
        """,
        parameters,
    )


def _apply_tag(
    warehouse: Warehouse, passed: str, add: list[str], remove: list[str], parameters: Mapping[str, Any]
) -> None:
    """Static lists are known by address: the contact's own of now."""
    for lists, is_member in ((add, "true"), (remove, "false")):
        if lists:
            warehouse.execute(
                f"""
                insert into raw.list_members (list, source, email, external_id, is_member, changed_at)
                select arrayJoin([{", ".join(map(sql_text, lists))}]), '', email, '', {is_member}, moved.entered_at
                from (select contact_id, entered_at from {passed}) as moved
                inner join (
                    select contact_id as profile_contact, email from marts.contact_profiles
                    where contact_id in (select contact_id from {passed})
                ) as profile on profile.profile_contact = moved.contact_id
                where email != ''
                """,
                parameters,
            )


def recover(
    warehouse: Warehouse, journey: str, fence: Fence, specs: Mapping[str, JourneySpec], now: datetime
) -> int:
    """Apply what was committed and not applied, because its process died in between; returns its moves."""
    tick = fence.committed()
    if not tick:
        return 0
    is_applied = warehouse.value(
        f"select count() from campaigns.journey_ticks where journey = {{journey:String}} and tick = {tick}",
        {"journey": journey},
    )
    return 0 if is_applied else apply_tick(warehouse, journey, tick, specs, now)


def journey_counts(warehouse: Warehouse, journey: str) -> pl.DataFrame:
    """How many people are at each step of each version now: version, step, contacts, and due_at of the first."""
    return warehouse.frame(
        """
        select toString(version) as version, toString(step) as step, count() as contacts, min(due_at) as next_due_at
        from campaigns.journey_states final
        where journey = {journey:String} and step != ''
        group by version, step order by version, step
        """,
        {"journey": journey},
    )


def table_exists(warehouse: Warehouse, database: str, name: str) -> bool:
    """Whether a table or view is there."""
    return bool(
        warehouse.value(
            "select count() from system.tables where database = {database:String} and name = {name:String}",
            {"database": database, "name": name},
        )
    )
