"""Taking what providers and CRMs report: checked, read, in the stream, and only then an answer.

A call that cannot be stored is answered with 503, so that the provider calls again; one that was stored before is
answered with 200 and stored no more. What has been seen is kept in the ledger's database, so that all gateways know it;
beyond that memory, a repeated call stores nothing either, because events are stored once by their id.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping

from gateway.crm_webhooks import READERS
from gateway.events import Event
from gateway.http import JSON
from gateway.metrics import Metrics, Refusal
from gateway.settings import GatewaySettings
from gateway.streams import StreamError
from gateway.unsubscribes import Tell
from senders.ledger import LedgerError
from senders.providers import get_webhook_reader
from senders.providers.base import NotSupportedError, WebhookReader
from senders.providers.webhooks import SeenCalls, SeenStore, WebhookError, receive
from warehouse.errors import SettingsError

_STATUSES = {"forged": 403, "replayed": 200, "unreadable": 400}
_COUNTED: Mapping[str, Refusal] = {
    "forged": "bad_signature", "replayed": "replay", "unreadable": "hostile_body",
}  # fmt: skip
_log = logging.getLogger("mailhouse.gateway")


class Webhooks:
    """Takes providers' and CRMs' calls. Safe to share between threads.

    Args:
        tell: adds events to the stream; they are on disk when it returns.
        seen: where calls are remembered; one that all gateways share.
    """

    def __init__(self, settings: GatewaySettings, tell: Tell, metrics: Metrics, *, seen: SeenStore) -> None:
        self.settings = settings
        self._tell, self._metrics = tell, metrics
        self._seen = SeenCalls(seen)
        self._readers: dict[str, WebhookReader] = {}
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
            if received.rows:
                self._tell([Event.of_row(row) for row in received.rows])
            self._seen.note(received.key, now)
        except WebhookError as error:
            self._metrics.refused(_COUNTED[error.reason])
            _log.warning("a webhook call of %s was not taken: %s", name, error.message)
            return _STATUSES[error.reason], error.reason
        except (SettingsError, NotSupportedError) as error:
            _log.error("a webhook call of %s cannot be checked: %s", name, error.message)
            return 503, "not set up"
        except (StreamError, LedgerError) as error:
            _log.error("events of %s could not be stored: %s", name, error.message)
            return 503, "not stored"
        return 200, "stored"

    def answer(self, name: str, body: bytes, status: int, word: str) -> tuple[bytes, bytes]:
        """What the caller is told about a call that `take` took: body and content type.

        Args:
            body: of the call.
            status, word: as `take` returned them.
        """
        acknowledgement = self._reader(name).acknowledgement(body) if status == 200 else None
        return acknowledgement or (answer_body(word), JSON)

    def _reader(self, name: str) -> WebhookReader:
        with self._lock:
            if name not in self._readers:
                reader = READERS.get(name)
                self._readers[name] = (
                    reader.from_settings(self.settings) if reader else get_webhook_reader(self.settings, name)
                )
            return self._readers[name]


def answer_body(word: str) -> bytes:
    """What a provider is told, as JSON."""
    return json.dumps({"result": word}).encode()
