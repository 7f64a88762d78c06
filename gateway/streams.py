"""The event stream: where events wait between a caller's request and the warehouse.

`append` returns when the events are on disk; what is acknowledged to a caller has gone through it. The consumer reads
in order and acknowledges what the warehouse and all handlers have; what was read and not acknowledged is read again
after a crash. One process consumes at a time (`gateway.leading`), any number append.

By default the stream is kept where the ledger is: with PostgreSQL in a table of its database, with SQLite in a file of
its own beside it, so that a sender's claims and a burst of events do not wait for each other's lock.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from gateway.settings import GatewaySettings
from senders.ledger import Ledger
from senders.settings import SenderSettings
from senders.tables import stream_events
from warehouse.errors import MailhouseError

_POLL = 0.02  # seconds between looks for what another process appended
_LOCK_SECONDS = 30
# any number that no other lock has: appends are one after another, so that numbers are in order of commit
_APPENDS = 7_246_453_109


class StreamError(MailhouseError):
    """The stream cannot be written or read; nothing that it has taken is lost."""


class StreamFullError(StreamError):
    """More events wait than may; whoever posts them shall come again."""


@dataclass(frozen=True)
class Batch:
    """Events that were read: what `ack` needs to know of each, and each as it was appended."""

    positions: Sequence[Any]
    payloads: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.positions)


class EventStream(Protocol):
    """A stream of events. `append` and `depth` may be called by any thread, the others by one consumer's threads."""

    def append(self, payloads: Sequence[bytes]) -> None:
        """Add events, all or none; durable when it returns.

        Raises:
            StreamError: they may or may not be in the stream; adding them again does no harm, for events count once.
        """
        ...

    def read(self, most: int, wait: float) -> Batch | None:
        """The next events that this reader has not read, at once if there are any; None after so many seconds.

        Raises:
            StreamError: it cannot be read now; read again later.
        """
        ...

    def ack(self, batch: Batch) -> None:
        """Forget events that are dealt with. Batches are acknowledged in the order in which they were read.

        Raises:
            StreamError: they may be read again after a restart.
        """
        ...

    def restart(self) -> None:
        """Begin reading with the oldest event that was never acknowledged, whoever read it."""
        ...

    def depth(self) -> int:
        """Events that are not acknowledged, about.

        Raises:
            StreamError: it cannot be asked.
        """
        ...

    def close(self) -> None:
        """Give connections back."""
        ...


def open_stream(settings: GatewaySettings, ledger: Ledger) -> EventStream:
    """The stream of the settings.

    Raises:
        SettingsError, StreamError: it is not there, or keeps nothing on disk.
    """
    if settings.gateway_stream == "redis":
        from gateway.redis_stream import RedisStream

        return RedisStream.open(settings)
    path = stream_path(settings, ledger)
    return PostgresStream(ledger.engine) if path is None else SqliteStream(path)


def stream_path(settings: SenderSettings, ledger: Ledger) -> Path | None:
    """The SQLite file that keeps the stream, beside the ledger; None where it is in the ledger's database."""
    if ledger.engine.dialect.name == "postgresql":
        return None
    database = ledger.engine.url.database or ""
    path = Path(database) if database and not database.startswith("file:") else settings.home / "ledger.db"
    return path.with_name(path.name.removesuffix(".db") + "-stream.db")


class _Growth:
    """Tells a reader at once what this process has appended, also while it was looking."""

    def __init__(self) -> None:
        self.number = 0
        self._change = threading.Condition()

    def tell(self) -> None:
        with self._change:
            self.number += 1
            self._change.notify_all()

    def wait(self, seen: int, seconds: float) -> None:
        with self._change:
            if self.number == seen:
                self._change.wait(seconds)


class SqliteStream:
    """The stream in a SQLite file of its own: WAL, every commit on disk.

    Args:
        path: the file; made if it is not there.

    Raises:
        StreamError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._grown = _Growth()
        self._last = 0  # newest id that was read
        self._acked = 0  # newest id that may be forgotten
        self._forgotten = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            self._reader = self._connect()
            with self._writing() as connection:
                connection.execute(
                    "create table if not exists events (id integer primary key autoincrement, payload blob not null)"
                )
        except (OSError, sqlite3.Error) as error:
            raise self._error(error) from error

    def append(self, payloads: Sequence[bytes]) -> None:
        """See `EventStream`."""
        with self._writing() as connection:
            connection.executemany("insert into events (payload) values (?)", [(one,) for one in payloads])
            # the commit goes to disk anyway
            self._forget(connection)
        self._grown.tell()

    def read(self, most: int, wait: float) -> Batch | None:
        """See `EventStream`."""
        until = time.monotonic() + wait
        while True:
            seen = self._grown.number
            try:
                rows = self._reader.execute(
                    "select id, payload from events where id > ? order by id limit ?", (self._last, most)
                ).fetchall()
            except sqlite3.Error as error:
                raise self._error(error) from error
            if rows:
                self._last = rows[-1][0]
                return Batch([row[0] for row in rows], [row[1] for row in rows])
            if self._acked > self._forgotten:
                with self._writing() as connection:
                    self._forget(connection)
            left = until - time.monotonic()
            if left <= 0:
                return None
            # another process may append, too
            self._grown.wait(seen, min(left, _POLL))

    def ack(self, batch: Batch) -> None:
        """See `EventStream`; takes effect with the next commit, or when there is nothing to read."""
        self._acked = max(self._acked, batch.positions[-1])

    def restart(self) -> None:
        """See `EventStream`."""
        self._last = self._acked

    def depth(self) -> int:
        """See `EventStream`."""
        try:
            with self._lock:
                low, high = self._writer.execute(
                    "select coalesce((select min(id) from events), 0), coalesce((select max(id) from events), -1)"
                ).fetchone()
        except sqlite3.Error as error:
            raise self._error(error) from error
        return max(0, high - max(low, self._acked + 1) + 1)

    def close(self) -> None:
        """See `EventStream`."""
        with contextlib.suppress(StreamError), self._writing() as connection:
            self._forget(connection)
        with self._lock:
            self._writer.close()
            self._reader.close()

    def _forget(self, connection: sqlite3.Connection) -> None:
        acked = self._acked
        if acked > self._forgotten:
            connection.execute("delete from events where id <= ?", (acked,))
            self._forgotten = acked

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        return connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            forgotten = self._forgotten
            try:
                self._writer.execute("begin immediate")
                yield self._writer
                self._writer.execute("commit")
            except BaseException as error:
                self._forgotten = forgotten
                with contextlib.suppress(sqlite3.Error):
                    if self._writer.in_transaction:
                        self._writer.execute("rollback")
                if isinstance(error, sqlite3.Error):
                    raise self._error(error) from error
                raise

    def _error(self, error: Exception) -> StreamError:
        return StreamError(
            f"The event stream {self._path} cannot be used: {error}.",
            fix="See that its folder can be written and its disk is not full.",
        )


class PostgresStream:
    """The stream in a table of the ledger's PostgreSQL database.

    Args:
        engine: the ledger's.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._last = 0
        self._grown = _Growth()

    def append(self, payloads: Sequence[bytes]) -> None:
        """See `EventStream`."""
        with self._errors(), self._engine.begin() as connection:
            connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _APPENDS})
            connection.exec_driver_sql(
                "insert into stream_events (payload) select given from unnest(%s::bytea[]) with ordinality"
                " as rows (given, place) order by place",
                (list(payloads),),
            )
        self._grown.tell()

    def read(self, most: int, wait: float) -> Batch | None:
        """See `EventStream`."""
        until = time.monotonic() + wait
        query = (
            sa.select(stream_events.c.id, stream_events.c.payload)
            .where(stream_events.c.id > self._last)
            .order_by(stream_events.c.id)
            .limit(most)
        )
        while True:
            seen = self._grown.number
            with self._errors(), self._engine.connect() as connection:
                rows = connection.execute(query).all()
            if rows:
                self._last = rows[-1].id
                return Batch([row.id for row in rows], [bytes(row.payload) for row in rows])
            left = until - time.monotonic()
            if left <= 0:
                return None
            self._grown.wait(seen, min(left, _POLL))

    def ack(self, batch: Batch) -> None:
        """See `EventStream`."""
        with self._errors(), self._engine.begin() as connection:
            connection.execute(stream_events.delete().where(stream_events.c.id <= batch.positions[-1]))

    def restart(self) -> None:
        """See `EventStream`."""
        self._last = 0

    def depth(self) -> int:
        """See `EventStream`."""
        ids = stream_events.c.id
        with self._errors(), self._engine.connect() as connection:
            low, high = connection.execute(sa.select(sa.func.min(ids), sa.func.max(ids))).one()
        return 0 if low is None else high - low + 1

    def close(self) -> None:
        """See `EventStream`; the connections are the ledger's."""

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise StreamError(
                f"The event stream in the ledger's database cannot be used: {type(error).__name__}.",
                fix="Check that the server of MAILHOUSE_LEDGER_URL runs.",
            ) from error
