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
from campaigns.journey_simulation import Person as Somebody
from campaigns.journey_simulation import Walk
from campaigns.journey_state import define_tables, message_name
from campaigns.journey_ticks import Departure, JourneyTick, TickSummary
from campaigns.journeys import JourneySpec, load_journey
from orchestration.lib.experiment_analysis import decide_by_hand, look, review, write_report
from orchestration.lib.experiment_runs import Running, due_tasks
from privacy.person import Person
from privacy.restricting import change
from senders.settings import SenderSettings
from senders.why import journey_path, move_text
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.settings import MailhouseSettings

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

    def event(
        self, type_: str, contact: int, at: datetime, message_id: str = "", **properties: object
    ) -> str:
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
    assert bench.path(1)[2:] == [("waited", "kind"), ("way 1", "exit_3_branch_1_then_1"), ("exit", "#exit")]
    assert bench.path(3)[2:] == [("waited", "kind"), ("else", "again"), ("sent", "#finished")]
    assert bench.sent == [("hello", 1, "1"), ("hello", 3, "1"), ("again", 3, "1")]
    assert bench.tick(day(4)).moves == 0


def test_nobody_whose_data_are_restricted_is_let_in(bench: Bench) -> None:
    bench.write(**SIMPLE)
    bench.people(1, 2, 3)
    for person in (Person(contact_ids={1}), Person(emails={"c2@example.com"})):
        change(
            bench.warehouse,
            person,
            is_restricted=True,
            allows_transactional=True,
            reason="",
            actor="",
            now=START,
        )
    bench.tick(day(0))
    bench.enter(day(0.5), 1, 2, 3)
    assert bench.tick(day(1)).entered == 1
    assert [bench.steps(contact) for contact in (1, 2, 3)] == [[], [], ["hello", "pause"]]


def test_an_event_ends_a_wait_and_a_wait_ends_by_itself(bench: Bench) -> None:
    bench.write(
        entry={"segment": "at_risk"},
        steps=[
            {
                "id": "bought",
                "wait_for": {"event": "order.placed", "within": "3d",
                             "where": "event.total > 50 and event.shop = 'york' and orders_count < 9"},
                "then": [{"id": "thanks", "send": MAIL}],
                "else": [{"exit": "slow"}],
            },
            {"id": "rest", "wait": "1d"},
        ],
    )  # fmt: skip
    bench.people(1, 2, 3, 9)
    bench.tick(day(0))
    bench.event("order.placed", 1, day(0.1), total=99, shop="york")  # before they came in
    bench.enter(day(0.5), 1, 2, 3, 9)
    bench.tick(day(1))
    assert bench.due(1) == day(4)
    bench.event("order.placed", 1, day(1.5), total=99, shop="york")
    bench.event("order.placed", 2, day(1.5), total="a lot", shop="york")
    bench.event("order.placed", 3, day(1.5), total=99, shop="hull")
    bench.event("order.placed", 9, day(1.5), total=99, shop="york")
    bench.tick(day(2))
    assert bench.path(1) == [("entered", "bought"), ("happened", "thanks"), ("sent", "rest")]
    assert bench.steps(2) == bench.steps(3) == bench.steps(9) == ["bought"]
    bench.event("order.placed", 2, day(4), total=51.5, shop="york")  # in time, and due in the same tick
    bench.tick(day(4))
    assert bench.steps(2) == ["bought", "thanks", "rest"]
    assert bench.path(3)[1:] == [("timed out", "exit_1_else_1"), ("exit", "#exit")]


@pytest.mark.slow
def test_the_stream_is_heard_before_the_models_are_built(bench: Bench) -> None:
    bench.write(
        entry={"event": "cart.updated", "where": "event.value >= 50"},
        goal={"event": "order.placed"},
        steps=[{"id": "pause", "wait": "1d"}],
    )
    bench.people(1, 2)
    bench.tick(day(0))
    live = "insert into live.events (event_id, contact_id, type, occurred_at, properties) values"
    bench.warehouse.execute(f"{live} ('a', 1, 'cart.updated', {_sql(day(1))}, '{{\"value\": 60}}')")
    bench.warehouse.execute(f"{live} ('b', 2, 'cart.updated', {_sql(day(1))}, '{{\"value\": 10}}')")
    bench.warehouse.execute(f"{live} ('c', 7, 'cart.updated', {_sql(day(1))}, '{{\"value\": 70}}')")
    bench.warehouse.execute(f"{live} ('d', 8, 'cart.updated', {_sql(day(1))}, '{{\"value\": 7}}')")
    assert bench.tick(day(1.1)).entered == 1
    # the models say the same later, which changes nothing
    bench.event("cart.updated", 1, day(1), value=60)
    assert bench.tick(day(1.2)).moves == 0
    # somebody whom the models did not know then comes in when they do, if the condition says so
    bench.people(7, 8)
    summary = bench.tick(day(1.3))
    assert (summary.entered, bench.steps(7), bench.steps(8)) == (1, ["pause"], [])
    bench.warehouse.execute(f"{live} ('e', 1, 'order.placed', {_sql(day(1.4))}, '{{}}')")
    assert bench.tick(day(1.5)).endings == {"goal": 1}
    assert bench.path(1)[-1] == ("goal", "#goal")
    assert bench.tick(day(3)).endings == {"finished": 1}


@pytest.mark.slow
def test_mail_events_count_for_the_message_of_one_step_and_never_for_machines(bench: Bench) -> None:
    bench.write(
        entry={"segment": "at_risk"},
        steps=[
            {"id": "hello", "send": MAIL},
            {"id": "read", "wait_for": {"event": "opened", "message": "hello", "within": "2d"},
             "then": [{"exit": "read"}], "else": [{"exit": "unread"}]},
        ],
    )  # fmt: skip
    bench.people(1, 2)
    bench.tick(day(0))
    bench.enter(day(0.5), 1, 2)
    bench.tick(day(1))
    mine = message_ids("journey", "j.hello", [1, 2], "1")
    bench.event("opened", 1, day(1.2), "another")
    bench.event("opened", 2, day(1.2), mine[1])
    bench.warehouse.execute("alter table marts.events update is_machine = true where contact_id = 2"
                            " settings mutations_sync = 1")  # fmt: skip
    assert bench.tick(day(1.5)).moves == 0
    bench.event("opened", 1, day(1.6), mine[0])
    bench.tick(day(1.7))
    bench.tick(day(3))
    assert bench.path(1)[-2][1] == "exit_2_then_1" and bench.path(1)[-2][0] == "happened"
    assert bench.path(2)[-2][0] == "timed out"


@pytest.mark.slow
def test_goal_and_rules_of_exit_end_it_anywhere(bench: Bench) -> None:
    bench.write(
        entry={"segment": "at_risk"},
        goal={"event": "order.placed", "within": "2d"},
        exit=[{"event": "unsubscribed"}, {"where": "country = 'Spain'"}],
        steps=[{"id": "a", "wait": "5d"}, {"id": "b", "send": MAIL}],
    )
    bench.people(1, 2, 3, 4)
    bench.tick(day(0))
    bench.enter(day(0), 4)
    bench.enter(day(0.5), 1, 2, 3, 4)
    bench.tick(day(1))
    bench.event("order.placed", 1, day(2))
    bench.event("order.placed", 4, day(3.5))  # too late to count as the goal
    bench.event("unsubscribed", 2, day(2))
    bench.warehouse.execute(
        "alter table marts.contact_profiles update country = 'Spain' where contact_id = 3 settings mutations_sync = 1"
    )
    summary = bench.tick(day(4))
    assert summary.endings == {"goal": 1, "exit": 2}
    assert [bench.steps(contact)[-1] for contact in (1, 2, 3)] == ["#goal", "#exit", "#exit"]
    bench.tick(day(6))
    assert bench.steps(4) == ["a", "b", "#finished"]
    cause = bench.warehouse.value(
        "select cause from campaigns.journey_steps where contact_id = 3 and ending = 'exit'"
    )
    assert cause == "country = Spain"


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "times"), [("never", 1), ("after_leaving", 3), ("3d", 2)])
def test_coming_in_again(bench: Bench, policy: str, times: int) -> None:
    bench.write(
        entry={"segment": "at_risk"}, reentry=policy,
        steps=[{"id": "hello", "send": MAIL}, {"id": "pause", "wait": "1d"}],
    )  # fmt: skip
    bench.people(1)
    bench.tick(day(0))
    bench.enter(day(0.5), 1)
    bench.tick(day(1))
    bench.enter(day(1.5), 1)  # while they are in it: for nothing
    bench.tick(day(1.6))
    bench.tick(day(2.5))  # they leave
    bench.enter(day(3), 1)
    bench.tick(day(3.1))
    bench.tick(day(4.5))
    bench.enter(day(9), 1)
    bench.tick(day(9.1))
    assert [occurrence for _, _, occurrence in bench.sent] == [str(n) for n in range(1, times + 1)]


@pytest.mark.slow
def test_requests_are_followed_once_and_refusals_are_noted(bench: Bench) -> None:
    bench.write(
        entry={"requests": True, "where": "country = 'France'"}, reentry="after_leaving",
        steps=[{"id": "pause", "wait": "5d"}],
    )  # fmt: skip
    bench.people(1, 2)
    bench.people(3, country="Spain")
    bench.tick(day(0))
    for request, contact in (("r1", 1), ("r2", 1), ("r3", 3), ("r4", 4)):
        bench.ask(request, contact, day(1))
    summary = bench.tick(day(1.1))
    assert (summary.entered, summary.refused) == (1, 1)
    bench.ask("r5", 1, day(1.2))
    assert bench.tick(day(1.3)).refused == 1
    bench.people(4)
    assert bench.tick(day(1.4)).entered == 1
    bench.ask("r6", 1, day(2), "leave")
    assert bench.tick(day(2.1)).endings == {"left": 1}
    assert bench.tick(day(2.2)).moves == 0
    bench.ask("r7", 1, day(3))
    assert bench.tick(day(3.1)).entered == 1
    reasons = bench.warehouse.frame(
        "select request_id, toString(reason) from campaigns.journey_refusals order by request_id"
    )
    assert reasons.rows() == [("r3", "condition"), ("r5", "in the journey")]


@pytest.mark.slow
def test_a_schedule_takes_the_segment_in_once_an_occurrence(bench: Bench) -> None:
    bench.write(
        entry={"segment": "at_risk", "schedule": {"cron": "0 9 * * *"}}, reentry="after_leaving",
        steps=[{"id": "pause", "wait": "6h"}],
    )  # fmt: skip
    bench.people(1, 2)
    bench.tick(day(0.2))
    bench.enter(day(0), 1)
    assert bench.tick(day(0.9)).entered == 0
    assert bench.tick(day(1.01)).entered == 1
    bench.enter(day(0), 2)  # too late for this time round
    assert bench.tick(day(1.02)).moves == 0
    bench.tick(day(1.5))
    assert bench.tick(day(2)).entered == 2


@pytest.mark.slow
def test_clocks_are_those_where_people_live(bench: Bench) -> None:
    bench.write(
        entry={"segment": "at_risk"}, quiet_hours={"after": "21:00", "before": "08:00"}, timezone="Europe/London",
        steps=[
            {"id": "hello", "send": MAIL},
            {"id": "weekend", "wait": "1d", "until": {"time": "10:30", "weekdays": ["sat", "sun"]}},
        ],
    )  # fmt: skip
    bench.people(1, zone="America/New_York")
    bench.people(2, zone="Asia/Tokyo")
    bench.people(3, zone="No/where")
    bench.people(4)
    bench.tick(day(0))
    bench.enter(day(0), 1, 2, 3, 4)
    bench.enter(day(0.5), 1, 2, 3, 4)
    bench.tick(datetime(2026, 3, 3, 12, 30, tzinfo=UTC))  # 07:30, 21:30, 12:30, 12:30
    assert {contact for _, contact, _ in bench.sent} == {3, 4}
    assert bench.due(1) == datetime(2026, 3, 3, 13, 0, tzinfo=UTC)
    assert bench.due(2) == datetime(2026, 3, 3, 23, 0, tzinfo=UTC)
    assert bench.due(4) == datetime(2026, 3, 7, 10, 30, tzinfo=UTC)
    # nobody looked until it was night in New York again
    bench.tick(datetime(2026, 3, 4, 5, 0, tzinfo=UTC))
    assert {contact for _, contact, _ in bench.sent} == {2, 3, 4}
    assert bench.path(1)[-1] == ("quiet hours", "hello")
    bench.tick(datetime(2026, 3, 4, 13, 0, tzinfo=UTC))
    assert bench.sent[-1] == ("hello", 1, "1")
    # 10:30 in New York after the clocks there have changed, on Sunday 8 March, had it been that day
    assert bench.due(1) == datetime(2026, 3, 7, 15, 30, tzinfo=UTC)


@pytest.mark.slow
def test_messages_put_off_are_tried_again_and_given_up_in_the_end(bench: Bench) -> None:
    bench.write(**SIMPLE)
    bench.people(1, 2)
    bench.tick(day(0))
    bench.enter(day(0.5), 1)
    bench.status, bench.reason = "failed", "deferred"
    bench.tick(day(1))
    assert len(bench.sent) == 1 and bench.due(1) == day(1) + timedelta(minutes=10)
    bench.tick(day(1) + timedelta(minutes=5))
    assert len(bench.sent) == 1
    bench.tick(day(1) + timedelta(minutes=11))
    assert len(bench.sent) == 2
    bench.tick(day(4.5))
    assert bench.path(1)[-1] == ("failed", "pause")
    bench.status, bench.reason = "skipped", "no_consent"
    bench.enter(day(4.6), 2)
    bench.tick(day(5))
    assert bench.path(2) == [("entered", "hello"), ("no_consent", "pause")]


@pytest.mark.slow
def test_tags_and_tasks(bench: Bench) -> None:
    bench.write(
        entry={"segment": "at_risk"},
        steps=[
            {"id": "mark", "tag": {"add": ["welcomed"], "remove": ["fresh"]}},
            {"id": "call", "crm_task": {"subject": "Call them", "due_in": "2d", "owner": "sales"}},
        ],
    )
    bench.people(1)
    bench.tick(day(0))
    bench.enter(day(0.5), 1)
    assert bench.tick(day(1)).endings == {"finished": 1}
    lists = bench.warehouse.frame(
        "select toString(list), email, is_member, changed_at from raw.list_members order by list"
    )
    assert lists.rows() == [
        ("fresh", "c1@example.com", False, day(1)),
        ("welcomed", "c1@example.com", True, day(1)),
    ]
    (task,) = bench.warehouse.frame(
        "select event_id, email, toJSONString(properties) as said from raw.events"
        " where type = 'crm.task_requested'"
    ).to_dicts()
    assert task["email"] == "c1@example.com"
    said = json.loads(task["said"])
    assert {name: said[name] for name in ("contact_id", "subject", "owner", "due_at")} == {
        "contact_id": "1", "subject": "Call them", "owner": "sales", "due_at": f"{day(3):%Y-%m-%d %H:%M:%S}",
    }  # fmt: skip


@pytest.mark.slow
def test_steps_for_a_restricted_contact_are_passed_and_do_nothing(bench: Bench) -> None:
    bench.write(
        entry={"segment": "at_risk"},
        steps=[
            {"id": "pause", "wait": "1d"},
            {"id": "mark", "tag": {"add": ["welcomed"]}},
            {"id": "call", "crm_task": {"subject": "Call them"}},
            {"id": "rest", "wait": "1d"},
            {"id": "again", "crm_task": {"subject": "Call again"}},
        ],
    )
    bench.people(1, 2, 3)
    bench.tick(day(0))
    bench.enter(day(0.5), 1, 2, 3)
    bench.tick(day(1))

    def restrict(*people: Person, is_restricted: bool = True) -> None:
        for person in people:
            change(
                bench.warehouse, person, is_restricted=is_restricted, allows_transactional=True, reason="", actor="",
                now=START,
            )  # fmt: skip

    by_address = Person(emails={"c2@example.com"})
    restrict(Person(contact_ids={1}), by_address)
    bench.tick(day(2))
    for contact in (1, 2):
        assert bench.path(contact)[-3:] == [
            ("waited", "mark"),
            ("restricted", "call"),
            ("restricted", "rest"),
        ]
    assert bench.path(3)[-3:] == [("waited", "mark"), ("done", "call"), ("done", "rest")]
    # what `mailhouse why` and `mailhouse journey path` say of it
    assert move_text(journey_path(bench.warehouse, "j", 1)[-1]) == (
        "call: restricted (skipped: processing of the contact's data is restricted), to rest"
    )
    restrict(by_address, is_restricted=False)
    assert bench.tick(day(3)).endings == {"finished": 3}
    assert bench.warehouse.frame("select email from raw.list_members")["email"].to_list() == [
        "c3@example.com"
    ]
    asked = bench.warehouse.frame(
        "select email, properties.subject::String from raw.events where type = 'crm.task_requested' order by all"
    )
    assert asked.rows() == [
        ("c2@example.com", "Call again"), ("c3@example.com", "Call again"), ("c3@example.com", "Call them"),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_deleted_leave_and_the_vanished_are_given_up(bench: Bench) -> None:
    bench.write(
        entry={"segment": "at_risk"}, steps=[{"id": "pause", "wait": "1d"}, {"id": "b", "send": MAIL}]
    )
    bench.warehouse.execute("alter table marts.contact_profiles add column is_deleted Bool")
    bench.people(1, 2, 3)
    bench.tick(day(0))
    bench.enter(day(0.5), 1, 2, 3)
    bench.tick(day(1))
    change = "alter table marts.contact_profiles"
    bench.warehouse.execute(
        f"{change} update is_deleted = true where contact_id = 1 settings mutations_sync = 1"
    )
    bench.warehouse.execute(f"{change} delete where contact_id = 2 settings mutations_sync = 1")
    bench.tick(day(2))
    assert [bench.steps(contact)[-1] for contact in (1, 2, 3)] == ["#deleted", "pause", "#finished"]
    bench.tick(day(6))
    assert bench.steps(2) == ["pause", "#gone"]


@pytest.mark.slow
def test_loops_send_anew_each_time_round(bench: Bench) -> None:
    bench.write(
        entry={"segment": "at_risk"},
        steps=[{"id": "hello", "send": MAIL}, {"id": "pause", "wait": "1d"}, {"go": "hello"}],
    )
    bench.people(1)
    bench.tick(day(0))
    bench.enter(day(0.5), 1)
    for number in range(1, 4):
        bench.tick(day(number))
    assert len({occurrence for _, _, occurrence in bench.sent}) == len(bench.sent) == 3


@pytest.mark.slow
def test_people_under_way_finish_the_version_they_began_unless_they_are_moved(bench: Bench) -> None:
    from campaigns.journey_state import kept_versions
    from campaigns.journey_ticks import migrate_people

    bench.write(**SIMPLE)
    bench.people(1, 2, 3)
    bench.tick(day(0))
    bench.enter(day(0.5), 1, 2)
    bench.tick(day(1))
    old = bench.spec.version
    steps = [{"id": "hello", "send": MAIL}, {"id": "pause", "wait": "7d"}, {"id": "new", "exit": "new"}]
    bench.write(entry={"segment": "at_risk"}, steps=steps)
    assert bench.spec.version != old
    bench.enter(day(1.5), 3)
    bench.tick(day(2))
    assert (bench.due(1), bench.due(3)) == (day(3), day(9))
    versions = kept_versions(bench.warehouse, "j")
    assert list(versions) == [old, bench.spec.version]
    bench.warehouse.execute(
        "insert into campaigns.journey_states select * replace (sequence + 1 as sequence, 'hello' as step)"
        " from campaigns.journey_states final where contact_id = 2"
    )
    assert migrate_people(bench.warehouse, bench.spec, versions, bench.fence, day(2.5)) == (1, {"hello": 1})
    bench.tick(day(3))
    assert bench.steps(1)[-3:] == ["pause", "new", "#exit"]
    assert bench.path(1)[2] == ("migrated", "pause")
    assert bench.path(2)[-1] == ("sent", "pause")


SPLIT_VIEWS = (
    "create table marts.clicked (contact_id Int64) engine = MergeTree order by contact_id",
    """
    create view marts.experiment_exposures as
    select 'j.offer' as experiment, contact_id, toString(outcome) as variant, '' as occurrence, false as is_mixed,
        contact_id in (select contact_id from marts.clicked) as is_clicked, entered_at as exposed_at
    from campaigns.journey_moves where journey = 'j' and previous_step = 'offer' and startsWith(cause, 'hash ')
    """,
    """
    create view marts.experiment_sums as
    select experiment, variant, 'clicks' as metric, 'proportion' as metric_kind, count() as contacts_count,
        sum(toFloat64(is_clicked)) as value_sum, value_sum as value_square_sum, 0.0 as before_sum,
        0.0 as before_square_sum, 0.0 as product_sum, 0.0 as denominator_sum, 0.0 as denominator_square_sum,
        0.0 as denominator_product_sum, false as is_lower_better, toDate(exposed_at) as exposed_on,
        min(exposed_at) as first_exposed_at, max(exposed_at) as last_exposed_at
    from marts.experiment_exposures group by experiment, variant, exposed_on
    """,
)


@pytest.mark.slow
def test_after_the_decision_whoever_comes_to_the_split_goes_the_way_that_won(
    bench: Bench, settings: MailhouseSettings
) -> None:
    def crowd(first: int, last: int, at: datetime) -> None:
        bench.people(*range(first, last + 1))
        numbers = f"from numbers({first}, {last - first + 1})"
        bench.warehouse.execute(
            f"insert into marts.segment_changes select 'at_risk', number, 'entered', {_sql(at)}, {_sql(at)} {numbers}"
        )
        bench.warehouse.execute(f"insert into segments.at_risk select number {numbers}")

    def ways(first: int, last: int) -> set[tuple[str, str]]:
        return set(
            bench.warehouse.frame(
                "select toString(outcome), toString(step) from campaigns.journey_moves where journey = 'j'"
                f" and previous_step = 'offer' and contact_id between {first} and {last}"
            ).rows()
        )

    def due(at: datetime) -> list[str]:
        return [task.kind for task in due_tasks(bench.warehouse, running, at)]

    ends = {"plain": "a", "warm": "b"}
    spec = bench.write(
        entry={"segment": "at_risk"},
        steps=[
            {
                "id": "offer",
                "split": [
                    {"name": name, "weight": 1, "then": [{"id": step, "wait": "60d"}]} for name, step in ends.items()
                ],
                "experiment": {
                    "winner": {"after": "7d"}, "baseline": "10%", "minimum_effect": "50%", "guardrails": [],
                },
            }
        ],
    )  # fmt: skip
    running = Running(next(iter(spec.experiments())), spec.version)
    for statement in SPLIT_VIEWS:
        bench.warehouse.execute(statement)
    bench.tick(day(0))
    crowd(1, 300, day(0.5))
    assert due(day(1)) == []
    bench.tick(day(1))
    assert ways(1, 300) == set(ends.items())
    bench.warehouse.execute(
        "insert into marts.clicked select contact_id from marts.experiment_exposures"
        " where contact_id % 10 < if(variant = 'warm', 5, 1)"
    )
    assert (due(day(3)), due(day(8.5))) == (["refresh"], ["look"])

    def at(moment: datetime) -> SenderSettings:
        offset = (moment - datetime.now(UTC)).total_seconds()
        return SenderSettings(home=settings.home, warehouse_port=settings.warehouse_port, clock_offset=offset)

    assert review(at(day(3)), bench.warehouse, running).decision is None
    decision = review(at(day(8.5)), bench.warehouse, running).decision
    assert decision is not None and (decision.winner, decision.rule) == ("warm", "fixed")
    assert due(day(9)) == ["refresh"]

    crowd(301, 400, day(9))
    bench.tick(day(9.5))
    assert ways(301, 400) == {("warm", "b")}
    # `journey test` leads them as the tick does, and divides people made up
    led = {running.placed.name: "warm"}
    assert {Walk(spec, Somebody(one), day(9.5), winners=led).step for one in range(301, 401)} == {"b"}
    assert {Walk(spec, Somebody(one), day(9.5)).step for one in range(301, 401)} == {"a", "b"}
    # those under way stay where they are, and nobody who was led is taken for tested
    assert ways(1, 300) == set(ends.items())
    assert bench.warehouse.value("select count() from marts.experiment_exposures") == 300
    cause = bench.warehouse.value(
        "select any(cause) from campaigns.journey_moves where previous_step = 'offer' and contact_id = 301"
    )
    assert cause.startswith(f"decided {day(8.5):%Y-%m-%d %H:%M UTC}: warm wins")
    seen = look(bench.warehouse, running, day(10))
    assert "Whoever comes to the split from now on gets warm." in seen.decision_words
    page = write_report(at(day(10)), seen)
    assert page is not None and "comes to the split from now on gets warm" in page.read_text()
    with pytest.raises(InputError, match="was decided"):
        decide_by_hand(at(day(10)), bench.warehouse, running, "plain")


def test_what_was_not_committed_counts_for_nobody_and_what_was_is_applied(bench: Bench) -> None:
    class DiesError(Exception):
        pass

    class DyingFence(Fence):
        before = after = False

        def commit(self, tick: int) -> None:
            if self.before:
                raise DiesError
            super().commit(tick)
            if self.after:
                raise DiesError

    bench.fence = fence = DyingFence()
    bench.write(**SIMPLE)
    bench.people(1)
    bench.tick(day(0))
    bench.enter(day(0.5), 1)
    fence.before = True
    with pytest.raises(DiesError):
        bench.tick(day(1))
    assert bench.path(1) == [] and bench.sent == []
    fence.before, fence.after = False, True
    with pytest.raises(DiesError):
        bench.tick(day(1.1))
    assert bench.path(1) == [] and bench.sent == []
    fence.after = False
    summary = bench.tick(day(1.2))
    assert (summary.recovered, summary.delivered) == (1, 1)
    assert bench.path(1) == [("entered", "hello"), ("sent", "pause")]
