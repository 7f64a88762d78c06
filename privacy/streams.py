"""Events on their way into the warehouse: in a SQLite file beside the ledger, in a table of it, or in Redis Streams.

What waits in Kafka (`gateway.kafka`) cannot be taken out of it: its retention lets it go.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from gateway.streams import StreamError, stream_path
from privacy.person import Person
from privacy.search import Search
from senders.ledger import Ledger
from senders.settings import SenderSettings
from senders.tables import stream_events

_LOCK_SECONDS = 30
_PAGE = 1_000


def counts(settings: SenderSettings, ledger: Ledger, person: Person) -> dict[str, int]:
    """Events about the person that wait, by stream."""
    return _each(settings, ledger, person, is_erasing=False)


def erase(settings: SenderSettings, ledger: Ledger, person: Person) -> dict[str, int]:
    """Take events about the person out of every stream; returns how many, by stream."""
    return _each(settings, ledger, person, is_erasing=True)


def waiting(settings: SenderSettings, ledger: Ledger, person: Person) -> Iterator[tuple[str, bytes]]:
    """Stream and payload of each event about the person that waits."""
    search = Search.of(person)
    for name, stream in _streams(settings, ledger):
        for _, payload in stream.entries():
            if search.is_in(payload):
                yield name, payload


def _each(settings: SenderSettings, ledger: Ledger, person: Person, *, is_erasing: bool) -> dict[str, int]:
    search = Search.of(person)
    found: dict[str, int] = {}
    for name, stream in _streams(settings, ledger):
        positions = [position for position, payload in stream.entries() if search.is_in(payload)]
        if positions:
            found[name] = len(positions)
        if positions and is_erasing:
            stream.remove(positions)
    return found


def _streams(settings: SenderSettings, ledger: Ledger) -> Iterator[tuple[str, Any]]:
    yield "ledger stream_events", _LedgerTable(ledger)
    path = stream_path(settings, ledger)
    if path is not None and path.exists():
        yield f"stream {path.name}", _SqliteFile(path)
    if settings.redis_url is not None:
        yield "Redis stream", _Redis(settings.redis_url.get_secret_value())


class _LedgerTable:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def entries(self) -> Iterator[tuple[Any, bytes]]:
        with self._ledger.engine.connect().execution_options(is_reading=True) as connection:
            for row in connection.execute(sa.select(stream_events.c.id, stream_events.c.payload)):
                yield row.id, bytes(row.payload)

    def remove(self, positions: list[Any]) -> None:
        with self._ledger.engine.begin() as connection:
            for start in range(0, len(positions), 500):
                connection.execute(
                    stream_events.delete().where(stream_events.c.id.in_(positions[start : start + 500]))
                )


class _SqliteFile:
    def __init__(self, path: Any) -> None:
        self._path = path

    def entries(self) -> Iterator[tuple[Any, bytes]]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=_LOCK_SECONDS)) as connection:
            if connection.execute("select count(*) from sqlite_master where name = 'events'").fetchone()[0]:
                yield from connection.execute("select id, payload from events").fetchall()

    def remove(self, positions: list[Any]) -> None:
        with contextlib.closing(
            sqlite3.connect(self._path, timeout=_LOCK_SECONDS, isolation_level=None)
        ) as connection:
            connection.execute("pragma secure_delete = on")
            connection.execute("begin immediate")
            connection.executemany("delete from events where id = ?", [(one,) for one in positions])
            connection.execute("commit")


class _Redis:
    """Entries of the stream, and whoever holds them: an entry that was read and not acknowledged is both."""

    def __init__(self, url: str) -> None:
        import redis

        self._redis = redis.Redis.from_url(url, socket_timeout=_LOCK_SECONDS, socket_connect_timeout=5)
        self._error: type[Exception] = redis.RedisError

    def entries(self) -> Iterator[tuple[Any, bytes]]:
        from gateway.redis_stream import KEY

        start = "-"
        with self._errors():
            while True:
                rows: Any = self._redis.xrange(KEY, min=start, count=_PAGE)
                for position, fields in rows:
                    yield position, fields.get(b"e", b"")
                if len(rows) < _PAGE:
                    return
                start = b"(" + rows[-1][0]

    def remove(self, positions: list[Any]) -> None:
        from gateway.redis_stream import GROUP, KEY

        with self._errors():
            for start in range(0, len(positions), 500):
                part = positions[start : start + 500]
                pipeline = self._redis.pipeline(transaction=True)
                pipeline.xdel(KEY, *part)
                with contextlib.suppress(Exception):
                    # there is no group before anybody has read
                    self._redis.xack(KEY, GROUP, *part)
                pipeline.execute()
            # the append-only file keeps what was deleted until it is written anew
            self._redis.bgrewriteaof()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise StreamError(
                f"Redis, which may keep events of the person, failed: {type(error).__name__}.",
                fix="Check that the server of MAILHOUSE_REDIS_URL runs, then give the same command again.",
            ) from error
