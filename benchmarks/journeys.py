"""What a tick of a journey costs: a million people wait, a hundred thousand of them are due.

    python benchmarks/journeys.py              1 M contacts in the journey, 100 k due
    python benchmarks/journeys.py --quick      a fiftieth
    python benchmarks/journeys.py --check      exit code 1 unless the target holds

An embedded engine is started on a free port over an empty folder, with profiles, events and a journey of ten steps in
which everybody waits. Then, each in a tick of its own, everything measured from the call to the last committed row:

1. **nobody due**: what it costs to look.
2. **due**: a tenth is due at a wait behind which a branch on the profile, a split and a tag lie, and comes to rest at a
   send step (the sending itself is left out) or at the next wait.
3. **events**: as many events as a fiftieth of all people, for which others wait; and the goal for some.
4. **coming in**: as many people as in 2 enter the segment.

Beside 2 stands the loop that one would write by hand: rows of those who are due out of SQLite through SQLAlchemy, one
condition, one hash, one row of the log and one update each, committed by the thousand; measured on a sample and scaled.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

# the folder of this file has a name of ours in it: `import warehouse` must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from benchmarks.lib.dbt_process import cpu_seconds
from campaigns.journey_state import define_tables, sql_time
from campaigns.journey_ticks import JourneyTick, TickSummary
from campaigns.journeys import JourneySpec, load_journey
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
TARGET_SECONDS = 5.0
SAMPLE = 2_000
MAIL = {"template": "offer", "category": "marketing", "subject": "Hello"}
JOURNEY = {
    "journey": "j",
    "entry": {"segment": "s"},
    "goal": {"event": "order.placed"},
    "exit": [{"event": "unsubscribed"}],
    "quiet_hours": {"after": "22:00", "before": "07:00"},
    "steps": [
        {"id": "first_wait", "wait": "3d"},
        {"id": "value", "branch": [
            {"when": "revenue > 500 and country = 'C3'", "then": [{"id": "call", "crm_task": {"subject": "Call"}}]},
            {"when": "engagement_score < 20", "then": [{"id": "mark", "tag": {"add": ["cold"]}}]},
        ], "else": [{"id": "halves", "split": [
            {"name": "mail", "weight": 1, "then": [{"id": "offer", "send": MAIL}]}, {"name": "none", "weight": 1},
        ]}]},
        {"id": "clicked", "wait_for": {"event": "product.viewed", "where": "event.price > 5", "within": "30d"},
         "then": [{"id": "thanks", "wait": "1d"}], "else": [{"id": "reminder", "send": MAIL}]},
        {"id": "last_wait", "wait": "2d", "until": {"time": "09:00"}},
        {"id": "last_word", "send": MAIL},
    ],
}  # fmt: skip
_MARTS = (
    "create database marts", "create database segments",
    """
    create table marts.contact_profiles (contact_id Int64, email String, country Nullable(String),
        timezone Nullable(String), revenue Decimal(18, 2), engagement_score Float64, orders_count UInt32,
        is_deleted Bool, segments Array(String)) engine = MergeTree order by contact_id
    """,
    """
    create table marts.segment_changes (segment LowCardinality(String), contact_id Int64,
        change LowCardinality(String), entered_at DateTime64(3, 'UTC'), changed_at DateTime64(3, 'UTC'))
    engine = MergeTree order by (segment, changed_at, contact_id)
    """,
    """
    create table marts.events (event_id String, contact_id Nullable(Int64), type LowCardinality(String),
        message_id String, url String, is_machine Bool, properties JSON, occurred_at DateTime64(3, 'UTC'),
        loaded_at DateTime64(3, 'UTC'), loaded_on Date default toDate(loaded_at, 'UTC'))
    engine = MergeTree partition by loaded_on order by (type, occurred_at)
    """,
    "create table segments.s (contact_id Int64) engine = MergeTree order by contact_id",
)  # fmt: skip


class Fence:
    """A lease without a ledger: its one row costs milliseconds, and is no part of what is asked here."""

    def __init__(self) -> None:
        self.given = self.last = 0

    def next_tick(self) -> int:
        """The next number."""
        self.given += 1
        return self.given

    def committed(self) -> int:
        """The last one."""
        return self.last

    def commit(self, tick: int) -> None:
        """It counts."""
        self.last = tick


@dataclass
class Measured:
    """One tick: seconds by the clock, CPU seconds of the engine and of this process, and what it did."""

    what: str
    seconds: float
    engine: float
    own: float
    summary: TickSummary


def prepare(warehouse: Warehouse, folder: Path, contacts: int) -> JourneySpec:
    """The marts, and everybody in the journey: nine in ten at the wait for an event, the others due."""
    migrate(warehouse)
    for statement in _MARTS:
        warehouse.execute(statement)
    define_tables(warehouse)
    path = folder / "j.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(JOURNEY, file)
    spec = load_journey(path)
    zones = "['Europe/London', 'America/New_York', 'Asia/Tokyo', 'Europe/Berlin', '']"
    warehouse.execute(
        f"""
        insert into marts.contact_profiles
        select number, concat('c', toString(number), '@example.com'), concat('C', toString(number % 40)),
            {zones}[1 + number % 5], (number * 7919) % 1000, (number * 104729) % 100, number % 9, false, ['s', 't']
        from numbers(1, {contacts * 2})
        """
    )
    warehouse.execute(f"insert into segments.s select number from numbers(1, {contacts * 2})")
    warehouse.execute(
        f"""
        insert into marts.events
        select concat('old', toString(number)), number % {contacts},
            ['product.viewed', 'order.placed', 'opened'][1 + number % 3],
            '', '', false, '{{"price": 1}}', {sql_time(START)} - toIntervalSecond(number % 2592000),
            now64(3) - toIntervalDay(1 + number % 30), toDate(now() - toIntervalDay(1 + number % 30))
        from numbers({contacts * 2})
        """
    )
    warehouse.execute(
        f"""
        insert into campaigns.journey_states
        select 'j', number, 1, 1, '{spec.version}', if(number % 10 = 0, 'first_wait', 'clicked'), '',
            {sql_time(START)}, {sql_time(START)} + if(number % 10 = 0, toIntervalDay(3), toIntervalDay(30)),
            {sql_time(START)}, {sql_time(START)}
        from numbers(1, {contacts})
        """
    )
    return spec


def measure(server: int, what: str, tick: Callable[[], TickSummary]) -> Measured:
    """One tick."""
    engine, own, start = cpu_seconds(server), time.process_time(), time.perf_counter()
    summary = tick()
    seconds = time.perf_counter() - start
    return Measured(what, seconds, cpu_seconds(server) - engine, time.process_time() - own, summary)


def row_by_row(folder: Path, people: int) -> float:
    """CPU seconds of the loop that one would write by hand, for so many people."""
    engine = sa.create_engine(f"sqlite:///{folder / 'loop.db'}")
    tables = sa.MetaData()
    states = sa.Table(
        "states", tables, sa.Column("contact_id", sa.Integer, primary_key=True), sa.Column("step", sa.String(50)),
        sa.Column("due_at", sa.Integer, index=True), sa.Column("revenue", sa.Integer),
        sa.Column("country", sa.String(5)), sa.Column("score", sa.Integer),
    )  # fmt: skip
    log = sa.Table(
        "log", tables, sa.Column("id", sa.Integer, primary_key=True), sa.Column("contact_id", sa.Integer),
        sa.Column("step", sa.String(50)), sa.Column("outcome", sa.String(50)), sa.Column("at", sa.Integer),
    )  # fmt: skip
    tables.create_all(engine)
    rows = [
        {"contact_id": n, "step": "first_wait", "due_at": 0, "revenue": n * 7919 % 1000, "country": f"C{n % 40}",
         "score": n * 104729 % 100}
        for n in range(1, people + 1)
    ]  # fmt: skip
    with engine.begin() as connection:
        connection.execute(states.insert(), rows)
    start = time.process_time()
    with engine.connect() as connection:
        due = connection.execute(sa.select(states).where(states.c.due_at <= 1)).all()
        for number, row in enumerate(due):
            path = [("first_wait", "waited")]
            if row.revenue > 500 and row.country == "C3":
                path += [("value", "way 1"), ("call", "done")]
            elif row.score < 20:
                path += [("value", "way 2"), ("mark", "done")]
            else:
                half = (
                    hashlib.md5(f"j.halves\n{row.contact_id}".encode(), usedforsecurity=False).digest()[0]
                    < 128
                )
                path += [("value", "else"), ("halves", "mail" if half else "none")]
            step = "offer" if path[-1][1] == "mail" else "clicked"
            for where, outcome in path:
                connection.execute(
                    log.insert().values(contact_id=row.contact_id, step=where, outcome=outcome, at=1)
                )
            connection.execute(
                states.update().where(states.c.contact_id == row.contact_id).values(step=step, due_at=2)
            )
            if number % 1000 == 999:
                connection.commit()
        connection.commit()
    engine.dispose()
    return time.process_time() - start


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the people")
    parser.add_argument("--check", action="store_true", help="exit code 1 unless the target holds")
    parser.add_argument("--contacts", type=int, help="so many people")
    options = parser.parse_args()
    contacts = options.contacts or (20_000 if options.quick else 1_000_000)
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = MailhouseSettings(home=folder / "home", warehouse_port=free_port())
        with (
            launcher.start(settings) as server,
            Warehouse.connect(settings, comment="benchmark") as warehouse,
        ):
            spec, fence, done = prepare(warehouse, folder, contacts), Fence(), []

            def tick(what: str, at: datetime) -> Measured:
                one = measure(server.pid, what, lambda: JourneyTick(warehouse, spec, at, fence).run())
                done.append(one)
                return one

            tick("first look", START + timedelta(days=1))
            tick("nobody due", START + timedelta(days=2))
            due = tick("due", START + timedelta(days=3, hours=1))
            assert due.summary.moves >= contacts // 10 * 2
            warehouse.execute(
                f"""
                insert into marts.events
                select concat('new', toString(number)), number * 10 + 1,
                    if(number % 5 = 0, 'order.placed', 'product.viewed'), '', '', false, '{{"price": 9}}',
                    {sql_time(START + timedelta(days=3, hours=2))}, now64(3), toDate(now())
                from numbers({contacts // 50})
                """
            )
            events = tick("events", START + timedelta(days=3, hours=3))
            assert events.summary.endings["goal"] and events.summary.moves == contacts // 50
            entered = sql_time(START + timedelta(days=3, hours=4))
            warehouse.execute(
                f"""
                insert into marts.segment_changes
                select 's', number, 'entered', {entered}, {entered} from numbers({contacts + 1}, {contacts // 10})
                """
            )
            come = tick("coming in", START + timedelta(days=3, hours=5))
            assert come.summary.entered == contacts // 10
        sample = min(SAMPLE, contacts // 10)
        by_hand = row_by_row(folder, sample) * (contacts // 10) / sample
    table = Table(
        title=f"{contacts:,} people in the journey, {contacts // 10:,} due", title_justify="left", box=None
    )
    for column in ("tick", "moves", "seconds", "engine CPU s", "own CPU s"):
        table.add_column(column, justify="left" if column == "tick" else "right")
    for one in done:
        table.add_row(
            one.what, f"{one.summary.moves:,}", f"{one.seconds:.2f}", f"{one.engine:.2f}", f"{one.own:.2f}"
        )
    table.add_row("due, row by row (scaled)", "", "", "", f"{by_hand:.1f}")
    console.print(table)
    cost = due.engine + due.own
    # two cores are the target's machine; on a busy one the clock tells of others
    seconds = min(due.seconds, cost)
    ok = seconds <= TARGET_SECONDS * (0.6 if options.quick else 1)
    console.print(
        f"A tick with {contacts // 10:,} due: {due.seconds:.2f} s by the clock, {cost:.2f} s of CPU, "
        f"{by_hand / cost:.0f} times less than row by row. Target: {TARGET_SECONDS:.0f} s for 100,000 of 1,000,000."
    )
    figures = {
        one.what: {"moves": one.summary.moves, "seconds": round(one.seconds, 3), "engine": round(one.engine, 3),
                   "own": round(one.own, 3)}
        for one in done
    }  # fmt: skip
    sys.stdout.write(
        json.dumps({"contacts": contacts, "ticks": figures, "row_by_row": round(by_hand, 2)}) + "\n"
    )
    if options.check and not ok:
        sys.exit(1)


if __name__ == "__main__":
    main()
