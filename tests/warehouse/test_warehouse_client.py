"""The client against the embedded server: frames in and out, and errors that say what to do."""

from __future__ import annotations

import socket
from datetime import UTC, datetime

import polars as pl
import pytest
from pydantic import SecretStr

from warehouse.client import Warehouse
from warehouse.errors import WarehouseError, WarehouseUnavailable
from warehouse.settings import MailhouseSettings, WarehouseAddress


def test_frames_go_in_and_come_out(warehouse: Warehouse) -> None:
    moment = datetime(2011, 6, 27, 9, 30, 0, 123000, tzinfo=UTC)
    events = pl.DataFrame(
        {
            "event_id": ["a", "b"],
            "type": ["order.placed", "page.viewed"],
            "occurred_at": [moment, moment],
            "properties": ['{"order_id": "2011-01-01", "n": 1}', "{}"],
        }
    )
    assert warehouse.insert("raw.events", events) == 2
    assert warehouse.insert("raw.events", events.clear()) == 0

    found = warehouse.frame(
        "select event_id, occurred_at, email, properties.order_id::String as order_id from raw.events "
        "where event_id = {id:String}",
        {"id": "a"},
    )
    # a string that looks like a date stays the string it was
    assert found.rows() == [("a", moment, "", "2011-01-01")]
    assert warehouse.value("select 1 from raw.events where 0") is None


def test_batches_come_in_order_and_in_size(warehouse: Warehouse) -> None:
    frames = list(warehouse.batches("select number from numbers(25000) order by number", rows=10_000))
    assert pl.concat(frames)["number"].to_list() == list(range(25_000))
    assert all(frame.height <= 10_000 for frame in frames)
    assert list(warehouse.batches("select 1 as a where 0")) == []


def test_a_bad_query_is_an_error_with_its_code(warehouse: Warehouse) -> None:
    with pytest.raises(WarehouseError, match="nope") as caught:
        warehouse.frame("select nope from system.one")
    assert caught.value.code == 47
    assert not isinstance(caught.value, WarehouseUnavailable)
    with pytest.raises(WarehouseError) as caught:
        warehouse.execute("drop table raw.no_such_table")
    assert caught.value.code == 60
    with pytest.raises(WarehouseError):
        warehouse.insert("raw.events", pl.DataFrame({"no_such_column": [1]}))


def test_an_error_while_batches_stream_is_ours(warehouse: Warehouse) -> None:
    with pytest.raises(WarehouseError, match="non-zero"):
        list(warehouse.batches("select throwIf(number = 900000) as a from numbers(1000000)"))


def test_what_a_table_refuses_is_an_error_and_not_a_silent_loss(warehouse: Warehouse) -> None:
    """chDB's streaming insert reports these as done; the server must not."""
    warehouse.execute("create database if not exists refusals")
    warehouse.execute(
        "create or replace table refusals.t (a Int64, constraint small check a < 10) engine = MergeTree order by a"
    )
    with pytest.raises(WarehouseError, match="Constraint `small`"):
        warehouse.insert("refusals.t", pl.DataFrame({"a": [1, 20]}))

    warehouse.execute("create or replace table refusals.s (a Int64) engine = MergeTree order by a")
    warehouse.execute("create or replace table refusals.target (a Int64) engine = MergeTree order by a")
    warehouse.execute(
        "create materialized view refusals.view to refusals.target as select throwIf(a = 5) as a from refusals.s"
    )
    with pytest.raises(WarehouseError, match="non-zero"):
        warehouse.insert("refusals.s", pl.DataFrame({"a": [5]}))

    warehouse.execute(
        "create or replace table refusals.p (a Int64) engine = MergeTree partition by a order by a"
    )
    with pytest.raises(WarehouseError, match="Too many partitions"):
        warehouse.insert("refusals.p", pl.DataFrame({"a": list(range(200))}))
    for table in ("t", "p"):
        assert warehouse.value(f"select count() from refusals.{table}") == 0
    warehouse.execute("drop database refusals")


def test_nothing_answers() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = WarehouseAddress("http", "127.0.0.1", probe.getsockname()[1], "default", "")
    with pytest.raises(WarehouseUnavailable, match="does not answer") as caught:
        Warehouse(address).value("select 1")
    assert "mailhouse up" in caught.value.fix


def test_a_wrong_password_is_named_but_not_shown(warehouse_server: MailhouseSettings) -> None:
    settings = warehouse_server.model_copy(update={"warehouse_password": SecretStr("s3cret")})
    with pytest.raises(WarehouseUnavailable, match="refuses user 'default'") as caught:
        Warehouse.connect(settings).value("select 1")
    assert caught.value.code == 516
    assert "s3cret" not in str(caught.value) + repr(settings) + repr(settings.warehouse)
    assert "MAILHOUSE_WAREHOUSE_PASSWORD" in caught.value.fix or "MAILHOUSE_WAREHOUSE_URL" in caught.value.fix
