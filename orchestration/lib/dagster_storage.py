"""Dagster's SQLite event log, without a connection made and a log file flushed for each event.

The stock storage opens a database, writes one event, and closes it; the last to close a database in WAL mode also folds
the log into it. A dbt build tells Dagster some three hundred events, and this was most of its time. Here each process
keeps its connections, and a commit does not wait for the disk: a power cut may cost Dagster the last events of its log,
never the database. What was sent is in the ledger, which does wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster import StringSource
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import StaticPool

_KEPT = 16
"""Databases kept open: that of all assets, and one for each recent run."""


class SqliteEventLog(SqliteEventLogStorage):
    """The stock SQLite event log on connections that are kept."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._found: set[tuple[str, str]] = set()
        super().__init__(base_dir, inst_data)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """`home`: Dagster's home folder; the log lies where the stock storage has it."""
        return {"home": StringSource}

    @classmethod
    def from_config_value(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> SqliteEventLog:
        """The storage of a Dagster home."""
        return cls(str(Path(config_value["home"]) / "history" / "runs"), inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        # the lock of the stock storage: one connection a database is enough, since one thread uses it at a time
        with self._db_lock:
            engine = self._engine(shard)
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            with engine.connect() as connection, connection.begin():
                yield connection

    # The stock storage asks for each event whether the database has the tables and columns that this version of
    # Dagster makes; no version takes one away, so what was found once is not looked for again.

    def has_table(self, table_name: str) -> bool:
        """Whether the database of all assets has a table."""
        return self._is_found("table", table_name, lambda: super(SqliteEventLog, self).has_table(table_name))

    def has_secondary_index(self, name: str) -> bool:
        """Whether the rows that were there before a table was added have been entered in it."""
        return self._is_found("index", name, lambda: super(SqliteEventLog, self).has_secondary_index(name))

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        return self._is_found(
            "column",
            column_name,
            lambda: super(SqliteEventLog, self)._has_asset_key_col_on_connection(conn, column_name),
        )

    def _is_found(self, kind: str, name: str, look: Callable[[], bool]) -> bool:
        if (kind, name) not in self._found and look():
            self._found.add((kind, name))
        return (kind, name) in self._found

    def dispose(self) -> None:
        """Close what was kept."""
        with self._db_lock:
            for engine in self._engines.values():
                engine.dispose()
            self._engines.clear()
        super().dispose()

    def _engine(self, shard: str) -> Engine:
        engines = self._engines
        if shard not in engines:
            engine = create_engine(
                self.conn_string_for_shard(shard),
                poolclass=StaticPool,
                connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
            )
            event.listen(engine, "connect", _do_not_wait_for_the_disk)
            engines[shard] = engine
            if len(engines) > _KEPT:
                engines.popitem(last=False)[1].dispose()
        engines.move_to_end(shard)
        return engines[shard]


def _do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
    connection.execute("pragma synchronous = normal")
