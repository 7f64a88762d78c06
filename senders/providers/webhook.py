"""Any other system: messages to one address, signed as Standard Webhooks has it, and its reports back.

Each message is a POST with `webhook-id` (our message id: the receiver drops what it has seen), `webhook-timestamp` and
`webhook-signature` (https://www.standardwebhooks.com). The receiver may report what became of messages by calls signed
with the same secret: `{"type": "delivered", "message_id": ..., "email": ..., "occurred_at": ...}`, or a list of these.
"""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from pydantic import SecretStr

from senders.loopback import is_loopback
from senders.message import Delivery, EventType, Message, RejectReason, Status
from senders.providers.base import Capabilities
from senders.providers.http import Call, HttpProvider, Verdict, required
from senders.providers.webhooks import (
    event_row,
    event_type,
    from_base64,
    from_iso,
    is_equal,
    is_recent,
    lowered,
    objects,
    parse_json,
    text,
)
from senders.settings import SenderSettings
from warehouse.errors import SettingsError

_PREFIX = "whsec_"
_EVENTS = {kind.value: kind for kind in EventType}
_REASONS = {reason.value: reason for reason in RejectReason}
_MOST_SIGNATURES = 10


class WebhookProvider(HttpProvider):
    """Post messages to one address.

    Args:
        secret: `whsec_` and base64 of at least 16 bytes.
    """

    name = "webhook"
    signed_headers = ("webhook-id", "webhook-timestamp")
    capabilities = Capabilities(channel="webhook", dispatch_window=100, wants_raw=False, has_webhooks=True)

    def __init__(self, url: str, secret: SecretStr, **options: Any) -> None:
        parts = urlsplit(url)
        if not parts.hostname or (parts.scheme != "https" and not is_loopback(parts.hostname)):
            raise SettingsError(
                "MAILHOUSE_WEBHOOK_URL is no https address.",
                fix="Write it like https://hooks.example.com/mailhouse; http is for this machine only.",
            )
        key = from_base64(secret.get_secret_value().removeprefix(_PREFIX))
        if key is None or len(key) < 16:
            raise SettingsError(
                "MAILHOUSE_WEBHOOK_SECRET is no secret of 16 bytes or more in base64.",
                fix='Make one with: python -c \'import base64, os; print("whsec_" + '
                "base64.b64encode(os.urandom(32)).decode())'",
            )
        super().__init__(f"{parts.scheme}://{parts.netloc}", secrets=[secret], **options)
        self._place = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._key = key

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> WebhookProvider:
        """The provider of the settings.

        Raises:
            SettingsError: address or secret is missing or not usable.
        """
        fix = "Set MAILHOUSE_WEBHOOK_URL to where messages go, and MAILHOUSE_WEBHOOK_SECRET to sign them."
        return cls(
            required(settings.webhook_url, "webhook", "a url", "webhook_url", fix),
            required(settings.webhook_secret, "webhook", "a secret", "webhook_secret", fix),
            connections=settings.http_connections,
        )

    def problem(self, message: Message) -> str:
        """Anything goes."""
        return ""

    def calls(self, batch: Sequence[Message]) -> Iterator[Call]:
        """One call a message, signed at the moment."""
        for message in batch:
            stamp = str(int(time.time()))
            body = orjson.dumps(
                {
                    "type": "message.send",
                    "timestamp": message.sent_at.isoformat(),
                    "data": {
                        "message_id": message.message_id,
                        "contact_id": message.contact_id,
                        "email": message.recipient.email,
                        "name": message.recipient.name,
                        "from_email": message.sender.email,
                        "from_name": message.sender.name,
                        "subject": message.subject,
                        "html": message.html,
                        "text": message.text,
                        "headers": dict(message.headers),
                    },
                }
            )
            headers = {
                "webhook-id": message.message_id,
                "webhook-timestamp": stamp,
                "webhook-signature": self._sign(message.message_id, stamp, body),
            }
            yield Call([message], self._place, json=body, headers=headers)

    def parse(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """Any 2xx is a yes."""
        (message,) = call.messages
        return [Delivery(message.message_id, Status.SENT, reply=self.words(response))]

    def judge(self, response: httpx.Response) -> Verdict:
        """410 means that the address is gone for good."""
        return Verdict.REFUSED if response.status_code == 410 else super().judge(response)

    def _sign(self, identifier: str, stamp: str, body: bytes) -> str:
        content = f"{identifier}.{stamp}.".encode() + body
        return "v1," + base64.b64encode(hmac.new(self._key, content, "sha256").digest()).decode()

    # webhooks

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """One of the signatures is ours, and five minutes old at most."""
        values = lowered(headers)
        identifier, stamp = values.get("webhook-id", ""), values.get("webhook-timestamp", "")
        if not identifier or not is_recent(stamp, now):
            return False
        signed = self._sign(identifier, stamp, body)
        given = values.get("webhook-signature", "").split()[:_MOST_SIGNATURES]
        return any(is_equal(signed, signature) for signature in given)

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row an event."""
        value = parse_json(body, self.name)
        events = objects(value if isinstance(value, list) else [value], self.name)
        identifier = lowered(headers).get("webhook-id", "")
        return [
            event_row(
                self.name,
                event_type(_EVENTS, event.get("type")),
                event,
                occurred_at=from_iso(event.get("occurred_at"), now),
                event_id=text(event.get("event_id")) or (f"{identifier}:{number}" if identifier else ""),
                email=text(event.get("email")),
                message_id=text(event.get("message_id")),
                reject_reason=_REASONS.get(text(event.get("reject_reason"))),
                bounce_class=text(event.get("bounce_class")) if event.get("type") == "bounced" else None,
                description=text(event.get("description")),
                user_agent=text(event.get("user_agent")),
                url=text(event.get("url")),
            )
            for number, event in enumerate(events)
        ]
