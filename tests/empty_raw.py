"""Raw tables without rows: emptied where they are as the migrations leave them, which is quick, else made again."""

from __future__ import annotations

from warehouse.client import Warehouse
from warehouse.schema import migrate

_made: dict[str, list[tuple[str, str]]] = {}
"""By server: the tables that the migrations made there, and how."""


def _tables(warehouse: Warehouse) -> list[tuple[str, str, int]]:
    return warehouse.frame(
        "select name, create_table_query, ifNull(total_rows, 0) as rows from system.tables where database = 'raw'"
        " order by name"
    ).rows()


def empty_raw(warehouse: Warehouse) -> None:
    """Leave the database `raw` as a first start does."""
    server = str(warehouse.value("select serverUUID()"))
    found = _tables(warehouse)
    running = "select count() from system.mutations where database = 'raw' and not is_done"
    if [row[:2] for row in found] == _made.get(server) and not warehouse.value(running):
        for name, _, rows in found:
            if rows and name != "schema_migrations":
                warehouse.execute(f"truncate table raw.{name}")
        return
    warehouse.execute("drop database if exists raw")
    migrate(warehouse)
    _made[server] = [row[:2] for row in _tables(warehouse)]
