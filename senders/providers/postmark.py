"""Postmark: what became of mail that went out by its SMTP server.

Postmark signs nothing, so the address it is told ends in `?secret=...`. It says no message id of ours unless the mail
carried `X-PM-Metadata-mailhouse_message_id`; without one an event is matched by its recipient.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import SecretStr

from senders.message import EventType, RejectReason
from senders.providers.base import WebhookReader
from senders.providers.webhooks import (
    MESSAGE_ID,
    WebhookError,
    event_row,
    event_type,
    from_iso,
    has_secret,
    parse_json,
    required_key,
    text,
)
from senders.settings import SenderSettings

_EVENTS = {
    "Delivery": EventType.DELIVERED,
    "Open": EventType.OPENED,
    "Click": EventType.CLICKED,
    "SpamComplaint": EventType.COMPLAINED,
    "Inbound": EventType.INBOUND,
}
#: What a record of type Bounce, or a suppression, means by its own type.
_BOUNCES: dict[str, tuple[EventType, RejectReason | None]] = {
    "HardBounce": (EventType.BOUNCED, RejectReason.BOUNCED),
    "SoftBounce": (EventType.BOUNCED, RejectReason.BOUNCED),
    "VirusNotification": (EventType.BOUNCED, RejectReason.OTHER),
    "Transient": (EventType.DEFERRED, None),
    "DnsError": (EventType.DEFERRED, None),
    "OpenRelayTest": (EventType.DEFERRED, None),
    "Unsubscribe": (EventType.UNSUBSCRIBED, RejectReason.UNSUBSCRIBED),
    "ManualSuppression": (EventType.UNSUBSCRIBED, RejectReason.UNSUBSCRIBED),
    "Subscribe": (EventType.SUBSCRIBED, None),
    "AutoResponder": (EventType.AUTORESPONDED, None),
    "AddressChange": (EventType.AUTORESPONDED, None),
    "ChallengeVerification": (EventType.AUTORESPONDED, None),
    "SpamNotification": (EventType.COMPLAINED, RejectReason.SPAM),
    "SpamComplaint": (EventType.COMPLAINED, RejectReason.SPAM),
    "BadEmailAddress": (EventType.REJECTED, RejectReason.INVALID),
    "ManuallyDeactivated": (EventType.REJECTED, RejectReason.BLOCKED),
    "Unconfirmed": (EventType.REJECTED, RejectReason.OTHER),
    "Blocked": (EventType.REJECTED, RejectReason.BLOCKED),
    "DMARCPolicy": (EventType.REJECTED, RejectReason.BLOCKED),
    "SMTPApiError": (EventType.FAILED, None),
    "TemplateRenderingFailed": (EventType.FAILED, None),
}
_TIMES = ("DeliveredAt", "BouncedAt", "ReceivedAt", "ChangedAt")


class PostmarkEvents(WebhookReader):
    """Reads Postmark's calls.

    Args:
        secret: ends the address that Postmark was told.
    """

    name = "postmark"

    def __init__(self, secret: SecretStr | None) -> None:
        self._secret = secret

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> PostmarkEvents:
        """The reader of the settings."""
        return cls(settings.webhook_url_secret)

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """The secret in the address."""
        return has_secret(url, required_key(self._secret, self.name, "webhook_url_secret"))

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row; Postmark calls once an event."""
        event = parse_json(body, self.name)
        if not isinstance(event, dict):
            raise WebhookError("This call of postmark is no event.")
        record = text(event.get("RecordType"))
        kind, reason = event_type(_EVENTS, record), None
        if record in ("Bounce", "SpamComplaint"):
            kind, reason = _BOUNCES.get(text(event.get("Type")), (EventType.UNKNOWN, None))
        elif record == "SubscriptionChange":
            if event.get("SuppressSending") is False:
                kind = EventType.SUBSCRIBED
            else:
                kind, reason = _BOUNCES.get(text(event.get("SuppressionReason")), (EventType.UNKNOWN, None))
        metadata = event.get("Metadata") if isinstance(event.get("Metadata"), dict) else {}
        assert isinstance(metadata, dict)
        is_bounce = kind is EventType.BOUNCED
        provider_id = text(event.get("ID"))
        return [
            event_row(
                self.name,
                kind,
                event,
                occurred_at=from_iso(next((event[name] for name in _TIMES if name in event), None), now),
                # a suppression has no id of its own, and a bounce's id is that of its complaint, too
                event_id=f"{provider_id}:{record}" if provider_id else "",
                email=text(event.get("Email")) or text(event.get("Recipient")),
                message_id=text(metadata.get(MESSAGE_ID)),
                reject_reason=reason,
                metadata={name: value for name, value in metadata.items() if name != MESSAGE_ID},
                bounce_class=("soft" if event.get("Type") == "SoftBounce" else "hard") if is_bounce else None,
                provider_message_id=text(event.get("MessageID")),
                description=text(event.get("Description")),
                mta_response=text(event.get("Details")) if record != "Delivery" else None,
                user_agent=text(event.get("UserAgent")),
                url=text(event.get("OriginalLink")),
                tags=[text(event.get("Tag"))] if text(event.get("Tag")) else None,
            )
        ]
