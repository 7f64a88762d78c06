"""What five minutes of changes cost, both ways, between a warehouse and a CRM of a million contacts.

    python benchmarks/crm_increments.py             1,000,000 contacts
    python benchmarks/crm_increments.py --quick     100,000
    python benchmarks/crm_increments.py --check     exit code 1 unless every target holds

An embedded engine over an empty folder holds a million contacts, each known to HubSpot and to a shop, with profiles;
HubSpot is `benchmarks/lib/crm_server.py`, over HTTP in a process of its own, and answers at once. In the measured sync
2,000 contacts have been edited in HubSpot, 1,000 in the shop (that goes to HubSpot), and what we know of 1,000 others
has changed (that, too): read, decided, written, stored. Beside it a sync in which nothing has changed since, but the
profiles have been built again; and the loop one would write by hand: each changed contact looked up and pushed
by itself, measured on a sample and scaled.

Targets are of seconds of the processor, of sync and engine together: the clock also counts what the server takes, and
whatever else runs on the machine. Calls stand beside the least that HubSpot's limits allow: 200 contacts a search and
100 a write, and that many reads before writes of fields that people edit, too, since HubSpot itself refuses no write to
a record that has changed.
The last line is one JSON object with all figures.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

# the folder of this file has names of ours in it: imports must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import httpx
import polars as pl
from rich.console import Console

from benchmarks.crm import Figure, Place, place, report
from benchmarks.lib import crm_server
from benchmarks.lib.dbt_process import cpu_seconds
from crm.base import Change
from crm.conflicts import resolve
from crm.hubspot import HubSpot
from crm.rules import CrmRules
from crm.settings import CrmSettings
from crm.sync import CONTACTS_A_ROUND, Mark, Report, Sync
from crm.sync_store import WarehouseStore
from warehouse.client import Warehouse
from warehouse.errors import MailhouseError

SECONDS = 10.0
CALLS = 1.05
EDITED, IN_SHOP, ENGAGED = 2_000, 1_000, 1_000
SAMPLE = 25
RULES = CrmRules.model_validate(
    {
        "fields": dict.fromkeys(["first_name", "last_name", "city", "country", "phone"], "newest"),
        "push": {
            "hubspot": {
                "engagement": [
                    "engagement_score", "engagement_band", "rfm_segment", "segments", "last_opened_at",
                    "last_clicked_at", "orders_count", "revenue",
                ],
            }
        },
    }
)  # fmt: skip


def fill(warehouse: Warehouse, contacts: int) -> None:
    """Records of HubSpot as its server has them and of the shop, identity, and profiles."""
    at = f"fromUnixTimestamp64Milli({crm_server.FIRST_CHANGE}::Int64 + {crm_server.STEP} * (number + 1), 'UTC')"
    for source in ("hubspot", "shop"):
        warehouse.execute(
            f"""
            insert into raw.crm_records
                (source, object, external_id, updated_at, is_deleted, properties, loaded_at)
            select '{source}', 'contact', concat('{"" if source == "hubspot" else "s"}', toString(number + 1)), {at},
                false,
                concat('{{"email":"person', toString(number + 1),
                    '@example.com","first_name":"Pat","last_name":"Person ',
                    toString(number + 1), '","city":"Town ', toString((number + 1) % 1000),
                    '","country":"Germany","phone":"+49 30 ', toString(number + 1), '"}}')::JSON,
                now64(3) - toIntervalHour(1)
            from numbers({contacts})
            """
        )
    for database in ("intermediate", "marts"):
        warehouse.execute(f"create database if not exists {database}")
    warehouse.execute("drop table if exists intermediate.int_contacts__identified sync")
    warehouse.execute(
        f"""
        create table intermediate.int_contacts__identified engine = MergeTree order by identity_id as
        select reinterpretAsInt64(sipHash64(source, identifier)) as identity_id, (number + 1)::Int64 as contact_id,
            0::Int64 as previous_contact_id, 'record'::LowCardinality(String) as kind,
            source::LowCardinality(String) as source, concat(prefix, toString(number + 1)) as identifier,
            toDateTime64(0, 3, 'UTC') as moved_at
        from numbers({contacts}) array join ['hubspot', 'shop'] as source, ['', 's'] as prefix
        """
    )
    build_profiles(warehouse, contacts, 0)


def build_profiles(warehouse: Warehouse, contacts: int, engaged_from: int) -> None:
    """Profiles as a build leaves them; those of `ENGAGED` contacts have clicked."""
    warehouse.execute("drop table if exists marts.contact_profiles sync")
    is_engaged = f"(number between {engaged_from} and {engaged_from + ENGAGED - 1}) and {engaged_from} > 0"
    warehouse.execute(
        f"""
        create table marts.contact_profiles engine = MergeTree order by contact_id as
        select (number + 1)::Int64 as contact_id, concat('person', toString(number + 1), '@example.com') as email,
            false as is_deleted, (number % 90 + if({is_engaged}, 5, 0))::Float64 as engagement_score,
            ['active', 'cooling', 'cold'][number % 3 + 1]::LowCardinality(String) as engagement_band,
            ['champions', 'at_risk', ''][number % 3 + 1]::LowCardinality(String) as rfm_segment,
            arrayMap(n -> concat('segment_', toString(n)), range(number % 4)) as segments,
            toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + number % 9999999 as last_opened_at,
            if({is_engaged}, toDateTime64('2026-03-01 00:00:00', 3, 'UTC'), last_opened_at) as last_clicked_at,
            (number % 7)::UInt32 as orders_count, (number % 999)::Decimal(18, 2) as revenue
        from numbers({contacts})
        """
    )


def increment(where: Place, console: Console) -> list[Figure]:
    """A round of the first look at all contacts, an increment, and one in which nothing has changed."""
    for name, value in where.environment().items():
        os.environ[name] = value
    settings = CrmSettings.load()
    contacts = where.contacts
    with Warehouse.connect(settings) as warehouse, HubSpot.from_settings(settings) as hubspot:
        fill(warehouse, contacts)
        store = WarehouseStore(warehouse, settings)
        # HubSpot shows all of it already
        for batch in store.differing("hubspot", RULES):
            store.add_shown("hubspot", batch)

        def sync(title: str) -> tuple[Report, float, float, float, dict[str, int]]:
            where.calls()
            engine, own, start = cpu_seconds(where.engine), time.process_time(), time.perf_counter()
            made = Sync(WarehouseStore(warehouse, settings), [hubspot], RULES, now=settings.now).run()
            taken = time.perf_counter() - start
            engine, own = cpu_seconds(where.engine) - engine, time.process_time() - own
            calls = where.calls()
            told = {name: number for name, number in made.counts.items() if number}
            console.print(
                f"  {title}: {taken:.1f} s by the clock; processor: sync {own:.1f} s, engine {engine:.1f} s;"
                f" {told}, calls {calls}"
            )
            return made, taken, own, engine, calls

        # what `mailhouse crm setup` makes; this server knows contacts alone
        types = {"number": "number", "datetime": "datetime"}
        fields = [
            {"name": one.name, "label": one.label, "type": types.get(one.type, "string"), "fieldType": "text"}
            for one in RULES.custom_fields("hubspot")
        ]
        httpx.post(f"{where.url}{crm_server.PROPERTIES}/batch/create", json={"inputs": fields})
        # a round of the first look, which goes over all contacts once
        round_ = min(contacts, CONTACTS_A_ROUND)
        engine, own = cpu_seconds(where.engine), time.process_time()
        history = store.history(pl.DataFrame({"contact_id": range(1, round_ + 1)}), RULES)
        resolve(
            RULES.rules(), {"hubspot": list(RULES.fields)}, history.versions, history.pushes, history.decided
        )
        looked = cpu_seconds(where.engine) - engine + time.process_time() - own
        # all have been looked at, before they were edited
        now = warehouse.value("select now64(3, 'UTC')")
        store.finish(Mark(now, records_through=now, rules_version=RULES.version, profiles_version="old"))
        sync("after the first look")
        httpx.post(f"{where.url}/edit", json={"first": 1, "count": EDITED})
        now = datetime.now(UTC)
        rows = pl.DataFrame(
            [
                {
                    "source": "shop", "object": "contact", "external_id": f"s{number}", "updated_at": now,
                    "is_deleted": False,
                    "properties": json.dumps(
                        {"email": f"person{number}@example.com", "first_name": "Patricia",
                         "last_name": f"Person {number}", "city": f"Town {number % 1000}", "country": "Germany",
                         "phone": f"+49 30 {number}"}
                    ),
                }
                for number in range(10_001, 10_001 + IN_SHOP)
            ]
        ).with_columns(pl.col("updated_at").cast(pl.Datetime("ms", "UTC")))  # fmt: skip
        warehouse.insert("raw.crm_records", rows)
        build_profiles(warehouse, contacts, 50_000)
        made, taken, own, engine, calls = sync("increment")
        edited = warehouse.value(
            "select uniqExact(contact_id) from raw.field_decisions where source = 'hubspot' and field = 'city'"
        )
        build_profiles(warehouse, contacts, 50_000)
        idle, idle_taken, idle_own, idle_engine, _ = sync("nothing has changed")
        by_hand = loop(warehouse, settings, hubspot)
    # pages of what was edited; a read and a write of what the shop changed, a write of what we know
    # one search more tells that there is nothing else
    least = -(-EDITED // 200) + 1 + 2 * -(-IN_SHOP // 100) + -(-ENGAGED // 100)
    asked = sum(number for path, number in calls.items() if "/search" in path or "/batch/" in path)
    console.print(f"  by hand, a contact at a time: {by_hand:.1f} s for as many changes")
    return [
        Figure("first look: contacts a second of the processor", round(round_ / looked)),
        Figure("increment: seconds by the clock", round(taken, 2)),
        Figure(
            "increment: seconds of the processor, sync and engine", round(own + engine, 2), "at most", SECONDS
        ),
        Figure("increment: edits of HubSpot decided", edited, "at least", EDITED),
        Figure("increment: records written", made.counts["written"], "at least", IN_SHOP + ENGAGED),
        Figure("increment: calls", asked),
        Figure("increment: calls, times the least possible", round(asked / least, 3), "at most", CALLS),
        Figure("nothing changed: seconds by the clock", round(idle_taken, 2)),
        Figure(
            "nothing changed: seconds of the processor", round(idle_own + idle_engine, 2), "at most", SECONDS
        ),
        Figure("nothing changed: records written", idle.counts["written"], "at most", 0),
        Figure("by hand: seconds by the clock", round(by_hand, 1)),
        Figure("by hand, times as long", round(by_hand / taken, 1), "at least", 1.0),
    ]


def loop(warehouse: Warehouse, settings: CrmSettings, hubspot: HubSpot) -> float:
    """Seconds that as many changes take a contact at a time: look it up, decide, write."""
    store = WarehouseStore(warehouse, settings)
    start = time.perf_counter()
    for number in range(20_001, 20_001 + SAMPLE):
        history = store.history(pl.DataFrame({"contact_id": [number]}), RULES)
        resolve(RULES.rules(), {"hubspot": ["city"]}, history.versions, history.pushes, history.decided)
        hubspot.push("contact", [Change(str(number), str(number), {"city": "By hand"}, datetime.now(UTC))])
    return (time.perf_counter() - start) / SAMPLE * (EDITED + IN_SHOP + ENGAGED)


def main() -> None:
    """Parse arguments, measure, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100,000 contacts")
    parser.add_argument("--check", action="store_true", help="exit code 1 unless every target holds")
    given = parser.parse_args()
    console = Console(stderr=True)
    contacts = 100_000 if given.quick else 1_000_000
    try:
        with place(contacts) as where:
            figures = increment(where, console)
    except MailhouseError as error:
        console.print(f"[red]{error}[/]")
        sys.exit(2)
    holds = report({"increment": figures}, console)
    told = {one.name: one.value for one in figures}
    print(json.dumps({"benchmark": "crm_increments", "contacts": contacts, **told, "holds": holds}))
    if given.check and not holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
