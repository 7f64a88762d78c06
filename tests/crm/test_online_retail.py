"""The demo's input: real, dirty invoices whose counts are known (`demo/data/README.md`)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from crm.files import ingest_files, load_sources
from demo.data import contacts_frame, write_inputs
from warehouse.client import Warehouse

ROOT = Path(__file__).parents[2]
NOW = datetime(2011, 6, 27, 9, 30, tzinfo=UTC)


def test_every_line_of_online_retail_arrives_once(warehouse: Warehouse, tmp_path: Path) -> None:
    sources = load_sources(ROOT / "content")
    names = ["online_retail_contacts", "online_retail_orders", "provider_events"]
    assert set(names) <= set(sources)
    written = write_inputs(tmp_path / "inbox")
    start = time.perf_counter()
    contacts, orders, events = (
        ingest_files(warehouse, sources[name], base_dir=tmp_path, run_id="demo", now=NOW) for name in names
    )
    seconds = time.perf_counter() - start
    assert (contacts.rows, contacts.loaded, contacts.quarantined) == (2_974, 2_974, 0)
    assert contacts.consents == written.consents
    assert (orders.rows, orders.loaded, orders.duplicates, orders.quarantined) == (240_007, 12_468, 0, 0)
    assert events.files == ()
    # a guard against a change of order, not a benchmark: 3 s on two quiet cores
    assert seconds < 30

    lines = """
        with arrayJoin(JSONExtract(toString(properties), 'items',
            'Array(Tuple(quantity Int64, unit_price String))')) as item
        select type = 'order.cancelled' as is_cancelled, external_id != '' as is_known, event_id, external_id,
            item.quantity as quantity, toDecimal64(item.unit_price, 4) as price, occurred_at
        from raw.events
    """
    counted = warehouse.frame(
        f"""
        select count() as lines, countIf(is_cancelled) as cancelled, countIf(not is_known) as unknown,
            uniqExactIf(external_id, is_known) as customers,
            countIf(quantity <= 0) as no_quantity, countIf(price <= 0) as no_price,
            sumIf(quantity * price, is_sale) as revenue, countIf(is_sale) as sales,
            uniqExactIf(event_id, is_sale) as invoices, uniqExactIf(external_id, is_sale) as buyers,
            min(occurred_at) as earliest, max(occurred_at) as latest
        from (select *, is_known and not is_cancelled and quantity > 0 and price > 0 as is_sale from ({lines}))
        """
    ).row(0, named=True)
    assert round(counted.pop("revenue"), 2) == Decimal("3888971.74")
    assert counted == {
        "lines": 240_007,
        "cancelled": 4_350,
        "unknown": 67_225,
        "customers": 2_974,
        "no_quantity": 5_087,
        "no_price": 1_413,
        "sales": 168_662,
        "invoices": 8_589,
        "buyers": 2_931,
        "earliest": datetime(2010, 12, 1, 8, 26, tzinfo=UTC),
        "latest": datetime(2011, 6, 26, 10, 59, tzinfo=UTC),
    }
    cohorts = warehouse.frame(
        f"""
        select toYYYYMM(first) as month, count() as customers from (
            select external_id, min(occurred_at) as first from ({lines})
            where is_known and not is_cancelled and quantity > 0 and price > 0 group by external_id
        ) group by month order by month
        """
    )
    assert cohorts["customers"].to_list() == [885, 417, 380, 452, 300, 284, 213]

    again = [ingest_files(warehouse, sources[name], base_dir=tmp_path, now=NOW) for name in names]
    assert [(report.loaded, report.consents) for report in again] == [(0, 0)] * 3


def test_contacts_of_the_demo_are_real_customers_with_assumed_consent(tmp_path: Path) -> None:
    written = write_inputs(tmp_path)
    before = written.contacts_file.stat().st_mtime_ns
    assert write_inputs(tmp_path) == written
    assert written.contacts_file.stat().st_mtime_ns == before
    frame = contacts_frame()
    assert frame["external_id"].n_unique() == frame.height == 2_974
    assert frame["email"].str.contains(r"^customer-\d+@example\.com$").all()
    withheld = frame.filter(frame["marketing_consent"].is_null())
    every_25th = frame["external_id"].cast(int) % 25 == 0
    assert frame.filter(every_25th)["marketing_consent"].null_count() == every_25th.sum() > 100
    # and those who never bought: soft opt-in needs a sale
    assert withheld.height == frame.height - written.consents
    assert every_25th.sum() < withheld.height <= every_25th.sum() + 43
