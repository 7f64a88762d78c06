"""Loads are idempotent: by key within a frame, against what is stored, and after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from warehouse.client import Warehouse
from warehouse.errors import WarehouseError
from warehouse.loads import (
    LoadResult,
    clear_quarantine,
    load_consents,
    load_crm_records,
    load_events,
    load_products,
    quarantine,
)
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

START = datetime(2011, 1, 1, tzinfo=UTC)


def events(ids: list[str], *, properties: str = '{"n":1}', hours: int = 1) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "event_id": ids,
            "type": ["page.viewed"] * len(ids),
            "occurred_at": [START + timedelta(hours=hours * index) for index in range(len(ids))],
            "properties": [properties] * len(ids),
        },
        schema_overrides={"event_id": pl.String, "type": pl.String, "properties": pl.String},
    ).with_columns(pl.col("occurred_at").cast(pl.Datetime("ms", "UTC")))


def records(rows: list[tuple[str, datetime, str]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows,
        schema={"external_id": pl.String, "updated_at": pl.Datetime("ms", "UTC"), "properties": pl.String},
        orient="row",
    ).with_columns(source=pl.lit("shop"), object=pl.lit("contact"))


def stored(warehouse: Warehouse, table: str = "raw.events") -> int:
    return warehouse.value(f"select count() from {table}")


def test_an_event_counts_once_within_a_frame_and_across_loads(warehouse: Warehouse) -> None:
    first = load_events(warehouse, events(["a", "b", "a"]), run_id="one")
    assert first == LoadResult(read=3, loaded=2, duplicates=1)
    assert load_events(warehouse, events(["b", "c"]), run_id="two") == LoadResult(2, 1, 1)
    rows = warehouse.frame(
        "select event_id, run_id, received_at = occurred_at as same from raw.events order by 1"
    )
    assert rows.rows() == [("a", "one", True), ("b", "one", True), ("c", "two", True)]


def test_values_arrive_as_they_were_given(warehouse: Warehouse) -> None:
    frame = events(
        ["é✓"], properties='{"day":"2011-01-02","price":"2.50","items":[{"quantity":6}],"none":null}'
    )
    frame = frame.with_columns(
        email=pl.lit("A@b.co"), esp_event=pl.lit('{"raw":1}'), message_id=pl.lit(None, pl.String)
    )
    load_events(warehouse, frame)
    row = warehouse.frame(
        "select event_id, email, message_id, esp_event, toString(properties) p, occurred_at from raw.events"
    ).row(0, named=True)
    assert (row["event_id"], row["email"], row["message_id"], row["esp_event"]) == (
        "é✓",
        "A@b.co",
        "",
        '{"raw":1}',
    )
    assert row["p"] == '{"day":"2011-01-02","items":[{"quantity":6}],"price":"2.50"}'
    assert row["occurred_at"] == START


def test_rows_without_a_key_are_quarantined_and_the_others_load(warehouse: Warehouse) -> None:
    frame = events(["a", "", "c", "d"]).with_columns(
        type=pl.Series(["page.viewed", "page.viewed", None, "page.viewed"], dtype=pl.String),
        occurred_at=pl.Series(
            [START, START, START, datetime(1800, 1, 1, tzinfo=UTC)], dtype=pl.Datetime("ms", "UTC")
        ),
        source=pl.lit("shop"),
        file=pl.lit("x.jsonl"),
        line=pl.Series([1, 2, 3, 4], dtype=pl.UInt64),
    )
    assert load_events(warehouse, frame, run_id="r") == LoadResult(4, 1, 0, 3)
    rows = warehouse.frame(
        "select source, object, file, line, reason, run_id from raw.quarantined_rows order by line"
    )
    assert rows.rows() == [
        ("shop", "event", "x.jsonl", 2, "event_id is missing", "r"),
        ("shop", "event", "x.jsonl", 3, "type is missing", "r"),
        ("shop", "event", "x.jsonl", 4, "occurred_at lies outside 1900 to 2299", "r"),
    ]


@pytest.mark.parametrize(
    "poison",
    [
        '{"a":1,"a":2}',
        '{"a.b":1,"a":{"b":2}}',
        "{x",
        "[1]",
        "",
        '{"f":1e999}',
        '{"x":"\\ud800"}',
        '{"a":' * 3000 + "1" + "}" * 3000,
    ],
    ids=["twice", "dotted", "broken", "array", "empty", "huge", "surrogate", "deep"],
)
def test_properties_that_clickhouse_refuses_cost_one_row(warehouse: Warehouse, poison: str) -> None:
    frame = events(["a", "bad", "c"]).with_columns(
        properties=pl.Series(['{"n":1}', poison, '{"n":3}']), line=pl.Series([7, 8, 9], dtype=pl.UInt64)
    )
    assert load_events(warehouse, frame) == LoadResult(3, 2, 0, 1)
    assert stored(warehouse) == 2
    assert warehouse.frame(
        "select line, startsWith(reason, 'properties is no JSON') ok from raw.quarantined_rows"
    ).rows() == [(8, True)]


def test_a_batch_may_span_more_months_than_one_insert(warehouse: Warehouse) -> None:
    ids = [str(index) for index in range(250)]
    assert load_events(warehouse, events(ids, hours=24 * 31)) == LoadResult(250, 250)
    assert warehouse.value("select uniqExact(toYYYYMM(occurred_at)) from raw.events") > 200
    assert load_events(warehouse, events(ids, hours=24 * 31)) == LoadResult(250, 0, 250)


def test_few_and_many_keys_are_found_alike(warehouse: Warehouse) -> None:
    ids = [f"event-{index}" for index in range(30_000)]
    assert load_events(warehouse, events(ids, hours=0)).loaded == 30_000
    # up to 1,000 keys go through the bloom filter, more read the column
    assert load_events(warehouse, events([*ids[::300], "new"])) == LoadResult(101, 1, 100)
    assert load_events(warehouse, events(ids)) == LoadResult(30_000, 0, 30_000)


def test_wrong_frames_are_the_callers_mistake(warehouse: Warehouse) -> None:
    with pytest.raises(ValueError, match="has no column colour"):
        load_events(warehouse, events(["a"]).with_columns(colour=pl.lit("red")))
    with pytest.raises(ValueError, match="lack type"):
        load_events(warehouse, events(["a"]).drop("type"))
    with pytest.raises(pl.exceptions.InvalidOperationError):
        load_events(warehouse, events(["a"]).with_columns(occurred_at=pl.lit("yesterday")))


def test_an_error_that_is_no_rows_fault_is_raised(warehouse: Warehouse) -> None:
    warehouse.execute("drop table raw.events")
    with pytest.raises(WarehouseError, match=r"raw\.events"):
        load_events(warehouse, events(["a"]))


def test_records_are_versions_by_time(warehouse: Warehouse) -> None:
    later = START + timedelta(milliseconds=1)
    assert (
        load_crm_records(warehouse, records([("1", START, '{"a":1}'), ("1", later, '{"a":2}')])).loaded == 2
    )
    again = load_crm_records(warehouse, records([("1", later, '{"a":3}'), ("2", START, "{}")]))
    assert again == LoadResult(2, 1, 1)
    # the same id of another object or source is another thing
    other = records([("1", START, "{}")]).with_columns(object=pl.lit("company"))
    assert load_crm_records(warehouse, other).loaded == 1
    assert load_crm_records(warehouse, other.with_columns(source=pl.lit("crm"))).loaded == 1


def test_by_content_a_record_like_the_newest_is_no_version(warehouse: Warehouse) -> None:
    def load(day: int, properties: str, *, is_deleted: bool = False) -> LoadResult:
        frame = records([("1", START + timedelta(days=day), properties)])
        return load_crm_records(warehouse, frame.with_columns(is_deleted=pl.lit(is_deleted)), by_content=True)

    assert load(0, '{"a":"1","b":{"c":[1,2]},"d":"2011-01-01"}').loaded == 1
    # nulls and the order of keys make no difference, types do
    assert load(1, '{"d":"2011-01-01","b":{"c":[1,2]},"e":null,"a":"1"}') == LoadResult(1, 0, 1)
    assert load(2, '{"a":1,"b":{"c":[1,2]},"d":"2011-01-01"}').loaded == 1
    # back to what it was is a change, too
    assert load(3, '{"a":"1","b":{"c":[1,2]},"d":"2011-01-01"}').loaded == 1
    assert load(4, '{"a":"1","b":{"c":[1,2]},"d":"2011-01-01"}', is_deleted=True).loaded == 1
    assert load(5, "{broken").quarantined == 1
    assert stored(warehouse, "raw.crm_records") == 4
    # the newest is the one with the latest time, not the one that was loaded last
    assert load(-9, '{"old":1}').loaded == 1
    assert load(6, '{"a":"1","b":{"c":[1,2]},"d":"2011-01-01"}', is_deleted=True) == LoadResult(1, 0, 1)
    assert load(7, '{"old":1}').loaded == 1


def test_products_and_consents(warehouse: Warehouse) -> None:
    product = pl.DataFrame(
        {"source": ["shop"], "product_id": ["p"], "name": ["Lamp"], "price": ["2.50"], "updated_at": [START]}
    )
    product = product.with_columns(pl.col("updated_at").cast(pl.Datetime("ms", "UTC")))
    assert load_products(warehouse, product, by_content=True).loaded == 1
    later = product.with_columns(pl.col("updated_at") + pl.duration(days=1))
    assert load_products(warehouse, later, by_content=True) == LoadResult(1, 0, 1)
    assert load_products(warehouse, later.with_columns(price=pl.lit("2.49")), by_content=True).loaded == 1
    assert warehouse.frame(
        "select price::String, is_available from raw.products order by updated_at"
    ).rows() == [
        ("2.5", True),
        ("2.49", True),
    ]
    consent = pl.DataFrame(
        {
            "consent_id": ["c", "c", "d"],
            "channel": ["email"] * 3,
            "purpose": ["marketing"] * 3,
            "is_granted": [True, True, None],
            "basis": ["consent"] * 3,
            "occurred_at": pl.Series([START] * 3, dtype=pl.Datetime("ms", "UTC")),
        }
    )
    assert load_consents(warehouse, consent) == LoadResult(3, 1, 1, 1)
    assert load_consents(warehouse, consent.head(1)) == LoadResult(1, 0, 1)


def test_quarantine_of_a_file_can_be_cleared(warehouse: Warehouse) -> None:
    rows = pl.DataFrame(
        {"file": ["a", "b"], "line": [1, 2], "reason": ["x", "y"], "content": ["c" * 9000, ""]}
    )
    assert quarantine(warehouse, rows, source="shop", object="contact") == 2
    clear_quarantine(warehouse, source="shop", object="order", file="a")
    clear_quarantine(warehouse, source="shop", object="contact", file="a")
    assert warehouse.frame("select file, line from raw.quarantined_rows").rows() == [("b", 2)]


@budget(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 40), max_size=30), min_size=1, max_size=5))
def test_any_sequence_of_loads_stores_each_key_once(warehouse: Warehouse, loads: list[list[int]]) -> None:
    warehouse.execute("truncate table raw.events")
    known: set[int] = set()
    for numbers in loads:
        result = load_events(warehouse, events([str(number) for number in numbers], hours=0))
        fresh = set(numbers) - known
        assert result == LoadResult(len(numbers), len(fresh), len(numbers) - len(fresh))
        known |= fresh
    rows = warehouse.frame("select event_id from raw.events")["event_id"].to_list()
    assert sorted(rows) == sorted(str(number) for number in known)


LOADER = """
import sys
from datetime import UTC, datetime, timedelta
import polars as pl
from warehouse import loads
from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings
loads.BATCH_ROWS = 2_000
with Warehouse.connect(MailhouseSettings(warehouse_port=int(sys.argv[1]))) as warehouse:
    start = datetime(2011, 1, 1, tzinfo=UTC)
    ids = [f"event-{number}" for number in range(60_000)]
    frame = pl.DataFrame({"event_id": ids, "type": ["page.viewed"] * len(ids)}).with_columns(
        occurred_at=pl.lit(start).dt.cast_time_unit("ms") + pl.duration(minutes=pl.int_range(pl.len()))
    )
    print("ready", flush=True)
    result = loads.load_events(warehouse, frame, run_id=sys.argv[2])
    print(result.loaded, result.duplicates, flush=True)
"""


def test_a_killed_load_run_again_leaves_each_row_once(
    warehouse: Warehouse, warehouse_server: MailhouseSettings
) -> None:
    def start(run: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", LOADER, str(warehouse_server.warehouse_port), run]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    was_cut = False
    for attempt, wait in enumerate((0.15, 0.4)):
        process = start(str(attempt))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 10
        while not stored(warehouse) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        was_cut |= 0 < stored(warehouse) < 60_000
    process = start("last")
    out, _ = process.communicate(timeout=60)
    loaded, duplicates = map(int, out.split()[1:])
    assert loaded + duplicates == 60_000
    assert was_cut, "no kill came in the middle; the test proves nothing"
    rows = warehouse.frame("select count() n, uniqExact(event_id) u from raw.events").row(0)
    assert rows == (60_000, 60_000)


def test_migrated_schema_has_the_columns_that_loads_write(warehouse: Warehouse) -> None:
    assert migrate(warehouse) == []
    from warehouse import loads

    for raw in (loads._EVENTS, loads._RECORDS, loads._CONSENTS, loads._PRODUCTS):
        database, table = raw.table.split(".")
        names = warehouse.frame(
            "select name from system.columns where database = {d:String} and table = {t:String}"
            " and default_kind != 'MATERIALIZED'",
            {"d": database, "t": table},
        )["name"].to_list()
        assert set(names) == {*raw.columns, "loaded_at", "run_id"}
