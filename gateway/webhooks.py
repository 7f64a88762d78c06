"""Storing what providers report: checked, read, in `raw.events`, and only then an answer.

A call that cannot be stored is answered with 503, so that the provider calls again; one that was stored before is
answered with 200 and stored no more. What has been seen is kept in this process; beyond its memory, a repeated call
stores nothing either, because events are stored once by their id.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping

import polars as pl

from senders.providers import get_webhook_reader
from senders.providers.base import NotSupportedError, WebhookReader
from senders.providers.webhooks import MemorySeenStore, SeenCalls, SeenStore, WebhookError, receive
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import SettingsError, WarehouseError
from warehouse.loads import EVENT_COLUMNS, load_events

_STATUSES = {"forged": 403, "replayed": 200, "unreadable": 400}
_log = logging.getLogger("mailhouse.gateway")


class Webhooks:
    """Takes providers' calls. Safe to share between threads.

    Args:
        seen: where calls are remembered; one that all gateways share, if there are several.
    """

    def __init__(
        self, settings: SenderSettings, warehouse: Warehouse, *, seen: SeenStore | None = None
    ) -> None:
        self.settings, self.warehouse = settings, warehouse
        self._seen = SeenCalls(seen or MemorySeenStore())
        self._readers: dict[str, WebhookReader] = {}
        # two calls with the same events must not both find them missing
        self._lock = threading.Lock()

    def knows(self, name: str) -> bool:
        """Whether there is such a provider, it calls webhooks, and it is set up here."""
        try:
            self._reader(name)
        except (SettingsError, NotSupportedError) as error:
            _log.info("a webhook call for %s: %s", name, error.message)
            return False
        return True

    def take(self, name: str, body: bytes, headers: Mapping[str, str], target: str) -> tuple[int, str]:
        """Take one call; returns the HTTP status and a word for the provider's log.

        Args:
            target: path and query that were called.
        """
        now = self.settings.now()
        try:
            received = receive(
                self._reader(name), body, headers, seen=self._seen, now=now,
                url=self.settings.base_url.rstrip("/") + target,
            )  # fmt: skip
        except WebhookError as error:
            _log.warning("a webhook call of %s was not taken: %s", name, error.message)
            return _STATUSES[error.reason], error.reason
        except (SettingsError, NotSupportedError) as error:
            _log.error("a webhook call of %s cannot be checked: %s", name, error.message)
            return 503, "not set up"
        if received.rows:
            times = {column: EVENT_COLUMNS[column] for column in ("occurred_at", "received_at")}
            frame = pl.DataFrame(received.rows, schema_overrides=times, infer_schema_length=None)
            try:
                with self._lock:
                    result = load_events(self.warehouse, frame, run_id="gateway", kind="webhook event")
            except WarehouseError as error:
                _log.error("events of %s could not be stored: %s", name, error.message)
                return 503, "not stored"
            if result.quarantined:
                _log.warning("%d events of %s are in raw.quarantined_rows", result.quarantined, name)
        self._seen.note(received.key, now)
        return 200, "stored"

    def _reader(self, name: str) -> WebhookReader:
        with self._lock:
            if name not in self._readers:
                self._readers[name] = get_webhook_reader(self.settings, name)
            return self._readers[name]


def answer_body(word: str) -> bytes:
    """What a provider is told, as JSON."""
    return json.dumps({"result": word}).encode()
