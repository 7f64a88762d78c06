"""A canary in every store: erased, it is nowhere, and does not come back; nobody else notices."""

from __future__ import annotations

import gzip
import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from location import NOW, Location

from campaigns.audience import _TABLES as AUDIENCE_TABLES
from campaigns.deciding import STATES, TABLE
from campaigns.journey_state import define_tables as define_journeys
from campaigns.live import TABLES as LIVE_TABLES
from campaigns.siphash import contact_of, identity_of
from gateway.settings import GatewaySettings
from gateway.streams import open_stream
from orchestration.lib.dbt_runs import invoke, load_manifest
from privacy import exporting
from privacy.erasing import Place, Plan, erase, planned, residue, unfinished
from privacy.files import Finder, source_columns
from privacy.person import Person, find_person
from privacy.restricting import rectify
from privacy.stores import StoreTable, counted, quoted
from senders.export import export_messages
from senders.firings import Firing, Firings
from senders.ledger import Claim, Ledger, Outcome
from senders.message import Status
from warehouse.client import Warehouse
from warehouse.erasures import erased_people
from warehouse.loads import load_consents, load_crm_records, load_events

pytestmark = pytest.mark.slow

EMAIL = "canary.quetzal@aviary.example"
OLD_EMAIL = "canary.hatchling@aviary.example"
WORDS = ("quetzal", "hatchling", "Resplendent", "Pharomachrus", "491700009123", "feather-token-4411")
"""What names the canary, and occurs nowhere else."""
UTC_MS = pl.Datetime("ms", "UTC")


def record(email: str, at: datetime, **more: object) -> pl.DataFrame:
    properties = {
        "email": email, "first_name": "Resplendent", "last_name": "Pharomachrus", "phone": "+49 170 0009123",
        "push_token": "feather-token-4411", "country": "Guatemala", **more,
    }  # fmt: skip
    row = {
        "source": "birdwatch", "object": "contact", "external_id": "quetzal-0815", "is_deleted": False,
        "properties": json.dumps(properties), "updated_at": at,
    }  # fmt: skip
    return pl.DataFrame([row]).with_columns(pl.col("updated_at").cast(UTC_MS))


def happened() -> pl.DataFrame:
    item = {"product_id": "85123A", "quantity": 2, "unit_price": "3.50", "engraving": "Pharomachrus"}
    order = {
        "order_id": "Q-1",
        "currency": "EUR",
        "country": "Guatemala",
        "note": "for Resplendent",
        "items": [item],
    }
    visitor = "visitor-quetzal"
    rows = [
        {"event_id": "quetzal-visit", "type": "page.viewed", "anonymous_id": visitor, "properties": '{"u": "quetzal"}'},
        {"event_id": "quetzal-join", "type": "product.viewed", "email": EMAIL.upper(), "anonymous_id": visitor},
        {
            "event_id": "order-1", "type": "order.placed", "external_id": "quetzal-0815",
            "properties": json.dumps(order),
        },
        {"event_id": "stop-1", "type": "unsubscribed", "properties": '{"phone": "+491700009123"}'},
    ]  # fmt: skip
    columns = ("email", "external_id", "anonymous_id", "message_id")
    return pl.DataFrame(
        [
            {
                **dict.fromkeys(columns, ""),
                "properties": "{}",
                "source": "birdwatch",
                "occurred_at": NOW,
                **one,
            }
            for one in rows
        ],
        infer_schema_length=None,
    ).with_columns(pl.col("occurred_at").cast(UTC_MS))


def agreed() -> pl.DataFrame:
    row = {
        "consent_id": "consent-quetzal", "source": "form", "email": EMAIL, "external_id": "", "channel": "email",
        "purpose": "marketing", "is_granted": True, "basis": "opt_in", "text_version": "1", "ip": "192.0.2.7",
        "occurred_at": NOW,
    }  # fmt: skip
    return pl.DataFrame([row]).with_columns(pl.col("occurred_at").cast(UTC_MS))


def plant_raw(warehouse: Warehouse) -> None:
    load_crm_records(warehouse, record(OLD_EMAIL, datetime(2011, 1, 1, tzinfo=UTC)))
    load_crm_records(warehouse, record(EMAIL, datetime(2011, 5, 1, tzinfo=UTC)))
    load_events(warehouse, happened())
    load_consents(warehouse, agreed())


def plant_ledger(location: Location, contact_id: int) -> str:
    message_id = "0c0a0a1e-0000-5000-8000-00000000cafe"
    plan = dict.fromkeys(
        ("kind", "name", "version", "occurrence", "channel", "provider", "category", "template", "template_version",
         "segment", "segment_version", "experiment"), "x",
    ) | {"kind": "trigger", "occurrence": "quetzal-join", "channel": "email"}  # fmt: skip
    details = {"address": EMAIL, "from_email": "shop@example.com"}
    with Ledger.open(location.settings) as ledger:
        run = ledger.begin_run("trigger", "x", "quetzal-join", NOW)
        claimed = ledger.claim(
            run, Claim(plan, [message_id], [contact_id], [EMAIL], [""], [json.dumps(details)]), NOW
        )
        row = claimed.rows[0]
        ledger.dispatch(run, [row], NOW)
        ledger.record(
            run, [Outcome(row, Status.SENT, "", EMAIL, f"250 ok {EMAIL}", "Hello Resplendent")], NOW
        )
        event = {"type": "x", "email": EMAIL, "occurred_at": NOW.isoformat(), "source": ""}
        firing = Firing("x", "1", contact_id, "quetzal-join", event, NOW)
        Firings(ledger).add(run, {firing.firing_id: firing}, NOW)
        ledger.end_run(run, "done", NOW)
    return message_id


def plant_files(home: Path, contact_id: int) -> None:
    files = {
        "maildir/new/1.quetzal": f"To: Resplendent <{EMAIL}>\n\nHello".encode(),
        "inbox/contacts/more.csv": f"external_id,email,country\nq,{EMAIL},X\n17850,a@example.com,Y\n".encode(),
        "output/previews/x.html": f"<p>{EMAIL}".encode(),
        "logs/sender.log": f"sent {OLD_EMAIL}\nsent b@example.com\n".encode(),
        "logs/sender.log.1.gz": gzip.compress(EMAIL.encode()),
        "models/churn/20110101T000000Z.model": b'{"format": "x"}\n' + contact_id.to_bytes(8, "little"),
        "dbt/target/compiled.sql": f"select '{EMAIL}'".encode(),
    }  # fmt: skip
    for name, content in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (home / "dagster").mkdir(exist_ok=True)
    with sqlite3.connect(home / "dagster" / "runs.db") as connection:
        connection.execute("create table if not exists event_logs (event text)")
        connection.execute("insert into event_logs values (?)", (f'{{"first": "{EMAIL}"}}',))
    connection.close()


def plant_everywhere(warehouse: Warehouse, tables: list[StoreTable], person: Person) -> list[str]:
    """A row of the canary in each table that could hold one and has none; returns the tables."""
    known = counted(warehouse, tables, person)
    contact_id, identity_id = min(person.contact_ids), identity_of("", "", EMAIL)
    planted: list[str] = []
    for table in tables:
        if not table.condition or table.name in known or table.name == "raw.restrictions":
            continue
        values: dict[str, str] = {}
        for name, kind in table.columns.items():
            if "AggregateFunction(" in kind.replace("SimpleAggregateFunction(", ""):
                continue
            if name.endswith("contact_id") and "Int64" in kind:
                values[name] = str(contact_id)
            elif name.endswith(("identity_id", "visitor_id")) and "Int64" in kind:
                values[name] = str(identity_id)
            elif name in ("email", "address") and "String" in kind:
                values[name] = f"'{EMAIL}'"
            elif name == "message_id" and "String" in kind:
                values[name] = f"'{min(person.message_ids)}'"
            elif name == "message_hash" and kind == "UInt64":
                values[name] = f"sipHash64('{min(person.message_ids)}')"
            elif name == "content":
                values[name] = f"'Resplendent;{EMAIL}'"
            elif name in ("loaded_at", "written_at", "noted_at"):
                values[name] = "now()"
        if table.name == "raw.messages":
            values.pop("message_hash", None)
        warehouse.execute(
            f"insert into {quoted(table.name)} ({', '.join(values)}) select {', '.join(values.values())}"
        )
        planted.append(table.name)
    return planted


def place_of(location: Location, ledger: Ledger, **more: object) -> Place:
    settings = GatewaySettings.load()
    finder = Finder(settings.home, lambda: source_columns(settings.content_dir, settings.home))
    return Place(settings, location.warehouse, ledger, finder=finder, **more)  # pyright: ignore[reportArgumentType]


def texts_left(warehouse: Warehouse) -> list[str]:
    """Tables in which a word of the canary stands in any column, asked in another way than the residue search does."""
    found: list[str] = []
    tables = warehouse.frame(
        "select concat(database, '.', name) as name from system.tables where engine like '%MergeTree'"
        " and database not in ('system', 'information_schema', 'INFORMATION_SCHEMA')"
    )
    for name in tables["name"].to_list():
        rows = warehouse.client.raw_query(f"select * from {quoted(name)}", fmt="JSONEachRow").lower()
        found += [f"{name}: {word}" for word in WORDS if word.lower().encode() in rows]
    return found


def bytes_left(location: Location) -> list[str]:
    """Files, the engine's own included, with a word of the canary; tables that dbt dropped go by themselves."""
    home = location.settings.home
    dropped = set(
        location.warehouse.frame("select toString(uuid) as uuid from system.dropped_tables")["uuid"].to_list()
    )
    found: list[str] = []
    for path in home.rglob("*"):
        if not path.is_file() or dropped & set(path.parts):
            continue
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        found += [f"{path}: {word}" for word in WORDS if word.lower().encode() in content.lower()]
    return found


@pytest.fixture(scope="module")
def story() -> dict[str, Any]:
    """What the first test hands on to the second: each takes its time."""
    return {}


def test_the_canary_is_gone_from_everywhere(location: Location, story: dict[str, Any], tmp_path: Path):
    warehouse, home = location.warehouse, location.settings.home
    plant_raw(warehouse)
    message_id = plant_ledger(location, contact_of(OLD_EMAIL))
    with Ledger.open(location.settings) as ledger:
        export_messages(ledger, warehouse, now=NOW)
    load_events(
        warehouse,
        happened().head(1).with_columns(
            type=pl.lit("opened"), event_id=pl.lit("open-1"), message_id=pl.lit(message_id), anonymous_id=pl.lit(""),
            email=pl.lit(EMAIL),
        ),
    )  # fmt: skip
    # without tests: they run when everything is done
    invoke(["run"], location.settings, manifest=load_manifest(location.settings))
    for statement in (*AUDIENCE_TABLES, TABLE, STATES, *LIVE_TABLES):
        warehouse.define(statement)
    define_journeys(warehouse)
    with Ledger.open(location.settings) as ledger:
        stream = open_stream(GatewaySettings.load(), ledger)
        stream.append([json.dumps({"email": EMAIL}).encode(), b'{"email": "b@example.com"}'])
        person = find_person(warehouse, ledger, email=EMAIL)
        assert person.contact_ids == {contact_of(OLD_EMAIL)} and person.emails == {EMAIL, OLD_EMAIL}
        assert person.visitors == {("birdwatch", "visitor-quetzal")} and message_id in person.message_ids
        rectify(warehouse, person, {"city": "Resplendent"}, NOW)
        plant_files(home, min(person.contact_ids))
        place = place_of(location, ledger, wait=0.0)
        plant_everywhere(warehouse, place.tables(), person)
        with_keys = {one.name for one in place.tables() if one.condition and one.name != "raw.restrictions"}
        assert with_keys == set(counted(warehouse, place.tables(), person))
        others = warehouse.frame("select count(), sum(revenue) from marts.orders").row(0)
        everybody = warehouse.value("select count() from marts.contacts")
        messages = warehouse.value("select count() from raw.messages")

        exported = exporting.export(place, person, tmp_path / "out", NOW)
        held = json.loads(exported.json.read_text())
        assert held["stores"][0]["store"] == "raw.consents"
        assert {one["store"] for one in held["stores"]} >= with_keys | {"ledger messages", "streams", "files"}
        page = exported.html.read_text()
        assert EMAIL in page and "<script" not in page and "17850" not in page

        assert planned(place, person)["raw.events"] == 5
        done = erase(place, Plan.new(person))
        assert done.residue == []
        assert any("quetzal-0815" in note for note in done.notes)
        assert list(stream.read(10, 0.1).payloads) == [b'{"email": "b@example.com"}']
        stream.close()
        assert not unfinished(home)
        assert texts_left(warehouse) == []
        assert bytes_left(location) == []

        # what stays for accounting says nothing of who it was
        kept = warehouse.frame("select * from marts.orders where order_id = 'Q-1'").row(0, named=True)
        assert (float(kept["revenue"]), kept["contact_id"]) == (7.0, None)
        assert warehouse.frame("select count(), sum(revenue) from marts.orders").row(0) == others
        assert warehouse.value("select count() from raw.messages") == messages
        assert warehouse.value("select count() from marts.contacts") == everybody - 1
        assert (
            home / "inbox/contacts/more.csv"
        ).read_text() == "external_id,email,country\n17850,a@example.com,Y\n"
        (home / "inbox/contacts/more.csv").unlink()
        story |= {"person": person, "orders": others}


def test_whoever_was_erased_stays_away_when_the_same_sources_are_loaded_again(
    location: Location, story: dict[str, Any]
):
    if not story:
        pytest.skip("nobody was erased: the test before this one did not end well")
    warehouse, person, others = location.warehouse, story["person"], story["orders"]
    with Ledger.open(location.settings) as ledger:
        place = place_of(location, ledger)
        erased_people(warehouse, max_age=0)
        assert load_crm_records(warehouse, record(EMAIL, datetime(2011, 6, 1, tzinfo=UTC))).refused == 1
        assert load_events(warehouse, happened()).loaded == 0
        assert load_consents(warehouse, agreed()).refused == 1
        location.run("build_models")
        assert residue(place, person) == []
        assert texts_left(warehouse) == []
        assert warehouse.frame("select count(), sum(revenue) from marts.orders").row(0) == others
