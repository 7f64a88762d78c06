"""The raw tables: migrating is idempotent and makes what the migrations say."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from warehouse.client import Warehouse
from warehouse.schema import MIGRATIONS, migrate


def test_migrating_twice_runs_nothing_the_second_time_and_keeps_rows(warehouse: Warehouse) -> None:
    moment = datetime(2011, 6, 27, 9, 30, tzinfo=UTC)
    frame = pl.DataFrame({"event_id": ["e1"], "type": ["order.placed"], "occurred_at": [moment]})
    warehouse.insert("raw.events", frame)

    assert migrate(warehouse) == []
    assert warehouse.value("select count() from raw.schema_migrations") == len(MIGRATIONS)
    assert warehouse.value("select count() from raw.events") == 1


def test_every_raw_table_says_what_it_holds(warehouse: Warehouse) -> None:
    tables = warehouse.frame("select name, comment from system.tables where database = 'raw'")

    assert {"crm_records", "events", "messages", "consents", "recommendations", "predictions"} <= set(
        tables["name"]
    )
    assert tables.filter(pl.col("comment") == "")["name"].to_list() == []


def test_a_migration_that_broke_off_is_taken_up_again(warehouse: Warehouse) -> None:
    # as if the process had died between the tables and the note that they are made
    warehouse.execute("truncate table raw.schema_migrations")
    warehouse.execute("drop table raw.products sync")

    assert [migration.version for migration in migrate(warehouse)] == [m.version for m in MIGRATIONS]
    assert warehouse.value("select count() from raw.products") == 0
