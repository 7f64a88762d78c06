"""Whoever was erased is not loaded again, by any of the names they had, and nothing of them is kept on the way."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.erasing import Place, hashed_names, note_hashes, readmit
from privacy.person import Person
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.erasures import (
    Erased,
    _is_erased,
    erased_people,
    keyed_hash,
    normalised_email,
    normalised_phone,
    record_key,
    without_erased,
)
from warehouse.errors import SettingsError
from warehouse.loads import (
    EVENT_COLUMNS,
    append_events,
    load_consents,
    load_crm_records,
    load_events,
    quarantine,
)
from warehouse.settings import MailhouseSettings

KEY = b"a key of sixteen bytes, at least"
AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
GONE = Person(
    contact_ids={77},
    emails={"gone@example.com"},
    phones={"4915112345678"},
    records={("crm", "g-1")},
    visitors={("web", "v-1")},
    message_ids={"6f0b1f6e-6f0e-5b1e-9a53-2d6a3c1c7d10"},
)


def event(**values: str) -> dict[str, object]:
    return {
        **{name: "" for name, kind in EVENT_COLUMNS.items() if kind == pl.String()},
        "type": "page.viewed", "source": "web", "occurred_at": AT, "received_at": AT, "properties": "{}", **values,
    }  # fmt: skip


def frame(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), infer_schema_length=None).select(
        pl.col(name).cast(kind) for name, kind in EVENT_COLUMNS.items()
    )


@pytest.fixture
def place(warehouse: Warehouse, settings: MailhouseSettings, tmp_path: Path):
    """One person has been erased."""
    warehouse.settings = settings
    erased_people(warehouse, max_age=0)
    note_hashes(
        warehouse, settings.erasure_secret(), hashed_names(GONE), erasure_id="one", pseudonym="erased-1"
    )
    erased_people(warehouse, max_age=0)
    sender = SenderSettings(home=tmp_path, warehouse_port=settings.warehouse_port)
    with Ledger.open(sender) as ledger:
        yield Place(sender, warehouse, ledger)


def test_events_of_the_erased_are_refused_by_every_name_and_others_are_loaded(place: Place):
    refused = [
        event(event_id="e1", email=" Gone@Example.com\t"),
        event(event_id="e2", source="crm", external_id="g-1"),
        event(event_id="e3", anonymous_id="v-1"),
        event(event_id="e4", type="opened", message_id="6f0b1f6e-6f0e-5b1e-9a53-2d6a3c1c7d10"),
        event(event_id="e5", type="unsubscribed", properties='{"phone": "+49 151 12345678"}'),
    ]
    others = [
        event(event_id="o1", email="stays@example.com"),
        event(event_id="o2", source="other", external_id="g-1"),
        # the same device in other hands
        event(event_id="o3", anonymous_id="v-1", email="stays@example.com"),
        event(event_id="o4"),
    ]
    result = load_events(place.warehouse, frame(*refused, *others))
    assert (result.read, result.loaded, result.refused, result.quarantined) == (9, 4, 5, 0)
    again = append_events(place.warehouse, frame(*refused, event(event_id="o5", email="new@example.com")))
    assert (again.read, again.loaded, again.refused) == (6, 1, 5)
    stored = place.warehouse.frame("select event_id from raw.events order by event_id")["event_id"].to_list()
    assert stored == ["o1", "o2", "o3", "o4", "o5"]


def test_records_and_consents_of_the_erased_are_refused(place: Place):
    records = pl.DataFrame(
        [
            {"source": "crm", "object": "contact", "external_id": "g-1", "properties": "{}"},
            # another system with the same address
            {"source": "new", "object": "contact", "external_id": "9", "properties": '{"email": "GONE@example.com"}'},
            {"source": "new", "object": "contact", "external_id": "8", "properties": '{"Phone": "0049-151-12345678"}'},
            {"source": "crm", "object": "deal", "external_id": "g-1", "properties": '{"amount": 3}'},
            {"source": "new", "object": "contact", "external_id": "7", "properties": '{"email": "a@example.com"}'},
        ]
    ).with_columns(updated_at=pl.lit(AT).cast(pl.Datetime("ms", "UTC")))  # fmt: skip
    result = load_crm_records(place.warehouse, records)
    assert (result.loaded, result.refused) == (2, 3)
    kept = place.warehouse.frame(
        "select object::String, external_id from raw.crm_records order by external_id"
    )
    assert kept.rows() == [("contact", "7"), ("deal", "g-1")]
    consents = pl.DataFrame(
        [
            {"consent_id": "c1", "email": "gone@example.com"},
            {"consent_id": "c2", "email": "a@example.com"},
        ]
    ).with_columns(
        channel=pl.lit("email"), purpose=pl.lit("marketing"), is_granted=pl.lit(True), basis=pl.lit("opt_in"),
        occurred_at=pl.lit(AT).cast(pl.Datetime("ms", "UTC")),
    )  # fmt: skip
    result = load_consents(place.warehouse, consents)
    assert (result.loaded, result.refused) == (1, 1)


def test_nothing_of_the_erased_goes_to_quarantine(place: Place):
    # without a type it could not be loaded, whoever it is about
    load_events(place.warehouse, frame(event(event_id="bad", type="", email="gone@example.com")))
    assert place.warehouse.value("select count() from raw.quarantined_rows") == 0
    rows = pl.DataFrame(
        {
            "file": ["f", "f"],
            "line": [1, 2],
            "reason": ["?", "?"],
            "content": ["x;Gone@example.com;", "x;b@example.com"],
        }
    )
    quarantine(place.warehouse, rows, source="s", object="contact")
    content = place.warehouse.frame("select content from raw.quarantined_rows order by line")
    assert content["content"].to_list() == ["", "x;b@example.com"]


def test_whoever_is_readmitted_is_loaded_again_by_all_names(place: Place):
    assert readmit(place, email="somebody@example.com") == 0
    assert readmit(place, email="GONE@example.com ") == len(list(hashed_names(GONE)))
    assert readmit(place, email="gone@example.com") == 0
    result = load_events(
        place.warehouse,
        frame(
            event(event_id="e1", email="gone@example.com"),
            event(event_id="e2", source="crm", external_id="g-1"),
        ),
    )
    assert (result.loaded, result.refused) == (2, 0)


def test_without_the_key_nothing_is_loaded(place: Place, settings: MailhouseSettings, tmp_path: Path):
    other = tmp_path / "other"
    strange = settings.model_copy(update={"home": other})
    with Warehouse.connect(strange) as warehouse, pytest.raises(SettingsError, match="another key"):
        load_events(warehouse, frame(event(event_id="x")))
    assert place.warehouse.value("select count() from raw.events") == 0


def test_hashes_tell_nothing_without_the_key_and_kinds_apart():
    assert keyed_hash(KEY, "email", "1") != keyed_hash(KEY, "phone", "1")
    assert keyed_hash(KEY, "email", "1") != keyed_hash(b"another key of sixteen", "email", "1")
    assert record_key("a", "b:c") != record_key("a:b", "c")


_names = st.text(st.sampled_from("abXY@. \t1"), max_size=6)


@given(
    st.lists(
        st.fixed_dictionaries({"email": _names, "external_id": _names, "phone": _names}),
        min_size=1,
        max_size=8,
    ),
    st.sets(_names, max_size=3),
    st.sets(_names, max_size=3),
)
def test_the_filter_of_frames_does_what_one_row_at_a_time_would(rows, emails, ids):
    hashes = {
        "email": frozenset(
            keyed_hash(KEY, "email", normalised_email(one)) for one in emails if normalised_email(one)
        ),
        "record": frozenset(keyed_hash(KEY, "record", record_key("crm", one)) for one in ids if one),
        "phone": frozenset(
            keyed_hash(KEY, "phone", normalised_phone(one)) for one in ids if normalised_phone(one)
        ),
    }
    erased = Erased(hashes, KEY)
    given_rows = pl.DataFrame(
        [
            {"source": "crm", "email": one["email"], "external_id": one["external_id"],
             "properties": json.dumps({"phone": one["phone"]})}
            for one in rows
        ]
    )  # fmt: skip
    expected = [
        normalised_email(one["email"]) in {normalised_email(x) for x in emails} - {""}
        or (one["external_id"] != "" and one["external_id"] in ids)
        or normalised_phone(one["phone"]) in {normalised_phone(x) for x in ids} - {""}
        for one in rows
    ]
    assert _is_erased(erased, given_rows).to_list() == expected


def test_who_was_never_erased_costs_no_look_at_rows(warehouse: Warehouse):
    given_rows = frame(event(event_id="a", email="x@example.com"))
    assert without_erased(warehouse, given_rows) is given_rows
