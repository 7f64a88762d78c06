"""Webhook calls that were taken, kept in the ledger's database: all gateways refuse what one of them has taken."""

from __future__ import annotations

import threading
import time
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from senders.ledger import Ledger, LedgerError, milliseconds
from senders.tables import seen_calls

_CLEAN_EVERY = 600.0  # seconds
_ADD = sa.text(
    "insert into seen_calls (key, expires_at) values (:key, :expires_at) "
    "on conflict (key) do update set expires_at = excluded.expires_at"
)


class LedgerSeenStore:
    """See `senders.providers.webhooks.SeenStore`."""

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine
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
        try:
            with self._engine.begin() as connection:
                connection.execute(_ADD, {"key": key, "expires_at": milliseconds(expires_at)})
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
