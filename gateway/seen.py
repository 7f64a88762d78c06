"""Webhook calls that were taken, kept in the ledger's database: all gateways refuse what one of them has taken."""

from __future__ import annotations

import threading
import time
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from senders.ledger import Ledger, LedgerError, milliseconds
from senders.tables import seen_calls

_CLEAN_EVERY = 600.0  # seconds


class LedgerSeenStore:
    """See `senders.providers.webhooks.SeenStore`."""

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine
        self._insert = (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(
            seen_calls
        )
        self._cleaned_at = 0.0
        self._newest = 0  # the latest time that anybody asked for: the settings' clock may be shifted
        self._lock = threading.Lock()

    def has(self, key: str, now: datetime) -> bool:
        """Whether the key was added and has not expired.

        Raises:
            LedgerError: the ledger does not answer; the call must not be taken then.
        """
        self._newest = max(self._newest, milliseconds(now))
        query = sa.select(seen_calls.c.key).where(
            seen_calls.c.key == key, seen_calls.c.expires_at > milliseconds(now)
        )
        try:
            with self._engine.connect().execution_options(is_reading=True) as connection:
                return connection.execute(query).first() is not None
        except SQLAlchemyError as error:
            raise self._failed(error) from error

    def add(self, key: str, expires_at: datetime) -> None:
        """Keep the key.

        Raises:
            LedgerError: the ledger does not answer.
        """
        values = {"key": key, "expires_at": milliseconds(expires_at)}
        statement = self._insert.values(**values).on_conflict_do_update(
            index_elements=["key"], set_={"expires_at": values["expires_at"]}
        )
        try:
            with self._engine.begin() as connection:
                connection.execute(statement)
                if self._is_due():
                    connection.execute(seen_calls.delete().where(seen_calls.c.expires_at < self._newest))
        except SQLAlchemyError as error:
            raise self._failed(error) from error

    def _is_due(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if self._cleaned_at and now - self._cleaned_at < _CLEAN_EVERY:
                return False
            self._cleaned_at = now
            return True

    @staticmethod
    def _failed(error: SQLAlchemyError) -> LedgerError:
        return LedgerError(
            f"The ledger, which remembers webhook calls, failed: {type(error).__name__}.",
            fix="Check that its database runs.",
        )
