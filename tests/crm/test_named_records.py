"""A change that a webhook tells of is stored by the next load, whether or not search has learnt of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hubspot_fake import TOKEN, FakeHubSpot
from pipedrive_fake import TOKEN as PIPEDRIVE_TOKEN
from pipedrive_fake import FakePipedrive
from sync_world import crm_settings, identify, make_models

from crm.base import CrmError
from crm.hubspot import HubSpot
from crm.news import named
from crm.pipedrive import Pipedrive
from crm.pulling import load, stored_cursor
from crm.rules import CrmRules
from crm.settings import CrmSettings
from crm.sync import PUSH_ROWS, Sync
from crm.sync_store import DryStore, WarehouseStore
from gateway.crm_webhooks import HubSpotEvents, PipedriveEvents
from warehouse.client import Warehouse
from warehouse.loads import load_events
from warehouse.settings import MailhouseSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
LATER = START + timedelta(minutes=1)
HUBSPOT = HubSpotEvents(None, frozenset())
PIPEDRIVE = PipedriveEvents("", None)


def store(warehouse: Warehouse, rows: list[dict[str, Any]]) -> None:
    load_events(
        warehouse, pl.DataFrame(rows).with_columns(pl.col("occurred_at").cast(pl.Datetime("ms", "UTC")))
    )


def told(warehouse: Warehouse, *events: tuple[str, int, datetime], **more: Any) -> None:
    """HubSpot calls: what happened, to whom, when."""
    calls = [
        {"eventId": index, "subscriptionType": what, "objectId": number,
         "occurredAt": int(at.timestamp() * 1000), **more}
        for index, (what, number, at) in enumerate(events)
    ]  # fmt: skip
    store(warehouse, HUBSPOT.parse_webhook(json.dumps(calls).encode(), {}))


def shown(warehouse: Warehouse) -> dict[str, tuple[bool, dict[str, Any]]]:
    rows = warehouse.frame(
        """
        select external_id, argMax(is_deleted, updated_at) as gone, argMax(toString(properties), updated_at) as p
        from raw.crm_records group by external_id
        """
    ).rows()
    return {number: (gone, json.loads(text)) for number, gone, text in rows}


def hubspot_of(fake: FakeHubSpot) -> HubSpot:
    one = CrmSettings.model_validate({"hubspot_token": TOKEN})
    return HubSpot(one, transport=fake.transport(), sleep=lambda _: None)


def reads(fake: FakeHubSpot) -> list[list[str]]:
    found = [body for _, target, body in fake.requests if target.partition("?")[0].endswith("batch/read")]
    fake.requests.clear()
    return [[one["id"] for one in body["inputs"]] for body in found]


def test_one_webhook_and_one_sync(warehouse: Warehouse, settings: MailhouseSettings) -> None:
    fake = FakeHubSpot()
    for number in (1, 2, 3, 4):
        fake.put("contacts", number, START, email=f"p{number}@example.com", city="Bath")
    make_models(warehouse)
    rules = CrmRules.model_validate({"fields": {"city": "newest"}})
    with hubspot_of(fake) as hubspot:

        def sync(kind: type[WarehouseStore] = WarehouseStore) -> dict[str, int]:
            one = kind(warehouse, crm_settings(settings))
            return (
                Sync(one, [hubspot], rules, now=lambda: datetime.now(UTC), dry_run=kind is DryStore)
                .run()
                .counts
            )

        sync()
        identify(warehouse)
        sync()
        # search learns of nothing for now
        fake.lag = lambda: timedelta(hours=1)
        fake.edit("contacts", 1, LATER, city="York")
        fake.erase("contacts", 2)
        fake.archive("contacts", 3, LATER)
        told(warehouse, ("contact.propertyChange", 1, LATER), ("contact.privacyDeletion", 2, LATER),
             ("contact.deletion", 3, LATER))  # fmt: skip
        fake.requests.clear()
        assert sync(DryStore)["pulled"] >= 3
        assert not shown(warehouse)["2"][0]
        fake.requests.clear()
        counts = sync()
        assert counts["loaded"] == 3
        found = shown(warehouse)
        assert found["1"][1]["city"] == "York"
        assert [number for number, (gone, _) in found.items() if gone] in (["2", "3"], ["3", "2"])
        # all in one call, and one for those that were not there
        assert reads(fake) == [["1", "2", "3"], ["2", "3"]]
        # told twice, told late: that is stored, and costs nothing
        told(
            warehouse,
            ("contact.propertyChange", 1, LATER),
            ("contact.deletion", 2, LATER),
            changeSource="CRM",
        )
        assert sync()["loaded"] == 0
        assert reads(fake) == []


@pytest.mark.slow
def test_echoes_and_other_kinds_cost_no_call(warehouse: Warehouse, tmp_path: Path) -> None:
    fake, home = FakeHubSpot(), CrmSettings(home=tmp_path)
    for number in range(1, 251):
        fake.put("contacts", number, START, email=f"p{number}@example.com")
        fake.put("deals", number, START, dealname="Lamps")
    with hubspot_of(fake) as hubspot:
        load(warehouse, hubspot, "contact", settings=home)
        load(warehouse, hubspot, "deal", settings=home)
        fake.lag = lambda: timedelta(hours=1)
        written = {
            "push_id": "p", "object": "contact", "source": "hubspot", "external_id": "1", "contact_id": 1, "key": "1",
            "names": ["city"], "texts": ["Bath"], "is_new": False, "known_at": START, "status": "written",
            "reason": "", "record_at": LATER, "run_id": "", "recorded_at": datetime.now(UTC),
        }  # fmt: skip
        WarehouseStore(warehouse, home).add_pushes(pl.DataFrame([written], schema=dict(PUSH_ROWS)))
        told(warehouse, ("contact.propertyChange", 1, LATER), propertyName="city", propertyValue="Bath")
        told(warehouse, ("deal.propertyChange", 1, LATER), propertyName="amount", propertyValue="Bath")
        fake.requests.clear()
        load(warehouse, hubspot, "contact", settings=home)
        assert reads(fake) == []
        # the same value, of another record: a deal's number may be a contact's
        load(warehouse, hubspot, "deal", settings=home)
        assert reads(fake) == [["1"]]
        # whole batches
        later = LATER + timedelta(minutes=1)
        for number in range(1, 251):
            fake.edit("contacts", number, later, city="York")
        told(
            warehouse,
            *(("contact.propertyChange", number, later) for number in range(1, 251)),
            propertyName="city",
        )
        assert load(warehouse, hubspot, "contact", settings=home).loaded == 250
        assert [len(ids) for ids in reads(fake)] == [100, 100, 50]
        # a load that is broken off leaves them to the next
        later += timedelta(minutes=1)
        fake.edit("contacts", 7, later, city="Rome")
        told(warehouse, ("contact.propertyChange", 7, later))
        before = stored_cursor(warehouse, "hubspot", "contact.webhooks")
        fake.before = lambda path: fake.failures.append((403, {}, b"{}")) if "batch" in path else None
        with pytest.raises(CrmError, match="HubSpot"):
            load(warehouse, hubspot, "contact", settings=home)
        assert stored_cursor(warehouse, "hubspot", "contact.webhooks") == before
        fake.before = lambda path: None
        assert load(warehouse, hubspot, "contact", settings=home).loaded == 1
        assert shown(warehouse)["7"][1]["city"] == "Rome"


def test_of_a_merge_the_record_that_is_left_is_asked(warehouse: Warehouse, tmp_path: Path) -> None:
    fake, home = FakeHubSpot(), CrmSettings(home=tmp_path)
    for number in (1, 2, 3, 4):
        fake.put("contacts", number, START, email=f"p{number}@example.com")
    with hubspot_of(fake) as hubspot:
        load(warehouse, hubspot, "contact", settings=home)
        fake.lag = lambda: timedelta(hours=1)
        fake.merge("contacts", 1, 2, LATER)
        fake.merge("contacts", 3, 4, LATER, as_new=9)
        told(warehouse, ("contact.merge", 1, LATER), primaryObjectId=1, mergedObjectIds=[2])
        told(warehouse, ("contact.merge", 3, LATER), primaryObjectId=3, mergedObjectIds=[4], newObjectId=9)
        fake.requests.clear()
        load(warehouse, hubspot, "contact", settings=home)
    assert reads(fake) == [["1", "9"]]
    found = shown(warehouse)
    assert {number: row.get("merged_into") for number, (gone, row) in found.items() if gone} == {
        "2": "1", "3": "9", "4": "9",
    }  # fmt: skip


@pytest.mark.slow
def test_pipedrives_webhooks_tell_who_was_merged(warehouse: Warehouse, tmp_path: Path) -> None:
    fake = FakePipedrive()
    # the list of what was deleted says nothing of merges
    fake.names_merged = "loser"
    one = CrmSettings.model_validate({"pipedrive_token": PIPEDRIVE_TOKEN, "home": tmp_path})
    for number in (1, 2, 3):
        emails = [{"value": f"p{number}@example.com", "primary": True, "label": "work"}]
        fake.put("persons", name=f"P{number}", emails=emails)
    fake.sleep(60)
    with Pipedrive(one, transport=fake.transport, sleep=fake.sleep, clock=fake.clock) as crm:
        load(warehouse, crm, "contact", settings=one)
        fake.merge(1, 2)
        del fake.records["persons"][1]["_merge_what_id"]
        calls = [PIPEDRIVE.parse_webhook(json.dumps(call).encode(), {}) for call in fake.calls[-2:]]
        assert [rows[0]["type"] for rows in calls] == ["contact.merged", "contact.updated"]
        fake.sleep(60)
        store(warehouse, [row for rows in calls for row in rows])
        load(warehouse, crm, "contact", settings=one)
        found = shown(warehouse)
        assert {number: row.get("merged_into") for number, (gone, row) in found.items() if gone} == {"1": "2"}
        rows = warehouse.value("select count() from raw.crm_records")
        load(warehouse, crm, "contact", settings=one)
        assert warehouse.value("select count() from raw.crm_records") == rows


@pytest.mark.slow
def test_a_second_counts_only_where_it_is_over(warehouse: Warehouse) -> None:
    """What is dated by the second is known to be the newest if it was read after that second."""
    at = datetime.now(UTC).replace(microsecond=700_000) - timedelta(minutes=1)
    calls = [
        {"subscriptionType": "contact.propertyChange", "objectId": 1, "occurredAt": int(at.timestamp() * 1000)}
    ]  # fmt: skip
    store(warehouse, HUBSPOT.parse_webhook(json.dumps(calls).encode(), {}))
    since = datetime.now(UTC) - timedelta(hours=1)

    def ids(**more: bool) -> list[str]:
        return named(warehouse, "hubspot", "contact", since, **more).ids

    for moment, is_late, whole, exact in (
        (at - timedelta(seconds=1), True, ["1"], ["1"]),
        (at.replace(microsecond=0), False, ["1"], ["1"]),
        (at.replace(microsecond=0), True, [], ["1"]),
        (at, True, [], []),
    ):
        warehouse.execute(
            f"""
            insert into raw.crm_records (source, object, external_id, updated_at, is_deleted, properties, loaded_at)
            values ('hubspot', 'contact', '1', '{moment:%Y-%m-%d %H:%M:%S.%f}', false, '{{}}',
                '{at + timedelta(seconds=30 if is_late else 1):%Y-%m-%d %H:%M:%S}')
            """
        )
        assert (ids(has_whole_seconds=True), ids()) == (whole, exact), moment
        warehouse.execute("truncate table raw.crm_records")
