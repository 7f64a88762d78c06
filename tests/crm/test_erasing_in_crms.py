"""Whoever is erased goes from the CRMs, too: every record is answered for, and what is gone may be deleted again."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from hubspot_fake import TOKEN, FakeHubSpot
from hypothesis import given, settings
from hypothesis import strategies as st
from pipedrive_fake import TOKEN as PIPEDRIVE_TOKEN
from pipedrive_fake import FakePipedrive
from salesforce_fake import CLIENT_ID, CLIENT_SECRET, LOGIN, FakeSalesforce
from sqlalchemy import event
from test_salesforce import holds_to_contract

from crm.base import CrmError, CrmNotSupportedError, CrmRefusedError, CrmUnavailableError, Removed
from crm.erasing import erase_records, reach
from crm.hubspot import HubSpot
from crm.pipedrive import Pipedrive
from crm.salesforce import Salesforce
from crm.salesforce_login import forget_sessions
from crm.settings import CrmSettings
from crm.sql import SqlConnector, sql_connectors
from warehouse.errors import InputError

START = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = """
name: erp_contacts
source: erp
object: contacts
database: main
table: customers
columns: {external_id: id, email: mail, updated_at: {column: changed, timezone: UTC}}
"""


def hubspot(fake: FakeHubSpot, **more: object) -> HubSpot:
    settings = CrmSettings.model_validate({"hubspot_token": TOKEN, **more})
    return HubSpot(settings, transport=fake.transport(), sleep=lambda _: None)


def salesforce(fake: FakeSalesforce) -> Salesforce:
    forget_sessions()
    fake.check = holds_to_contract
    settings = CrmSettings.model_validate(
        {
            "salesforce_client_id": CLIENT_ID, "salesforce_client_secret": CLIENT_SECRET,
            "salesforce_login_url": LOGIN,
        }
    )  # fmt: skip
    return Salesforce.from_settings(settings, transport=httpx.MockTransport(fake), sleep=lambda _: None)


def pipedrive(fake: FakePipedrive) -> Pipedrive:
    settings = CrmSettings.model_validate({"pipedrive_token": PIPEDRIVE_TOKEN})
    return Pipedrive(settings, transport=fake.transport, sleep=fake.sleep, clock=fake.clock)


def database(folder: Path, *, more: str = "erases: true\n") -> SqlConnector:
    path = folder / "main.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "create table if not exists customers (id integer primary key, mail text, changed text);"
            "create table if not exists bills (customer integer references customers(id));"
        )
    connection.close()
    (folder / "sources").mkdir(exist_ok=True)
    (folder / "sources" / "erp_contacts.yaml").write_text(SOURCE + more)
    settings = CrmSettings.model_validate({"content_dir": folder, "sql_urls": {"main": f"sqlite:///{path}"}})
    return sql_connectors(settings)["erp"].from_settings(settings)


def told(results: Sequence[Removed]) -> dict[str, str]:
    return {one.external_id: one.status for one in results}


@pytest.mark.parametrize("version", ["v3", "2026-09"])
def test_hubspot_deletes_for_good_what_is_archived_too(version: str) -> None:
    fake = FakeHubSpot(version=version)
    for number in range(1, 5):
        fake.put("contacts", number, START, email=f"p{number}@example.com")
    fake.archive("contacts", 3, START)
    with hubspot(fake, hubspot_api_version=version) as crm:
        assert told(crm.erase("contact", ["1", "3", "99", "no number", "1"])) == {
            "1": "erased", "3": "erased", "99": "gone", "no number": "gone",
        }  # fmt: skip
        assert set(fake.records["contacts"]) == {2, 4}
        assert told(crm.erase("contact", ["1", "3"])) == {"1": "gone", "3": "gone"}
        assert crm.usage.by_what["permanent deletion"] == 2
        with pytest.raises(CrmNotSupportedError, match="cannot delete a deal"):
            crm.erase("deal", ["1"])


def test_a_merged_contact_of_hubspot_is_followed_only_to_who_is_named() -> None:
    fake = FakeHubSpot()
    for number in (1, 2, 3):
        fake.put("contacts", number, START, email=f"p{number}@example.com")
    fake.merge("contacts", 2, 1, START)
    with hubspot(fake) as crm:
        (kept,) = crm.erase("contact", ["1"])
        assert (kept.status, "merged into 2" in kept.reason) == ("refused", True)
        assert 2 in fake.records["contacts"]
        assert told(crm.erase("contact", ["1", "2"])) == {"1": "gone", "2": "erased"}
        assert set(fake.records["contacts"]) == {3}


def test_hubspots_answers_that_were_lost_and_its_refusals() -> None:
    fake = FakeHubSpot()
    fake.put("contacts", 1, START, email="p1@example.com")
    fake.put("contacts", 2, START, email="p2@example.com")
    with hubspot(fake) as crm:
        # deleted, and the answer is lost: the repetition finds nobody
        def lose(path: str) -> None:
            if path.endswith("gdpr-delete") and 1 in fake.records["contacts"]:
                fake.erase("contacts", 1)
                fake.failures.append((0, {}, b""))

        fake.before = lose
        assert told(crm.erase("contact", ["1"])) == {"1": "gone"}
        fake.before = lambda path: (
            fake.failures.append((403, {}, b'{"message": "scope"}')) if "gdpr" in path else None
        )
        with pytest.raises(CrmRefusedError, match="does not allow the permanent deletion"):
            crm.erase("contact", ["2"])
        fake.before = lambda path: (
            fake.failures.append((400, {}, b'{"message": "legal hold"}')) if "gdpr" in path else None
        )
        assert crm.erase("contact", ["2"]) == [Removed("2", "refused", "legal hold")]
        fake.before = lambda path: fake.failures.append((503, {}, b""))
        with pytest.raises(CrmUnavailableError):
            crm.erase("contact", ["2"])


def test_salesforce_deletes_by_collections_and_says_what_holds_a_record() -> None:
    fake = FakeSalesforce(now=START)
    ids = [fake.put(Email=f"p{number}@example.com", LastName="Pat") for number in range(450)]
    deleted, lost, master, locked, held, stuck = ids[:6]
    fake.delete(deleted)
    fake.delete(lost, merged_into=master)
    fake.locked[locked], fake.locked[stuck] = 2, 99
    fake.held.add(held)
    with salesforce(fake) as crm:
        (kept,) = crm.erase("contact", [lost])
        assert (kept.status, master in kept.reason) == ("refused", True)
        results = crm.erase("contact", [*ids, "003000000099999AAA", "strange"])
        statuses = told(results)
        reasons = {one.external_id: one.reason for one in results}
        assert {number: statuses.pop(number) for number in ids[:6]} == {
            deleted: "gone", lost: "gone", master: "erased", locked: "erased", held: "refused", stuck: "failed",
        }  # fmt: skip
        assert "DELETE_FAILED" in reasons[held]
        assert (statuses.pop("003000000099999AAA"), statuses.pop("strange")) == ("gone", "gone")
        assert set(statuses.values()) == {"erased"}
        assert {record.id for record in fake.records["Contact"].values() if not record.is_deleted} == {
            held,
            stuck,
        }
        # three collections, and what was locked four times more
        assert crm.usage.by_what["deletion"] == 3 + 4


def test_pipedrive_deletes_one_by_one() -> None:
    fake = FakePipedrive()
    numbers = [fake.put("persons", name=f"P {number}") for number in range(3)]
    with pipedrive(fake) as crm:
        wanted = [str(numbers[0]), str(numbers[1]), "99", "x"]
        assert told(crm.erase("contact", wanted)) == dict(
            zip(wanted, ("erased", "erased", "gone", "gone"), strict=True)
        )
        assert list(fake.alive("persons")) == [str(numbers[2])]
        assert fake.costs.total() == 3 * 3
        assert told(crm.erase("contact", wanted[:1])) == {wanted[0]: "gone"}
        fake.failures.append(
            (403, {"content-type": "application/json"}, b'{"success": false, "error": "no"}')
        )
        with pytest.raises(CrmRefusedError, match="refuses deletion of a person"):
            crm.erase("contact", [str(numbers[2])])


def test_a_database_loses_rows_only_where_its_source_says_so(tmp_path: Path) -> None:
    with database(tmp_path, more="writes: {last_name: mail}\n") as crm:
        assert "contact" in crm.capabilities.pushes
        assert not reach([("erp", "1")], [crm])
        with pytest.raises(CrmNotSupportedError, match="cannot delete"):
            crm.erase("contact", ["1"])
    with pytest.raises(InputError, match="erases"):
        database(tmp_path, more="erases: perhaps\n")
    with database(tmp_path) as crm, sqlite3.connect(tmp_path / "main.db") as people:
        people.executemany("insert into customers values (?, ?, ?)", [(n, "m", "2026") for n in range(1, 5)])
        people.commit()
        assert told(crm.erase("contact", ["1", "2", "77", "x"])) == {
            "1": "erased", "2": "erased", "77": "gone", "x": "gone",
        }  # fmt: skip
        assert people.execute("select id from customers order by id").fetchall() == [(3,), (4,)]
        assert told(crm.erase("contact", ["1"])) == {"1": "gone"}
    people.close()


def test_a_row_that_others_need_stays_and_says_so(tmp_path: Path) -> None:
    with database(tmp_path) as crm:
        event.listen(
            crm._engine, "connect", lambda made, _: made.execute("pragma foreign_keys = on"), insert=True
        )
        with sqlite3.connect(tmp_path / "main.db") as people:
            people.executemany("insert into customers values (?, ?, ?)", [(1, "m", "x"), (2, "m", "x")])
            people.execute("insert into bills values (1)")
        people.close()
        kept, gone = crm.erase("contact", ["1", "2"])
        assert (kept.status, "FOREIGN KEY" in kept.reason, gone.status) == ("refused", True, "erased")


def test_all_crms_are_asked_before_one_that_fails_is_told(tmp_path: Path) -> None:
    home = CrmSettings.model_validate({"home": tmp_path})
    hub, pipe = FakeHubSpot(), FakePipedrive()
    hub.put("contacts", 1, START, email="p1@example.com")
    number = str(pipe.put("persons", name="P"))
    records = [("hubspot", "1"), ("pipedrive", number), ("files", "7"), ("pipedrive", "99")]
    with hubspot(hub) as one, pipedrive(pipe) as two:
        hub.before = lambda path: hub.failures.append((503, {}, b""))
        with pytest.raises(CrmUnavailableError, match="HubSpot answers 503"):
            erase_records(home, records, [one, two])
        assert not pipe.alive("persons")
        hub.before = lambda path: None
        hub.failures.clear()
        assert erase_records(home, records, [one, two]) == {
            ("hubspot", "1"): "", ("pipedrive", number): "", ("pipedrive", "99"): "",
        }  # fmt: skip
    assert not hub.records["contacts"]


def test_a_record_that_could_not_be_deleted_yet_is_an_error(tmp_path: Path) -> None:
    fake = FakeSalesforce(now=START)
    number = fake.put(Email="p@example.com", LastName="Pat")
    fake.locked[number] = 5
    home = CrmSettings.model_validate({"home": tmp_path})
    with salesforce(fake) as crm:
        with pytest.raises(CrmError, match=f"has not deleted {number}: UNABLE_TO_LOCK_ROW"):
            erase_records(home, [("salesforce", number)], [crm])
        assert erase_records(home, [("salesforce", number)], [crm]) == {("salesforce", number): ""}


@settings(max_examples=40)
@given(
    merges=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=5),
    archived=st.sets(st.integers(1, 6)),
    wanted=st.lists(st.integers(1, 8), max_size=8),
)
def test_nobody_else_is_ever_deleted(
    merges: list[tuple[int, int]], archived: set[int], wanted: list[int]
) -> None:
    fake = FakeHubSpot()
    for number in range(1, 7):
        fake.put("contacts", number, START, email=f"p{number}@example.com")
    contacts = fake.records["contacts"]
    for winner, loser in merges:
        if winner != loser and winner in contacts and loser in contacts:
            fake.merge("contacts", winner, loser, START)
    for number in archived & contacts.keys():
        fake.archive("contacts", number, START)
    before = set(contacts)
    with hubspot(fake) as crm:
        results = crm.erase("contact", [str(number) for number in wanted])
    assert [one.external_id for one in results] == [str(number) for number in wanted]
    assert set(contacts) == before - set(wanted)
    for one in results:
        left = fake.resolve("contacts", int(one.external_id))
        assert one.is_away == (left not in contacts)
