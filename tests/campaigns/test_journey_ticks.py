"""Ticks on the real engine, against hand-made marts; messages are answered by a stand-in for the ledger's export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from campaigns.identity import message_ids
from campaigns.journey_requests import REQUEST_COLUMNS, request_moves
from campaigns.journey_state import define_tables, message_name
from campaigns.journey_ticks import Departure, JourneyTick, TickSummary
from campaigns.journeys import JourneySpec, load_journey
from warehouse.client import Warehouse

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)  # a Monday
MAIL = {"template": "t", "category": "marketing", "subject": "Hello"}


def day(number: float) -> datetime:
    return START + timedelta(days=number)


class Fence:
    """A lease that nobody disputes."""

    def __init__(self) -> None:
        self.given = self.last = 0

    def next_tick(self) -> int:
        self.given += 1
        return self.given

    def committed(self) -> int:
        return self.last

    def commit(self, tick: int) -> None:
        self.last = tick


@dataclass
class Bench:
    """A journey and everything that may happen to it."""

    warehouse: Warehouse
    folder: Path
    fence: Fence = field(default_factory=Fence)
    status: str = "sent"
    reason: str = ""
    sent: list[tuple[str, int, str]] = field(default_factory=list)
    changed_at: datetime = START
    spec: JourneySpec = None  # pyright: ignore[reportAssignmentType]
    events: int = 0

    def write(self, **content: object) -> JourneySpec:
        """A journey as a marketer would write it."""
        content = {"journey": "j", **content}
        path = self.folder / f"{content['journey']}.yaml"
        with path.open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(content, file)
        self.spec = load_journey(path)
        return self.spec

    def deliver(self, departure: Departure) -> int:
        """What the ledger's export writes of messages."""
        contacts = departure.contacts["contact_id"].to_list()
        name = message_name(departure.spec, departure.node.id)
        self.sent += [(departure.node.id, contact, departure.occurrence) for contact in contacts]
        self.warehouse.insert(
            "raw.messages",
            pl.DataFrame(
                {
                    "message_id": message_ids("journey", name, contacts, departure.occurrence),
                    "sequence": [1] * len(contacts), "status": [self.status] * len(contacts),
                    "reason": [self.reason] * len(contacts), "kind": ["journey"] * len(contacts),
                    "name": [name] * len(contacts), "occurrence": [departure.occurrence] * len(contacts),
                    "contact_id": contacts, "changed_at": [self.changed_at] * len(contacts),
                },
                schema_overrides={"changed_at": pl.Datetime("ms", "UTC"), "sequence": pl.UInt32},
            ),
        )  # fmt: skip
        return len(contacts)

    def tick(self, at: datetime) -> TickSummary:
        self.changed_at = at
        return JourneyTick(self.warehouse, self.spec, at, self.fence, self.deliver).run()

    def people(self, *contacts: int, zone: str | None = None, country: str = "France") -> None:
        where = f"'{zone}'" if zone else "null"
        rows = ", ".join(
            f"({contact}, 'c{contact}@example.com', '{country}', {contact}, {where})" for contact in contacts
        )
        self.warehouse.execute(
            f"insert into marts.contact_profiles (contact_id, email, country, orders_count, timezone) values {rows}"
        )

    def enter(self, at: datetime, *contacts: int) -> None:
        """They enter the segment at_risk."""
        for contact in contacts:
            self.warehouse.execute(
                f"insert into marts.segment_changes values ('at_risk', {contact}, 'entered', {_sql(at)}, {_sql(at)})"
            )
            self.warehouse.execute(f"insert into segments.at_risk values ({contact})")

    def event(self, type_: str, contact: int, at: datetime, message_id: str = "", **properties: object) -> str:
        self.events += 1
        name = f"e{self.events}"
        self.warehouse.execute(
            "insert into marts.events (event_id, contact_id, type, occurred_at, message_id, properties, loaded_at)"
            f" values ('{name}', {contact}, '{type_}', {_sql(at)}, '{message_id}', {{properties:String}}, now64(3))",
            {"properties": json.dumps(properties)},
        )
        return name

    def ask(self, request: str, contact: int, at: datetime, action: str = "enter") -> None:
        row = (request, "j", contact, action, "api", at)
        request_moves(self.warehouse, pl.DataFrame([row], schema=REQUEST_COLUMNS, orient="row"))

    def path(self, contact: int) -> list[tuple[str, str]]:
        """Outcomes and steps of a contact, in order."""
        rows = self.warehouse.frame(
            "select outcome, if(step = '', concat('#', ending), step) as step from campaigns.journey_steps"
            " where contact_id = {contact:Int64} order by sequence",
            {"contact": contact},
        )
        return rows.rows()

    def steps(self, contact: int) -> list[str]:
        return [step for _, step in self.path(contact)]

    def due(self, contact: int) -> datetime:
        return self.warehouse.value(
            "select due_at from campaigns.journey_states final where contact_id = {contact:Int64}",
            {"contact": contact},
        )


def _sql(at: datetime) -> str:
    return f"toDateTime64('{at:%Y-%m-%d %H:%M:%S}', 3, 'UTC')"


@pytest.fixture
def bench(marts: object, warehouse: Warehouse, tmp_path: Path) -> Iterator[Bench]:
    warehouse.execute("create database if not exists live")
    for statement in (
        """
        create table marts.segment_changes (segment String, contact_id Int64, change String,
            entered_at DateTime64(3, 'UTC'), changed_at DateTime64(3, 'UTC')) engine = MergeTree order by segment
        """,
        """
        create table marts.events (event_id String, contact_id Nullable(Int64), type LowCardinality(String),
            message_id String, url String, is_machine Bool, properties JSON, occurred_at DateTime64(3, 'UTC'),
            loaded_at DateTime64(3, 'UTC'), loaded_on Date default toDate(loaded_at, 'UTC'))
        engine = MergeTree order by type
        """,
        "drop table if exists live.events",
        """
        create table live.events (event_id String, contact_id Int64, type LowCardinality(String),
            occurred_at DateTime64(3, 'UTC'), received_at DateTime64(3, 'UTC'), properties JSON,
            loaded_at DateTime64(3, 'UTC') default now64(3)) engine = MergeTree order by contact_id
        """,
    ):
        warehouse.execute(statement)
    define_tables(warehouse)
    yield Bench(warehouse, tmp_path)
    warehouse.execute("drop database live")


SIMPLE = {
    "entry": {"segment": "at_risk"},
    "steps": [
        {"id": "hello", "send": MAIL},
        {"id": "pause", "wait": "2d"},
        {"id": "kind", "branch": [{"when": "country = 'France'", "then": [{"exit": "french"}]}]},
        {"id": "again", "send": MAIL},
    ],
}


def test_people_come_in_get_mail_wait_and_leave(bench: Bench) -> None:
    bench.write(**SIMPLE)
    bench.people(1, 2)
    bench.people(3, country="Spain")
    assert bench.tick(day(0)).moves == 0
    bench.enter(day(0.5), 1, 3)
    summary = bench.tick(day(1))
    assert (summary.entered, summary.delivered) == (2, 2)
    assert bench.path(1) == [("entered", "hello"), ("sent", "pause")]
    assert bench.due(1) == day(3)
    assert bench.tick(day(2)).moves == 0
    summary = bench.tick(day(3))
    assert summary.endings == {"exit": 1, "finished": 1}
    assert bench.path(1)[2:] == [("waited", "kind"), ("way 1", "exit_3_1_1"), ("exit", "#exit")]
    assert bench.path(3)[2:] == [("waited", "kind"), ("else", "again"), ("sent", "#finished")]
    assert bench.sent == [("hello", 1, "1"), ("hello", 3, "1"), ("again", 3, "1")]
    assert bench.tick(day(4)).moves == 0
