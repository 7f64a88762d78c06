"""Files of every format, good and bad: what is good loads once, what is bad says where and why."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from crm import files
from crm.files import IngestReport, consent_ids, ingest_files
from crm.specs import SOURCES, FileSource, load_source, load_sources
from warehouse.client import Warehouse
from warehouse.errors import InputError

NOW = datetime(2011, 6, 27, 9, 30, tzinfo=UTC)
ROOT = Path(__file__).parents[2]

CONTACTS = """
    name: people
    source: shop
    object: contacts
    files: inbox
    columns:
      external_id: id
      email: mail
      first_name: first
      updated_at: changed
"""
ORDERS = """
    name: orders
    source: shop
    object: orders
    files: inbox
    columns:
      order_id: order
      occurred_at: {column: at, format: "%d.%m.%Y %H:%M", timezone: Europe/London}
      external_id: customer
      product_id: product
      name: title
      quantity: quantity
      unit_price: price
      currency: {value: GBP}
    cancelled: {column: order, starts_with: C}
"""
EVENTS = """
    name: feed
    source: feed
    object: events
    files: inbox/*.jsonl
"""


class Place:
    """A content folder and a home folder, and what a test does with them."""

    def __init__(self, root: Path, warehouse: Warehouse) -> None:
        self.root = root
        self.home = root / "home"
        self.inbox = self.home / "inbox"
        self.inbox.mkdir(parents=True)
        self.warehouse = warehouse

    def source(self, text: str) -> FileSource:
        text = textwrap.dedent(text)
        name = text.split("name: ", 1)[1].split("\n", 1)[0]
        path = self.root / "content" / "sources" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return load_source(path)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.inbox / name
        path.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
        return path

    def ingest(self, source: FileSource | str, *, now: datetime = NOW, run_id: str = "run") -> IngestReport:
        source = self.source(source) if isinstance(source, str) else source
        return ingest_files(self.warehouse, source, base_dir=self.home, run_id=run_id, now=now)

    def quarantined(self) -> list[tuple[Any, ...]]:
        return self.warehouse.frame(
            "select file, line, reason from raw.quarantined_rows order by file, line"
        ).rows()

    def properties(self, table: str = "raw.crm_records", key: str = "external_id") -> dict[str, Any]:
        rows = self.warehouse.frame(f"select {key}, toString(properties) from {table} order by 1").rows()
        return {name: json.loads(text) for name, text in rows}


@pytest.fixture
def place(tmp_path: Path, warehouse: Warehouse) -> Place:
    return Place(tmp_path, warehouse)


def counts(report: IngestReport) -> tuple[int, int, int, int]:
    return report.rows, report.loaded, report.duplicates, report.quarantined


# Contacts


def test_contacts_from_csv_with_true_line_numbers(place: Place) -> None:
    place.write(
        "a.csv",
        b"\xef\xbb\xbfid,mail,first,changed,colour\r\n"  # 1
        b'1,ann@example.com,"Ann\r\nMarie",2011-01-01T00:00:00Z,red\r\n'  # 2 and 3
        b"2,no address,Ben,2011-01-01T00:00:00Z,blue\r\n"  # 4
        b"\r\n"  # 5
        b",x@example.com,Cy,2011-01-01T00:00:00Z,\r\n"  # 6
        b"4,dee@example.com,Dee,yesterday,\r\n"  # 7
        b"5,eve@example.com,Eve,2011-01-01T00:00:00Z\r\n"  # 8
        b"6,f\xe9e@example.com,Fee,2011-01-01T00:00:00Z,\r\n"  # 9
        b"7, gus@example.com ,Gus,2011-01-01T00:00:00+02:00, \r\n"  # 10
        b"8,hal@example.com,Hal,,\r\n"  # 11
        b"9,,Ida,2011-01-01T00:00:00Z,green",  # 12
    )
    report = place.ingest(CONTACTS)
    assert counts(report) == (9, 3, 0, 6)
    assert place.quarantined() == [
        ("inbox/a.csv", 4, 'email "no address" is no e-mail address'),
        ("inbox/a.csv", 6, "external_id is missing"),
        ("inbox/a.csv", 7, 'updated_at "yesterday" is no ISO 8601 time'),
        ("inbox/a.csv", 8, "malformed CSV: 4 fields where the header has 5"),
        ("inbox/a.csv", 9, "not utf-8 text: byte 4 of the line is 0xE9"),
        ("inbox/a.csv", 11, "updated_at is missing"),
    ]
    assert set(report.examples) == {
        f"{file}:{line}: {reason}" for file, line, reason in place.quarantined()[:5]
    }
    assert place.properties() == {
        "1": {"email": "ann@example.com", "first_name": "Ann\r\nMarie", "colour": "red"},
        "7": {"email": "gus@example.com", "first_name": "Gus"},
        "9": {"first_name": "Ida", "colour": "green"},
    }
    content = place.warehouse.value("select content from raw.quarantined_rows where line = 4")
    assert content == "2,no address,Ben,2011-01-01T00:00:00Z,blue"


def test_a_stray_quote_costs_its_own_line_only(place: Place) -> None:
    lines = ["id,mail,first,changed"]
    lines += [f"{number},p{number}@example.com,Pat,2011-01-01T00:00:00Z" for number in range(2, 101)]
    lines[1] = '2,"p2@example.com,Pat,2011-01-01T00:00:00Z'  # opens, meets its match on line 50
    lines[49] = '50,"p50@example.com"x,Pat,2011-01-01T00:00:00Z'
    lines[99] = '100,p100@example.com,"Pat,2011-01-01T00:00:00Z'  # opens and never closes
    place.write("a.csv", "\n".join(lines) + "\n")
    report = place.ingest(CONTACTS)
    assert [line for _, line, _ in place.quarantined()] == [2, 50, 100]
    assert counts(report) == (99, 96, 0, 3)


def test_loading_a_file_again_replaces_its_quarantine(place: Place) -> None:
    place.write(
        "a.csv",
        "id,mail,first,changed\n1,bad,A,2011-01-01T00:00:00Z\n2,b@example.com,B,2011-01-01T00:00:00Z\n",
    )
    place.write("b.csv", "id,mail,first,changed\n3,worse,A,2011-01-01T00:00:00Z\n")
    assert counts(place.ingest(CONTACTS)) == (3, 1, 0, 2)
    assert counts(place.ingest(CONTACTS)) == (3, 0, 1, 2)
    assert len(place.quarantined()) == 2
    place.write("a.csv", "id,mail,first,changed\n1,a@example.com,A,2011-01-01T00:00:00Z\n")
    assert counts(place.ingest(CONTACTS)) == (2, 1, 0, 1)
    assert [file for file, _, _ in place.quarantined()] == ["inbox/b.csv"]


def test_contacts_from_parquet_and_json_lines_keep_their_types(place: Place) -> None:
    frame = pl.DataFrame(
        {
            "id": [1, 2, None],
            "mail": ["a@example.com", "b@example.com", "c@example.com"],
            "first": ["Ann", None, "Cy"],
            "changed": pl.Series([NOW, NOW, NOW], dtype=pl.Datetime("us", "UTC")),
            "score": [1.5, float("nan"), 2.0],
            "vip": [True, False, None],
            "born": [date(1990, 1, 2), None, None],
            "tags": [["a", "b"], [], None],
        }
    )
    frame.write_parquet(place.inbox / "a.parquet")
    assert counts(place.ingest(CONTACTS)) == (3, 2, 0, 1)
    assert place.quarantined() == [("inbox/a.parquet", 3, "external_id is missing")]
    assert place.properties() == {
        "1": {
            "email": "a@example.com",
            "first_name": "Ann",
            "score": 1.5,
            "vip": True,
            "born": "1990-01-02",
            "tags": ["a", "b"],
        },
        "2": {"email": "b@example.com", "vip": False, "tags": []},
    }
    place.write(
        "b.jsonl",
        b'\xef\xbb\xbf{"id": 7, "mail": "g@example.com", "changed": "2011-01-01T00:00:00Z", '
        b'"deep": {"n": [1, 2.5]}}\n'
        b"\n"
        b'{"id": "8", "mail": "h@example.com", "changed": "2011-01-01T00:00:00Z", "first": "Hal",}\n'
        b'["id", 9]\n'
        b'{"id": "9", "mail": "\\ud83d", "changed": "2011-01-01T00:00:00Z"}\n'
        b'{"id": "10", "mail": "j@example.com", "changed": NaN}\n'
        b'{"id": "11", "mail": "k@example.com", "changed": "2011-01-01T00:00:00Z", "x": "\xff"}\n'
        b'{"id": "12", "mail": "l@example.com", "changed": "2011-01-01T00:00:00Z"}',
    )
    report = place.ingest(CONTACTS)
    assert counts(report) == (3 + 7, 2, 2, 1 + 5)
    reasons = {line: reason for file, line, reason in place.quarantined() if file.endswith("jsonl")}
    assert sorted(reasons) == [3, 4, 5, 6, 7]
    assert reasons[3].startswith("bad JSON: ")
    assert reasons[4] == "bad JSON: the line is no JSON object"
    assert reasons[5] == "bad JSON: half of a surrogate pair"
    assert reasons[6] == "bad JSON: NaN is no JSON"
    assert reasons[7].startswith("not utf-8 text: byte ")
    assert place.properties()["7"] == {"email": "g@example.com", "deep": {"n": [1, 2.5]}}


def test_contacts_without_a_time_of_change_are_versions_by_content(place: Place) -> None:
    text = CONTACTS.replace("      updated_at: changed\n", "")
    path = place.write("a.csv", "id,mail,first\n1,a@example.com,Ann\n2,b@example.com,Ben\n")
    assert counts(place.ingest(text)) == (2, 2, 0, 0)
    # touched, but not changed
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert counts(place.ingest(text, now=datetime(2011, 7, 1, tzinfo=UTC))) == (2, 0, 2, 0)
    place.write("a.csv", "first,id,mail\nAnn,1,a@example.com\nBenjamin,2,b@example.com\n")
    assert counts(place.ingest(text, now=datetime(2011, 7, 2, tzinfo=UTC))) == (2, 1, 1, 0)
    versions = place.warehouse.frame(
        "select external_id, updated_at, properties.first_name::String n from raw.crm_records order by all"
    ).rows()
    assert versions == [
        ("1", NOW, "Ann"),
        ("2", NOW, "Ben"),
        ("2", datetime(2011, 7, 2, tzinfo=UTC), "Benjamin"),
    ]


def test_files_that_disagree_settle_on_the_newer(place: Place) -> None:
    text = CONTACTS.replace("      updated_at: changed\n", "")
    for name, first, age in (("a.csv", "Ann", 100), ("b.csv", "Anna", 50)):
        path = place.write(name, f"id,mail,first\n1,a@example.com,{first}\n")
        os.utime(path, (1_300_000_000 - age, 1_300_000_000 - age))
    assert place.ingest(text).loaded == 2
    # no flip-flop: later runs find both versions
    assert place.ingest(text, now=datetime(2011, 7, 1, tzinfo=UTC)).loaded == 0
    newest = "select argMax(properties.first_name::String, updated_at) from raw.crm_records"
    assert place.warehouse.value(newest) == "Anna"


def test_consents_of_contacts(place: Place) -> None:
    place.write(
        "a.csv",
        """\
        id,mail,first,changed,optin,optin_at
        1,a@example.com,Ann,2011-01-01T00:00:00Z,yes,2011-01-01
        2,b@example.com,Ben,2011-01-01T00:00:00Z,No,2011-01-02T10:00:00Z
        3,c@example.com,Cy,2011-01-01T00:00:00Z,,
        4,d@example.com,Dee,2011-01-01T00:00:00Z,yes,
        5,e@example.com,Eve,2011-01-01T00:00:00Z,perhaps,2011-01-01
        """,
    )
    text = textwrap.dedent(CONTACTS) + textwrap.dedent(
        """
        consents:
          - purpose: {value: marketing}
            basis: {value: consent}
            is_granted: optin
            occurred_at: {column: optin_at, timezone: Europe/London}
            text_version: {value: v1}
        """
    )
    report = place.ingest(text)
    assert (*counts(report), report.consents) == (5, 3, 0, 2, 2)
    assert [reason for _, _, reason in place.quarantined()] == [
        "occurred_at is missing",
        'is_granted "perhaps" is neither true nor false',
    ]
    rows = place.warehouse.frame(
        "select external_id, email, channel, purpose, is_granted, basis, text_version, occurred_at, source,"
        " consent_id from raw.consents order by external_id"
    ).rows()
    assert [row[:9] for row in rows] == [
        (
            "1",
            "a@example.com",
            "email",
            "marketing",
            True,
            "consent",
            "v1",
            datetime(2011, 1, 1, tzinfo=UTC),
            "shop",
        ),
        (
            "2",
            "b@example.com",
            "email",
            "marketing",
            False,
            "consent",
            "v1",
            datetime(2011, 1, 2, 10, tzinfo=UTC),
            "shop",
        ),
    ]
    assert all(uuid.UUID(row[9]).version == 5 for row in rows)
    assert place.ingest(text).consents == 0
    assert "optin" not in place.properties()["1"]


def test_consent_ids_are_uuid5() -> None:
    namespace = uuid.UUID(bytes=files._CONSENTS_NAMESPACE)
    keys = ["a", "ü\x1fb", ""]
    assert consent_ids(keys) == [str(uuid.uuid5(namespace, key)) for key in keys]


# Orders

ORDER_HEAD = "order,at,customer,product,title,quantity,price\n"


def test_orders_group_lines_wherever_they_stand(place: Place) -> None:
    place.write(
        "a.csv",
        ORDER_HEAD
        + """\
1,01.07.2011 10:00,7,A,Lamp,2,2.50
C2,02.01.2011 10:00,,B,,-1,1
1,01.07.2011 09:59,7,A,Lamp,2,2.50
1,01.07.2011 10:00,7,B,"Cup, blue",0,-0.10
""",
    )
    report = place.ingest(ORDERS)
    assert counts(report) == (4, 2, 0, 0)
    rows = place.warehouse.frame(
        "select event_id, type, source, external_id, occurred_at, received_at from raw.events order by 1"
    ).rows()
    assert rows == [
        ("shop:order:1", "order.placed", "shop", "7", datetime(2011, 7, 1, 8, 59, tzinfo=UTC), NOW),
        ("shop:order:C2", "order.cancelled", "shop", "", datetime(2011, 1, 2, 10, tzinfo=UTC), NOW),
    ]
    assert place.properties("raw.events", "event_id")["shop:order:1"] == {
        "order_id": "1",
        "currency": "GBP",
        "country": "",
        "items": [
            {"line_number": 1, "product_id": "A", "name": "Lamp", "quantity": 2, "unit_price": "2.50"},
            {"line_number": 2, "product_id": "A", "name": "Lamp", "quantity": 2, "unit_price": "2.50"},
            {"line_number": 3, "product_id": "B", "name": "Cup, blue", "quantity": 0, "unit_price": "-0.10"},
        ],
    }
    assert counts(place.ingest(ORDERS)) == (4, 0, 2, 0)


def test_an_order_with_a_bad_line_waits_and_then_loads_whole(place: Place) -> None:
    lines = [
        "1,01.07.2011 10:00,7,A,Lamp,2,2.50",  # 2
        "2,01.07.2011 10:00,7,A,Lamp,2,free",  # 3
        "2,01.07.2011 10:00,7,B,Cup,2,1.00",  # 4
        "3,27.03.2011 01:30,7,A,Lamp,2,1",  # 5: the clock skips this half hour
        "4,01.07.2011 10:00,7,A,Lamp,1.5,1",  # 6
        ",01.07.2011 10:00,7,A,Lamp,1,1",  # 7
        "5,01.07.2011 10:00,7,A,Lamp,1,1",  # 8
        "5,01.07.2011 10:00,7,A,La,mp,1,1",  # 9: cannot be read, so 5 and 6 wait
        "6,01.07.2011 10:00,7,A,Lamp,1,1",  # 10
        "7,01.07.2011 10:00,7,A,Lamp,1,1",  # 11
    ]
    place.write("a.csv", ORDER_HEAD + "\n".join(lines))
    assert counts(place.ingest(ORDERS)) == (10, 2, 0, 8)
    assert [(line, reason) for _, line, reason in place.quarantined()] == [
        (3, 'unit_price "free" is no number below 1,000,000,000'),
        (4, "order 2 waits for line 3 to be mended"),
        (5, 'occurred_at "27.03.2011 01:30" is no time like %d.%m.%Y %H:%M'),
        (6, 'quantity "1.5" is no whole number below 1,000,000'),
        (7, "order_id is missing"),
        (8, "order 5 waits for line 9 to be mended"),
        (9, "malformed CSV: 8 fields where the header has 7"),
        (10, "order 6 waits for line 9 to be mended"),
    ]
    place.write("a.csv", ORDER_HEAD + "\n".join(lines).replace("free", "3").replace("La,mp", "Lamp"))
    assert counts(place.ingest(ORDERS)) == (10, 3, 2, 3)
    assert len(place.properties("raw.events", "event_id")["shop:order:5"]["items"]) == 2


# Events


def event(number: int, **more: object) -> dict[str, object]:
    return {"event_id": f"e{number}", "type": "page.viewed", "occurred_at": "2011-01-01T00:00:00Z", **more}


def test_events_in_the_shape_of_the_raw_table(place: Place) -> None:
    rows: list[object] = [
        event(1, properties={"url": "/a", "when": "2011-01-01"}, external_id=17, source="app"),
        event(2, type="clicked", message_id="m", email="a@example.com", esp_event={"raw": True}),
        event(3, type="Clicked"),
        event(4, occurred_at="2011-01-01T00:00:00"),
        event(5, properties=[1]),
        event(6, ocurred_at="x"),
        {"event_id": "e7", "type": "page.viewed"},
        event(1),
        event(8, loaded_at="2011-01-01T00:00:00Z", run_id="old", received_at="2011-01-02T00:00:00Z"),
    ]
    place.write("a.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert counts(place.ingest(EVENTS)) == (9, 3, 1, 5)
    assert [(line, reason) for _, line, reason in place.quarantined()] == [
        (3, 'type "Clicked" is neither a mail event nor noun.verb'),
        (4, 'occurred_at "2011-01-01T00:00:00" has no time zone'),
        (5, "properties is no JSON object"),
        (6, 'unknown fields: {"ocurred_at":"x"}'),
        (7, "occurred_at is missing"),
    ]
    stored = place.warehouse.frame(
        "select event_id, source, external_id, message_id, esp_event, received_at from raw.events order by 1"
    ).rows()
    assert stored == [
        ("e1", "app", "17", "", "", NOW),
        ("e2", "feed", "", "m", '{"raw":true}', NOW),
        ("e8", "feed", "", "", "", datetime(2011, 1, 2, tzinfo=UTC)),
    ]
    assert place.properties("raw.events", "event_id")["e1"] == {"url": "/a", "when": "2011-01-01"}


def test_mapped_events_take_other_columns_as_properties(place: Place) -> None:
    place.write("a.csv", "id,at,who,url\n1,2011-01-01T00:00:00Z,7,/a\n")
    text = """
        name: views
        source: web
        object: events
        files: inbox/a.csv
        columns:
          event_id: {template: "view-{id}"}
          type: {value: page.viewed}
          occurred_at: at
          external_id: who
    """
    assert counts(place.ingest(text)) == (1, 1, 0, 0)
    assert place.properties("raw.events", "event_id") == {"view-1": {"url": "/a"}}


def test_no_event_files_yet_is_fine_if_the_source_says_so(place: Place) -> None:
    with pytest.raises(InputError, match=r"feed\.yaml:5: no file matches inbox/\*\.jsonl"):
        place.ingest(EVENTS)
    assert place.ingest(EVENTS + "    is_optional: true\n").files == ()


# Products and consents


def test_products_and_consents_from_files(place: Place) -> None:
    place.write("a.tsv", "sku\tname\tprice\tstock\tcolour\nA\tLamp\t2.49\tyes\tred\nB\tCup\tdear\tyes\t\n")
    products = """
        name: catalogue
        source: shop
        object: products
        files: inbox/a.tsv
        columns: {product_id: sku, name: name, price: price, is_available: stock}
    """
    assert counts(place.ingest(products)) == (2, 1, 0, 1)
    assert counts(place.ingest(products, now=datetime(2012, 1, 1, tzinfo=UTC))) == (2, 0, 1, 1)
    row = place.warehouse.frame(
        "select product_id, price::String, is_available, toString(properties) from raw.products"
    )
    assert row.rows() == [("A", "2.49", True, '{"colour":"red"}')]
    place.write(
        "c.jsonl",
        '{"who": "a@example.com", "ok": false, "at": "2011-01-01T00:00:00Z", "form": "footer"}\n'
        '{"who": null, "ok": true, "at": "2011-01-01T00:00:00Z"}\n',
    )
    consents = """
        name: consents
        source: forms
        object: consents
        files: inbox/c.jsonl
        columns:
          email: who
          channel: {value: email}
          purpose: {value: marketing}
          basis: {value: consent}
          is_granted: ok
          occurred_at: at
    """
    assert counts(place.ingest(consents)) == (2, 1, 0, 1)
    assert counts(place.ingest(consents)) == (2, 0, 1, 1)
    assert place.properties("raw.consents", "email") == {"a@example.com": {"form": "footer"}}


# Files that are wrong as a whole


def _directory(path: Path) -> None:
    path.mkdir()


WRONG: dict[str, tuple[str, bytes | Callable[[Path], None] | None, str, str]] = {
    "missing": (
        "inbox/a.csv",
        None,
        r"people\.yaml:5: file inbox/a\.csv does not exist",
        "Put the file there",
    ),
    "empty": ("inbox/a.csv", b"", r"inbox/a\.csv is empty", "header"),
    "column": (
        "inbox/a.csv",
        b"id,Mail,first,changed\n",
        r"inbox/a\.csv has no column 'mail'",
        "Did you mean Mail",
    ),
    "delimiter": ("inbox/a.csv", b"id;mail;first;changed\n", "has no column 'id'", 'delimiter: ";"'),
    "twice": ("inbox/a.csv", b"id,mail,mail,changed\n", r"a\.csv:1: column 'mail' is there twice", "Rename"),
    "excel": (
        "inbox/a.csv",
        b"PK\x03\x04\x00\x00",
        "is no CSV file: it is a zip archive or an Excel",
        "Save it",
    ),
    "utf16": ("inbox/a.csv", "id,mail".encode("utf-16"), "it is UTF-16 text", "UTF-8"),
    "json": ("inbox/a.csv", b'{"id": 1}\n', "it is JSON", "Save it as CSV"),
    "html": ("inbox/a.csv", b"<!DOCTYPE html><p>Log in", "it is HTML", "Save it as CSV"),
    "header": (
        "inbox/a.csv",
        b"id,mail,first,chang\xe9d\n",
        r"a\.csv:1: the header is not utf-8",
        "encoding",
    ),
    "parquet": (
        "inbox/a.parquet",
        b"id,mail\n",
        "is no Parquet file: it is another kind",
        "Write it as Parquet",
    ),
    "cut": ("inbox/a.parquet", b"PAR1 and then nothing", "is no whole Parquet file", "Write it as Parquet"),
    "array": ("inbox/a.jsonl", b'[{"id": 1}]', "it is one JSON array", "one JSON object a line"),
    "keys": ("inbox/a.jsonl", b'{"Id": 1, "mail": "a@b.co", "changed": ""}', "has no column 'id'", "mean Id"),
    "ending": ("inbox/a.xlsx", b"x", r"inbox/a\.xlsx has no known format", "name end in"),
    "folder": ("inbox", _directory, "folder inbox holds no file of a known format", "Put the file there"),
    "clash": (
        "inbox/a.csv",
        b"id,mail,first,changed,email\n1,a@b.co,A,2011-01-01T00:00:00Z,x\n",
        "column 'email' clashes with the property 'email'",
        "ignore",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_file_loads_nothing_and_says_what_to_do(place: Place, case: str) -> None:
    files_, content, message, fix = WRONG[case]
    if isinstance(content, bytes):
        (place.home / files_).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        place.ingest(CONTACTS.replace("files: inbox", f"files: {files_}"))
    assert fix in caught.value.fix
    assert place.warehouse.value("select count() from raw.crm_records") == 0


def test_a_wrong_file_is_found_before_its_neighbours_load(place: Place) -> None:
    place.write("a.csv", "id,mail,first,changed\n1,a@example.com,A,2011-01-01T00:00:00Z\n")
    place.write("b.csv", "id,address\n")
    with pytest.raises(InputError, match=r"b\.csv has no column 'mail'"):
        place.ingest(CONTACTS)
    assert place.warehouse.value("select count() from raw.crm_records") == 0


def test_a_damaged_parquet_file_is_an_input_error(place: Place) -> None:
    frame = pl.DataFrame(
        {
            "id": range(20_000),
            "mail": ["a@example.com"] * 20_000,
            "first": ["A"] * 20_000,
            "changed": [NOW] * 20_000,
        }
    )
    path = place.inbox / "a.parquet"
    pq.write_table(frame.to_arrow(), path, write_page_checksum=True)
    raw = bytearray(path.read_bytes())
    raw[200:210] = bytes(byte ^ 0xFF for byte in raw[200:210])
    path.write_bytes(raw)
    with pytest.raises(InputError, match="is damaged"):
        place.ingest(CONTACTS)


def test_times_without_a_zone_in_parquet_need_one(place: Place) -> None:
    frame = pl.DataFrame(
        {"id": [1], "mail": ["a@example.com"], "first": ["A"], "changed": [datetime(2011, 7, 1)]}
    )
    frame.write_parquet(place.inbox / "a.parquet")
    with pytest.raises(InputError, match="times in column 'changed' have no time zone"):
        place.ingest(CONTACTS)
    text = CONTACTS.replace("updated_at: changed", "updated_at: {column: changed, timezone: Europe/London}")
    assert place.ingest(text).loaded == 1
    assert place.warehouse.value("select updated_at from raw.crm_records") == datetime(
        2011, 6, 30, 23, tzinfo=UTC
    )


def test_other_encodings_and_delimiters(place: Place) -> None:
    place.write("a.csv", "id;mail;first;changed\n1;a@example.com;Zoë;2011-01-01T00:00:00Z\n".encode("cp1252"))
    text = CONTACTS + '    delimiter: ";"\n    encoding: cp1252\n'
    assert place.ingest(text).loaded == 1
    assert place.properties()["1"]["first_name"] == "Zoë"


# Whatever the order, the copies and the cuts


@budget(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_cutting_of_files_loads_each_key_once(place: Place, data: st.DataObject) -> None:
    for table in ("crm_records", "events", "quarantined_rows"):
        place.warehouse.execute(f"truncate table raw.{table}")
    for path in place.inbox.iterdir():
        path.unlink()
    pool = [
        f"{number},p{number}@example.com,P,2011-01-{day:02}T00:00:00Z"
        for number in range(8)
        for day in (1, 2)
    ]
    pool += ["8,bad address,P,2011-01-01T00:00:00Z", "9,p9@example.com,P"]
    rows = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=40))
    cuts = data.draw(st.integers(1, 4))
    size = data.draw(st.integers(1, 10))
    parts: list[list[str]] = [[] for _ in range(cuts)]
    for row in rows:
        parts[data.draw(st.integers(0, cuts - 1))].append(row)
    for index, part in enumerate(parts):
        place.write(f"{index}.csv", "id,mail,first,changed\n" + "".join(f"{row}\n" for row in part))
    source = place.source(CONTACTS)
    before = files.CHUNK_ROWS
    try:
        files._Job.chunks.__defaults__ = (size,)
        report = place.ingest(source)
        again = place.ingest(source)
    finally:
        files._Job.chunks.__defaults__ = (before,)
    good = {tuple(row.split(",")) for row in rows if row.count(",") == 3 and "bad" not in row}
    bad = sum(1 for row in rows if row.count(",") != 3 or "bad" in row)
    assert counts(report) == (len(rows), len(good), len(rows) - len(good) - bad, bad)
    assert counts(again) == (len(rows), 0, len(rows) - bad, bad)
    assert place.warehouse.value("select count() from raw.crm_records") == len(good)
    assert len(place.quarantined()) == bad


LOADER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from crm.files import ingest_files, load_source
from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings
source = load_source(Path(sys.argv[1]))
with Warehouse.connect(MailhouseSettings(warehouse_port=int(sys.argv[3]))) as warehouse:
    warehouse.value("select 1")
    print("ready", flush=True)
    sys.stdin.readline()
    report = ingest_files(warehouse, source, base_dir=Path(sys.argv[2]), now=datetime(2026, 1, 1, tzinfo=UTC))
    print(report.loaded, flush=True)
"""


def test_two_processes_that_load_a_source_at_once_take_turns(place: Place) -> None:
    place.write(
        "a.csv",
        "id,mail,first,changed\n"
        + "".join(f"{number},p{number}@example.com,P,2011-01-01T00:00:00Z\n" for number in range(20_000)),
    )
    place.source(CONTACTS)
    path = place.root / "content" / "sources" / "people.yaml"
    command = [sys.executable, "-c", LOADER, str(path), str(place.home), str(place.warehouse.address.port)]
    loaders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(3)
    ]
    for loader in loaders:
        assert loader.stdout is not None
        assert loader.stdout.readline() == "ready\n"
    for loader in loaders:
        assert loader.stdin is not None
        loader.stdin.write("go\n")
        loader.stdin.flush()
    loaded = [int(loader.communicate(timeout=60)[0]) for loader in loaders]
    assert sorted(loaded) == [0, 0, 20_000]
    assert place.warehouse.value("select count() from raw.crm_records") == 20_000


def test_orders_are_the_same_from_any_order_of_lines(place: Place) -> None:
    lines = [
        f"{order},01.07.2011 10:0{order},7,P{line},Lamp,1,{line}.5" for order in range(9) for line in range(5)
    ]
    random.Random(1).shuffle(lines)
    place.write("a.csv", ORDER_HEAD + "\n".join(lines))
    assert counts(place.ingest(ORDERS)) == (45, 9, 0, 0)
    products = place.warehouse.frame(
        "select arraySort(JSONExtract(toString(properties), 'items', 'Array(Tuple(product_id String))').1) p,"
        " count() n from raw.events group by p"
    ).rows()
    assert products == [([f"P{line}" for line in range(5)], 9)]


# Specs


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "external_id: id",
            "external_id: id\n      emial: mail",
            r"people\.yaml:8: columns\.emial is no key here.*email",
        ),
        ("      email: mail\n", "", r"people\.yaml:6: columns\.email is missing"),
        (
            "object: contacts",
            "object: contact",
            r"people\.yaml:4: object cannot be 'contact'.*Did you mean contacts",
        ),
        ("name: people", "name: peeple", r"people\.yaml:2: name is 'peeple'"),
        (
            "updated_at: changed",
            "updated_at: {column: changed, timezone: Europe/Londn}",
            "Did you mean Europe/London",
        ),
        ("updated_at: changed", 'updated_at: {column: changed, format: "dd/mm/yyyy"}', "names no year"),
        ("updated_at: changed", 'updated_at: {column: changed, format: "%d/%m/%Y"}', "without a zone"),
        (
            "updated_at: changed",
            'updated_at: {column: changed, format: "%d/%m/%Y %L", timezone: UTC}',
            "no code %L",
        ),
        (
            "first_name: first",
            "first_name: {column: first, value: x}",
            "exactly one of column, template and value",
        ),
        ("first_name: first", 'first_name: {template: "{first"}', "a brace too many"),
        ("first_name: first", 'first_name: {template: "first"}', "names no column in braces"),
        ("files: inbox", "files: []", r"people\.yaml:5: files"),
        ("files: inbox", "files: inbox\n    encoding: utf-16", "cannot be utf-16"),
        (
            "files: inbox",
            "files: inbox\n    relative_to: inbox",
            "relative_to cannot be 'inbox'.*Allowed: home, content",
        ),
    ],
)
def test_mistakes_in_a_source_name_their_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in CONTACTS
    text = textwrap.dedent(CONTACTS.replace(before, after))
    path = tmp_path / "people.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_source(path)
    said = f"{caught.value.message} {caught.value.fix}"
    assert re.search(message, said), said


def test_all_mistakes_of_all_sources_are_told_at_once(place: Place) -> None:
    place.source(CONTACTS)
    place.source(EVENTS)
    folder = place.root / "content" / "sources"
    assert list(load_sources(folder.parent)) == ["feed", "people"]
    (folder / "feed.yaml").write_text("name: feed\n")
    (folder / "people.yaml").rename(folder / "people.yml")
    with pytest.raises(InputError, match=r"(?s)feed\.yaml.*missing.*people\.yml.*Rename"):
        load_sources(folder.parent)
    assert load_sources(place.root / "nowhere") == {}


def test_every_example_of_the_reference_is_right(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "sources.md").read_text()
    examples = re.findall(r"```yaml\n# content/(sources/\w+\.yaml)\n(.*?)```", text, re.DOTALL)
    for name, example in examples:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(example)
    assert {source.object for source in load_sources(tmp_path).values()} == set(SOURCES)
    assert len(examples) >= len(SOURCES)
