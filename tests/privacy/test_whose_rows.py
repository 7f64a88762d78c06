"""Whom a name leads to, and that it leads to nobody else; what is exported and put right."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from privacy.erasing import Place
from privacy.exporting import export
from privacy.person import find_person
from privacy.restricting import parsed_changes, rectify
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.loads import load_consents, load_crm_records, load_events
from warehouse.settings import MailhouseSettings

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
MOMENT = pl.lit(AT).cast(pl.Datetime("ms", "UTC"))


@pytest.fixture
def place(warehouse: Warehouse, settings: MailhouseSettings, tmp_path: Path):
    """Ann, who changed her address, and Bob, who has her telephone."""
    records = [
        ("crm", "1", {"email": "Ann@Old.example", "phone": "+44 20 7946 0000", "first_name": "An"}, 0),
        ("crm", "1", {"email": "ann@new.example", "phone": "+44 20 7946 0000", "first_name": "An"}, 1),
        ("shop", "9", {"email": "ann@new.example"}, 0),
        ("crm", "2", {"email": "bob@new.example", "phone": "+442079460000", "first_name": "<b>Bob</b>"}, 0),
    ]
    for source, external_id, properties, hours in records:
        row = {
            "source": source, "object": "contact", "external_id": external_id, "properties": json.dumps(properties),
        }  # fmt: skip
        load_crm_records(
            warehouse, pl.DataFrame([row]).with_columns(updated_at=MOMENT + pl.duration(hours=hours))
        )
    events = [
        {
            "event_id": "e1",
            "source": "web",
            "email": "ann@new.example",
            "anonymous_id": "v1",
            "properties": "{}",
        },
        {
            "event_id": "e2",
            "source": "web",
            "email": "",
            "anonymous_id": "v1",
            "properties": '{"a": "</td><script>"}',
        },
        {
            "event_id": "e3",
            "source": "web",
            "email": "bob@new.example",
            "anonymous_id": "v2",
            "properties": "{}",
        },
    ]
    load_events(warehouse, pl.DataFrame(events).with_columns(type=pl.lit("page.viewed"), occurred_at=MOMENT))
    consent = {
        "consent_id": "c", "email": "ann@old.example", "channel": "email", "purpose": "p", "is_granted": True,
        "basis": "b",
    }  # fmt: skip
    load_consents(warehouse, pl.DataFrame([consent]).with_columns(occurred_at=MOMENT))
    sender = SenderSettings(home=tmp_path, warehouse_port=settings.warehouse_port)
    with Ledger.open(sender) as ledger:
        yield Place(sender, warehouse, ledger)


@pytest.mark.parametrize(
    "name",
    [{"email": "ANN@old.example "}, {"email": "ann@new.example"}, {"record": "crm:1"}, {"record": "shop:9"}],
)
def test_every_name_leads_to_all_others_and_to_nobody_else(place: Place, name: dict[str, str]):
    person = find_person(place.warehouse, place.ledger, **name)
    assert person.emails == {"ann@old.example", "ann@new.example"}
    assert person.records == {("crm", "1"), ("shop", "9")}
    assert person.visitors == {("web", "v1")}
    assert person.event_ids == {"e1", "e2"}
    assert "Ann@Old.example" in person.spellings


def test_a_name_of_nobody_or_of_several_is_an_error(place: Place):
    for name in (
        {"email": "who@example.com"},
        {"contact_id": 5},
        {"record": "crm:77"},
        {"record": "crm"},
        {},
    ):
        with pytest.raises(InputError):
            find_person(place.warehouse, place.ledger, **name)
    with pytest.raises(InputError, match="2 records have that number"):
        find_person(place.warehouse, place.ledger, phone="0044 20 79460000")


def test_an_export_has_all_of_one_person_and_nothing_of_others(place: Place, tmp_path: Path):
    person = find_person(place.warehouse, place.ledger, email="ann@new.example")
    done = export(place, person, tmp_path / "out", AT)
    assert done.counts == {"raw.consents": 1, "raw.crm_records": 3, "raw.events": 2}
    said = json.loads(done.json.read_text())
    assert [store["store"] for store in said["stores"]] == ["raw.consents", "raw.crm_records", "raw.events"]
    page = done.html.read_text()
    for text in (done.json.read_text(), page):
        assert "ann@new.example" in text and "bob@" not in text and "Bob" not in text
    assert "<script" not in page and "&lt;script&gt;" in page
    assert done.json.stat().st_mode & 0o077 == 0


def test_what_is_put_right_is_the_newest_version_of_each_record(place: Place):
    person = find_person(place.warehouse, place.ledger, email="ann@new.example")
    with pytest.raises(InputError, match="frist_name"):
        parsed_changes(["frist_name=Ann"])
    now = datetime(2026, 6, 2, tzinfo=UTC)
    assert rectify(place.warehouse, person, parsed_changes(["first_name=Ann"]), now) == ["crm:1", "shop:9"]
    rows = place.warehouse.frame(
        "select external_id, argMax(properties.first_name::String, updated_at),"
        " argMax(properties.email::String, updated_at) from raw.crm_records group by external_id order by external_id"
    )
    assert rows.rows() == [
        ("1", "Ann", "ann@new.example"), ("2", "<b>Bob</b>", "bob@new.example"), ("9", "Ann", "ann@new.example"),
    ]  # fmt: skip
