"""Syncs on a real warehouse: what is pushed and how often, what is stored, and that all sides agree there, too."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
import test_sync_convergence as convergence
from memory_crm import MemoryCrm
from sync_world import CheckedStore, crm_settings, identify, make_models, make_profiles
from test_sync_convergence import CONTACTS, FIELDS, World, play

from crm.base import TASK_FIELDS
from crm.conflicts import PUSHES
from crm.rules import CrmRules
from crm.settings import CrmSettings
from crm.sync import Report, Sync
from crm.sync_store import DryStore, WarehouseStore
from privacy.person import Person
from privacy.restricting import change, rectify
from warehouse.client import Warehouse
from warehouse.loads import load_events
from warehouse.settings import MailhouseSettings

pytestmark = pytest.mark.slow

RULES = CrmRules.model_validate(
    {
        "fields": {"first_name": "newest", "city": {"source": "south"}},
        "opt_outs": {"email": {"north": "no_mail", "south": "HasOptedOut"}},
        "push": {
            "north": {"engagement": ["engagement_score", "segments", "is_suppressed"], "tasks": True},
            "south": {"fields": ["first_name"], "create": "champions"},
        },
    }
)


@pytest.fixture
def crms(warehouse: Warehouse, settings: MailhouseSettings) -> tuple[MemoryCrm, MemoryCrm]:
    """Two CRMs that know the same three people."""
    make_models(warehouse)
    north, south = MemoryCrm("north", clock), MemoryCrm("south", clock)
    for number in (1, 2, 3):
        north.add(f"n{number}", email=f"p{number}@example.com", first_name=f"Ann {number}")
        south.add(f"s{number}", email=f"p{number}@example.com", city="Bath")
    return north, south


def clock() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def run(
    warehouse: Warehouse, settings: MailhouseSettings, crms: tuple[MemoryCrm, MemoryCrm]
) -> Callable[..., Report]:
    """A sync that begins after identity has been built."""

    def sync(*, dry: bool = False, rules: CrmRules = RULES) -> Report:
        kind = DryStore if dry else WarehouseStore
        store = kind(warehouse, crm_settings(settings), run_id="test")
        return Sync(store, crms, rules, now=clock, run_id="test", dry_run=dry).run()

    return sync


def rows(warehouse: Warehouse) -> dict[str, int]:
    tables = warehouse.frame("select name from system.tables where database = 'raw'")["name"].to_list()
    return {name: warehouse.value(f"select count() from raw.{name}") for name in tables}


def test_both_sides_get_what_they_lack_and_a_second_sync_writes_nothing(
    warehouse: Warehouse, crms: tuple[MemoryCrm, MemoryCrm], run: Callable[..., Report]
) -> None:
    north, south = crms
    first = run()
    assert (first.counts["waiting"], first.counts["contacts"]) == (6, 0)
    identify(warehouse)
    report = run()
    assert report.counts["written"] == 6
    assert {record.fields["first_name"] for record in south.records.values()} == {"Ann 1", "Ann 2", "Ann 3"}
    assert {record.fields["city"] for record in north.records.values()} == {"Bath"}
    # nobody disagreed
    assert warehouse.value("select count() from raw.field_decisions") == 0
    calls = north.usage.by_what["push"], south.usage.by_what["push"]
    assert calls == (1, 1)
    for _ in range(2):
        assert run().counts["written"] == 0
    assert (north.usage.by_what["push"], south.usage.by_what["push"]) == calls
    north.edit("n2", first_name="Anna", city="York")
    time.sleep(0.002)
    south.edit("s2", first_name="Hanna")
    report = run()
    assert (report.counts["written"], report.counts["decisions"]) == (1, 2)
    assert (north.records["n2"].fields["first_name"], north.records["n2"].fields["city"]) == ("Hanna", "Bath")
    decided = warehouse.frame(
        "select field, rule, value, source, losers, why from raw.field_decisions order by field"
    ).rows(named=True)
    assert [(one["field"], one["rule"], one["value"], one["source"]) for one in decided] == [
        ("city", "source", "Bath", "south"), ("first_name", "newest", "Hanna", "south"),
    ]  # fmt: skip
    assert decided[0]["why"] == "south is the source of truth"
    assert [(one["source"], one["value"]) for one in json.loads(decided[1]["losers"])] == [("north", "Anna")]
    assert run().counts["decisions"] == 0


def test_engagement_is_pushed_where_it_changed(
    warehouse: Warehouse, crms: tuple[MemoryCrm, MemoryCrm], run: Callable[..., Report]
) -> None:
    north, _ = crms
    run()
    identify(warehouse)
    people = (
        "select (number + 1)::Int64 as contact_id, {score}::Float64 as engagement_score, ['a', 'b'] as segments"
        " from numbers(3)"
    )
    make_profiles(warehouse, people.format(score="number * 10.2"))
    run()
    assert north.records["n3"].fields["mailhouse_engagement_score"] == 20
    assert north.records["n3"].fields["mailhouse_segments"] == "a;b"
    assert north.records["n3"].fields["mailhouse_is_suppressed"] is False
    north.pushed.clear()
    # another build in which nobody changed by a whole point, and one in which one did
    make_profiles(warehouse, people.format(score="number * 10.2 - 0.1"))
    assert run().counts["written"] == 0
    make_profiles(warehouse, people.format(score="if(number = 2, 90, number * 10)"))
    north.delete("n1")
    assert run().counts["written"] == 1
    assert [dict(change.fields) for change in north.pushed] == [{"mailhouse_engagement_score": 90}]
    # what is refused is not offered again before it changes
    north.refused = lambda name, value: value == 91
    make_profiles(warehouse, people.format(score="if(number = 2, 91, number * 10)"))
    assert run().counts["invalid"] == 1
    assert run().counts["invalid"] == 0
    make_profiles(warehouse, people.format(score="if(number = 2, 92, if(number = 0, 5, number * 10))"))
    report = run()
    # the record that was deleted is left alone
    assert (report.counts["written"], report.counts["gone"]) == (1, 0)
    # nothing new is shown of somebody whose data may not be processed
    for is_restricted, written in ((True, 0), (False, 1)):
        make_profiles(warehouse, people.format(score="if(number = 2, 50, number * 10)"))
        change(
            warehouse, Person(contact_ids={3}), is_restricted=is_restricted, allows_transactional=False, reason="",
            actor="", now=clock(),
        )  # fmt: skip
        assert run().counts["written"] == written


def test_contacts_of_a_segment_are_made_once(
    warehouse: Warehouse, crms: tuple[MemoryCrm, MemoryCrm], run: Callable[..., Report]
) -> None:
    _, south = crms
    run()
    identify(warehouse)
    run()
    make_profiles(
        warehouse,
        """
        select (number + 1)::Int64 as contact_id, if(number >= 2, ['champions'], []) as segments,
            'Eve'::Nullable(String) as first_name
        from numbers(5)
        """,
    )
    south.trouble = "lost"
    assert "south" in run().failures
    south.trouble = ""
    # both were made, but we do not know
    assert len(south.records) == 5
    report = run()
    assert (report.counts["created"], report.counts["written"]) == (0, 2)
    assert len(south.records) == 5
    assert south.records["south-new-1"].fields == {"email": "p4@example.com", "first_name": "Eve"}
    south.pushed.clear()
    make_profiles(
        warehouse, "select (number + 1)::Int64 as contact_id, ['champions'] as segments from numbers(5)"
    )
    run()
    assert south.pushed == []
    # what we wrote and read again is nobody's edit
    identify(warehouse, "transform(external_id, ['south-new-1', 'south-new-2'], [4, 5], 0)::Int64")
    assert run().counts["decisions"] == 0
    store = WarehouseStore(warehouse, CrmSettings(warehouse_port=warehouse.address.port))
    history = store.history(pl.DataFrame({"contact_id": [4]}), RULES)
    assert set(PUSHES) == set(history.pushes.columns)
    assert sorted(history.pushes.filter(pl.col("field") == "first_name")["status"]) == ["sent", "written"]


def test_tasks_are_made_once(
    warehouse: Warehouse, crms: tuple[MemoryCrm, MemoryCrm], run: Callable[..., Report]
) -> None:
    north, _ = crms
    run()
    identify(warehouse)
    load_events(
        warehouse,
        pl.DataFrame(
            [
                {
                    "event_id": f"crm.task_requested:{number}", "type": "crm.task_requested", "source": "trigger",
                    "email": f"p{number}@example.com", "occurred_at": clock() - timedelta(days=days),
                    "properties": json.dumps(
                        {"contact_id": number, "subject": "Ring", "due_at": "2026-03-04T05:06:07Z", "note": ""}
                    ),
                }
                for number, days in ((1, 0), (7, 0), (2, 30))
            ]
        ).with_columns(pl.col("occurred_at").cast(pl.Datetime("ms", "UTC"))),
    )  # fmt: skip
    north.trouble = "lost"
    run()
    north.trouble = ""
    assert run().counts["tasks"] == 2
    assert run().counts["tasks"] == 0
    assert north.tasks["crm.task_requested:1"] == {
        "subject": "Ring", "due_at": "2026-03-04T05:06:07+00:00", "contact_id": "n1",
    }  # fmt: skip
    # the CRM has no such contact: the task says who it is; one that is too old is none any more
    assert north.tasks["crm.task_requested:7"]["note"] == "About p7@example.com"
    assert len(north.tasks) == 2
    assert all(task.keys() <= set(TASK_FIELDS) for task in north.tasks.values())


def test_no_task_about_somebody_whose_data_are_restricted_meanwhile_is_made(
    warehouse: Warehouse, crms: tuple[MemoryCrm, MemoryCrm], run: Callable[..., Report]
) -> None:
    north, _ = crms
    run()
    identify(warehouse)
    asked = [
        {
            "event_id": f"crm.task_requested:{number}", "type": "crm.task_requested", "source": "trigger",
            "email": f"p{number}@example.com", "occurred_at": clock(),
            "properties": json.dumps({"contact_id": number, "subject": "Ring", "owner": "sam@example.com"}),
        }
        for number in (1, 2, 3)
    ]  # fmt: skip
    load_events(
        warehouse, pl.DataFrame(asked).with_columns(pl.col("occurred_at").cast(pl.Datetime("ms", "UTC")))
    )
    for person in (Person(contact_ids={1}), Person(emails={"p2@example.com"})):
        change(
            warehouse, person, is_restricted=True, allows_transactional=True, reason="", actor="", now=clock()
        )
    assert run().counts["tasks"] == 1
    assert [task["owner"] for task in north.tasks.values()] == ["sam@example.com"]
    change(
        warehouse, Person(contact_ids={1}), is_restricted=False, allows_transactional=False, reason="", actor="",
        now=clock(),
    )  # fmt: skip
    assert run().counts["tasks"] == 1
    assert set(north.tasks) == {"crm.task_requested:1", "crm.task_requested:3"}


def test_what_was_put_right_reaches_every_crm_and_a_first_sync_finds_it(
    warehouse: Warehouse, crms: tuple[MemoryCrm, MemoryCrm], run: Callable[..., Report]
) -> None:
    north, south = crms
    north.add("n9", email="p9@example.com", first_name="Jon")
    rules = CrmRules.model_validate({"fields": {"first_name": "newest"}, "push": {"north": {}, "south": {}}})
    run(rules=CrmRules())  # read only
    identify(warehouse)
    ann = Person(records={("north", "n1"), ("south", "s1"), ("north", "n9")})
    rectify(warehouse, ann, {"first_name": "Anna"}, clock())
    assert run(dry=True, rules=rules).changes["rule"].sort().to_list() == ["newest"] * 2 + ["rectified"] * 3
    assert run(rules=rules).counts["written"] == 5
    assert [north.records[number].fields["first_name"] for number in ("n1", "n9")] == ["Anna", "Anna"]
    assert south.records["s1"].fields["first_name"] == "Anna"
    report = run(rules=rules)
    assert (report.counts["written"], report.counts["decisions"]) == (0, 0)
    south.edit("s1", first_name="Ann")
    assert run(rules=rules).counts["written"] == 1
    assert north.records["n1"].fields["first_name"] == "Ann"


def test_an_opt_out_anywhere_is_a_withdrawn_consent_and_reaches_everybody(
    warehouse: Warehouse, crms: tuple[MemoryCrm, MemoryCrm], run: Callable[..., Report]
) -> None:
    north, south = crms
    run()
    identify(warehouse)
    south.edit("s1", HasOptedOut=True)
    assert run().counts["withdrawals"] == 1
    assert north.records["n1"].fields["no_mail"] is True
    consents = "select source, email, external_id, channel, purpose, is_granted, basis from raw.consents"
    assert warehouse.frame(consents).rows() == [
        ("south", "p1@example.com", "s1", "email", "marketing", False, "withdrawal")
    ]
    # who merely ticks a box elsewhere does not undo it
    north.edit("n1", no_mail=False)
    run()
    assert north.records["n1"].fields["no_mail"] is True
    # they agree with us, later than that: the models say so
    identity = "select identity_id from intermediate.int_contacts__identified where identifier = 'n1'"
    warehouse.execute(
        f"""
        insert into intermediate.int_consents__latest
        select ({identity}), 'email', 'marketing', tuple(now64(3), toDateTime64(0, 3, 'UTC')), now64(3)
        """
    )
    run()
    assert (north.records["n1"].fields["no_mail"], south.records["s1"].fields["HasOptedOut"]) == (
        False,
        False,
    )
    # and unsubscribe again
    warehouse.execute(
        f"""
        insert into intermediate.int_consents__latest
        select ({identity}), 'email', 'marketing', tuple(now64(3), toDateTime64('2299-12-31 00:00:00', 3, 'UTC')),
            now64(3)
        """
    )
    run()
    assert (north.records["n1"].fields["no_mail"], south.records["s1"].fields["HasOptedOut"]) == (True, True)
    assert warehouse.frame(consents).height == 1


def test_a_dry_run_tells_and_writes_nothing(
    warehouse: Warehouse, crms: tuple[MemoryCrm, MemoryCrm], run: Callable[..., Report]
) -> None:
    north, south = crms
    run()
    identify(warehouse)
    run()
    make_profiles(
        warehouse, "select 1::Int64 as contact_id, 7::Float64 as engagement_score, ['champions'] as segments"
    )
    north.edit("n1", first_name="Anna")
    south.edit("s2", HasOptedOut=True)
    before, pushed = rows(warehouse), [len(crm.pushed) for crm in crms]
    told = run(dry=True)
    assert rows(warehouse) == before
    assert [len(crm.pushed) for crm in crms] == pushed
    changes = told.changes.filter(pl.col("field") != "mailhouse_is_suppressed").sort(
        "source", "external_id", "field"
    )
    assert changes.select("source", "external_id", "field", "old", "value", "rule").rows() == [
        ("north", "n1", "mailhouse_engagement_score", "", "7", "engagement"),
        ("north", "n1", "mailhouse_segments", "", "champions", "engagement"),
        ("north", "n2", "email_opt_out", "", "true", "stricter"),
        ("south", "s1", "first_name", "Ann 1", "Anna", "newest"),
    ]
    report = run()
    assert report.counts["written"] == 3


def test_nothing_is_decided_without_rules(
    warehouse: Warehouse, crms: tuple[MemoryCrm, MemoryCrm], run: Callable[..., Report]
) -> None:
    report = run(rules=CrmRules())
    assert (report.counts["pulled"], report.counts["written"]) == (6, 0)
    assert warehouse.value("select count() from raw.crm_records") == 6


@pytest.mark.parametrize("seed", range(3))
def test_all_sides_agree_on_the_warehouse(
    warehouse: Warehouse, settings: MailhouseSettings, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    make_models(warehouse)
    dice = random.Random(seed)

    def edit() -> tuple[str, int, str, str]:
        return (
            dice.choice(["north", "south"]), dice.choice(CONTACTS), dice.choice([*FIELDS, "email_opt_out"]),
            dice.choice(["new", "new", "same", "", "true"]),
        )  # fmt: skip

    troubles = ["", "", "away", "limit", "lost", "half", "slow"]
    story: list[tuple[str, tuple]] = []
    for _ in range(12):
        story += [("edit", edit()) for _ in range(dice.randrange(3))]
        meanwhile = [edit() for _ in range(dice.randrange(3))]
        story.append(("sync", (dice.choice(troubles), dice.choice(troubles), meanwhile, dice.randint(-8, 8))))
        story += [("build", ())] * dice.randrange(2)
    world = World(lambda _, before: CheckedStore(warehouse, crm_settings(settings), before))

    def losers(_: World) -> set[tuple[int, str, str, str]]:
        found = warehouse.frame(
            "select contact_id, toString(field) as field, losers from raw.field_decisions"
        )
        return {
            (contact_id, name, one["source"], one["value"])
            for contact_id, name, text in found.iter_rows()
            for one in json.loads(text)
        }

    def stored(_: World) -> dict[tuple[str, str, datetime], datetime]:
        found = warehouse.frame(
            "select toString(source), external_id, updated_at, loaded_at from raw.crm_records"
        )
        return {
            (source, external_id, updated_at): at for source, external_id, updated_at, at in found.iter_rows()
        }

    monkeypatch.setattr(convergence, "losers", losers)
    monkeypatch.setattr(convergence, "stored", stored)
    play(world, story, lambda: identify(warehouse))
