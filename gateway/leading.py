"""One gateway consumes, the others stand by.

Two processes that load the same event at the same moment would both find it missing. So whoever consumes holds a lock
that the kernel or PostgreSQL takes away the moment the process dies: a file's lock where the ledger is SQLite, an
advisory lock of the ledger's database where it is PostgreSQL. No lease, so nobody has to wait for one to run out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from gateway.settings import GatewaySettings
from senders.ledger import Ledger

_CONSUMING = 7_246_453_110  # any number that no other lock of the database has


class Lead(Protocol):
    """The right to consume; used by one thread."""

    def take(self) -> bool:
        """Whether this process has it now, having tried to get it."""
        ...

    def give_up(self) -> None:
        """Let another have it."""
        ...


def lead_of(settings: GatewaySettings, ledger: Ledger) -> Lead:
    """The lock of whoever consumes the stream of these settings."""
    if ledger.engine.dialect.name == "postgresql":
        return PostgresLead(ledger.engine)
    return FileLead(settings.home / "gateway.lock")


class FileLead:
    """A lock on a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """See `Lead`."""
        if self._descriptor is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def give_up(self) -> None:
        """See `Lead`."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class PostgresLead:
    """An advisory lock, held by a connection of its own, which every `take` asks whether it still stands."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: sa.Connection | None = None

    def take(self) -> bool:
        """See `Lead`."""
        try:
            if self._connection is not None:
                self._connection.execute(sa.text("select 1"))
                return True
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if connection.execute(sa.text("select pg_try_advisory_lock(:key)"), {"key": _CONSUMING}).scalar():
                self._connection = connection
                return True
            connection.close()
        except SQLAlchemyError:
            self.give_up()
        return False

    def give_up(self) -> None:
        """See `Lead`."""
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                # not back to the pool, where it would go on holding the lock
                self._connection.invalidate()
                self._connection.close()
            self._connection = None
