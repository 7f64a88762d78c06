"""The read-only user of BI tools on the embedded engine: reads the `bi` schema, writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError
from pydantic import SecretStr

from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.settings import MailhouseSettings

READER, PASSWORD = "superset", "only-reads"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailhouseSettings]:
    """An engine with a reader, and a view as dbt writes those of the `bi` schema."""
    port = free_port()
    settings = MailhouseSettings.model_construct(
        home=Path(tmp_path_factory.mktemp("reader")),
        warehouse_port=port,
        warehouse_password=SecretStr("owner"),
        warehouse_readers={READER: SecretStr(PASSWORD)},
    )
    with launcher.start(settings), Warehouse.connect(settings) as warehouse:
        for statement in (
            "create database marts",
            "create database bi",
            "create table marts.rfm (recency_score UInt8) engine = MergeTree order by recency_score",
            "insert into marts.rfm values (1), (5), (5)",
            "create view bi.rfm_grid definer = current_user sql security definer as"
            " (select recency_score, count() as customers_count from marts.rfm group by recency_score)",
        ):
            warehouse.execute(statement)
        yield settings


def connect(settings: MailhouseSettings, password: str = PASSWORD):
    return clickhouse_connect.get_client(
        host="127.0.0.1", port=settings.warehouse_port, username=READER, password=password, database="bi"
    )


def test_a_reader_reads_the_views(server: MailhouseSettings) -> None:
    with connect(server) as reader:
        rows = reader.query("select * from rfm_grid order by 1").result_rows
        assert rows == [(1, 1), (5, 2)]
        # what BI tools ask before they ask anything
        assert reader.query("show tables from bi").result_rows == [("rfm_grid",)]
        assert reader.query("describe table bi.rfm_grid").row_count == 2


@pytest.mark.parametrize(
    "sql",
    [
        "insert into marts.rfm values (3)",
        "create table bi.mine (a Int32) engine = Memory",
        "create view bi.mine as select 1",
        "create or replace view bi.rfm_grid as select 1",
        "drop view bi.rfm_grid",
        "truncate table marts.rfm",
        "alter table marts.rfm delete where true",
        "rename table marts.rfm to marts.gone",
        "drop database bi",
        "select * from file('/etc/passwd', 'LineAsString')",
        "select * from bi.rfm_grid into outfile '/tmp/leak'",
    ],
)
def test_a_reader_changes_nothing(server: MailhouseSettings, sql: str) -> None:
    with connect(server) as reader:
        with pytest.raises(ClickHouseError):
            reader.command(sql)
        assert reader.query("select sum(customers_count) from rfm_grid").result_rows == [(3,)]


def test_a_reader_needs_the_password(server: MailhouseSettings) -> None:
    with pytest.raises(ClickHouseError, match="Authentication failed"):
        connect(server, "guess")
