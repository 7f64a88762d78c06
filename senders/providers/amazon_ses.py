"""Amazon SES: what became of mail that went out by SMTP, as Amazon SNS reports it.

SNS signs each message with RSA, under a certificate that it names. The certificate is taken only from SNS's own
addresses, and the message only if it is about our topic: anyone may have SNS sign messages of a topic of theirs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from senders.message import EventType, RejectReason
from senders.providers.base import WebhookReader
from senders.providers.webhooks import (
    Fetch,
    WebhookError,
    event_row,
    event_type,
    from_base64,
    from_iso,
    is_equal,
    is_recent,
    own_message_id,
    parse_json,
    required_key,
    text,
)
from senders.settings import SenderSettings

#: SNS goes on trying for hours, and signs the time at which the event was published.
TOLERANCE = timedelta(hours=25)
_CERTIFICATES = re.compile(r"https://sns\.[a-z0-9-]+\.amazonaws\.com(?:\.cn)?/[A-Za-z0-9_./-]+\.pem")
_SIGNED = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
_SIGNED_SUBSCRIPTION = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")

_EVENTS = {
    "Send": EventType.SENT,
    "Delivery": EventType.DELIVERED,
    "DeliveryDelay": EventType.DEFERRED,
    "Bounce": EventType.BOUNCED,
    "Complaint": EventType.COMPLAINED,
    "Reject": EventType.REJECTED,
    "Open": EventType.OPENED,
    "Click": EventType.CLICKED,
    "Rendering Failure": EventType.FAILED,
}
#: Under which key an event of each kind keeps its details and its recipients.
_DETAILS = {
    "Delivery": ("delivery", "recipients"),
    "DeliveryDelay": ("deliveryDelay", "delayedRecipients"),
    "Bounce": ("bounce", "bouncedRecipients"),
    "Complaint": ("complaint", "complainedRecipients"),
    "Reject": ("reject", ""),
    "Open": ("open", ""),
    "Click": ("click", ""),
    "Rendering Failure": ("failure", ""),
    "Send": ("send", ""),
}
_REASONS = {
    EventType.BOUNCED: RejectReason.BOUNCED,
    EventType.COMPLAINED: RejectReason.SPAM,
    EventType.REJECTED: RejectReason.BLOCKED,
}
_BOUNCES = {"Permanent": "hard", "Transient": "soft", "Undetermined": "soft"}

_log = logging.getLogger("mailhouse.webhooks")


class AmazonSesEvents(WebhookReader):
    """Reads SNS messages about SES events.

    Args:
        topic: ARN of the topic that reports them.
        fetch: address of a certificate -> PEM; kept for as long as this lives.
    """

    name = "amazon_ses"

    def __init__(self, topic: str, *, fetch: Fetch | None = None) -> None:
        self._topic = topic
        self._fetch = fetch or _fetch
        self._certificates: dict[str, Any] = {}

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> AmazonSesEvents:
        """The reader of the settings."""
        return cls(settings.amazon_ses_topic)

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """RSA over the message's fields, SHA-1 (version 1) or SHA-256 (version 2)."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

        required_key(self._topic, self.name, "amazon_ses_topic")
        try:
            message = parse_json(body, self.name)
        except WebhookError:
            return False
        if not isinstance(message, dict) or not is_equal(self._topic, text(message.get("TopicArn"))):
            return False
        published = from_iso(message.get("Timestamp"), datetime.fromtimestamp(0, UTC))
        if not is_recent(str(int(published.timestamp())), now, TOLERANCE):
            return False
        place = text(message.get("SigningCertURL"))
        signature = from_base64(text(message.get("Signature")))
        algorithm = {"1": hashes.SHA1, "2": hashes.SHA256}.get(text(message.get("SignatureVersion")))
        if not signature or algorithm is None or not _CERTIFICATES.fullmatch(place):
            return False
        names = _SIGNED if message.get("Type") == "Notification" else _SIGNED_SUBSCRIPTION
        content = "".join(f"{name}\n{message[name]}\n" for name in names if message.get(name) is not None)
        try:
            self._key(place).verify(signature, content.encode(), PKCS1v15(), algorithm())
        except (InvalidSignature, ValueError):
            return False
        return True

    def _key(self, place: str) -> Any:
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
        from cryptography.x509 import load_pem_x509_certificate

        if place not in self._certificates:
            key = load_pem_x509_certificate(self._fetch(place)).public_key()
            if not isinstance(key, RSAPublicKey):
                raise ValueError("the certificate has no RSA key")
            self._certificates[place] = key
        return self._certificates[place]

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row a recipient; none for a message about the subscription itself, whose link is logged."""
        message = parse_json(body, self.name)
        if not isinstance(message, dict):
            raise WebhookError("This call of amazon_ses is no SNS message.")
        if message.get("Type") in ("SubscriptionConfirmation", "UnsubscribeConfirmation"):
            _log.warning("SNS asks to confirm the subscription: open %s", text(message.get("SubscribeURL")))
            return []
        event = parse_json(text(message.get("Message")), self.name)
        if not isinstance(event, dict):
            raise WebhookError("This call of amazon_ses holds no SES event.")
        return _rows(message, event, now)


def _rows(message: dict[str, Any], event: dict[str, Any], now: datetime | None) -> list[dict[str, Any]]:
    word = text(event.get("eventType")) or text(event.get("notificationType"))
    kind = event_type(_EVENTS, word)
    place, recipients_key = _DETAILS.get(word, ("", ""))
    details, mail = _dict(event.get(place)), _dict(event.get("mail"))
    entries = _list(details.get(recipients_key)) if recipients_key else []
    recipients = [(text(entry.get("emailAddress")), entry) for entry in map(_dict, entries) if entry]
    recipients = recipients or [(text(entry), {}) for entry in entries or _list(mail.get("destination"))]
    sent = [
        (text(h.get("name")).lower(), text(h.get("value"))) for h in map(_dict, _list(mail.get("headers")))
    ]
    bounce = text(details.get("bounceType"))
    description = ": ".join(filter(None, (bounce, text(details.get("bounceSubType")))))
    for name in ("complaintFeedbackType", "reason", "errorMessage", "delayType"):
        description = description or text(details.get(name))
    metadata = [value for name, value in sent if name == "x-metadata"]
    message_id = next((own_message_id(value) for name, value in sent if name == "message-id"), "")
    return [
        event_row(
            "amazon_ses",
            kind,
            event,
            occurred_at=from_iso(message.get("Timestamp"), now),
            event_id=f"{text(message.get('MessageId'))}:{email}" if message.get("MessageId") else "",
            email=email,
            message_id=message_id,
            reject_reason=_REASONS.get(kind),
            metadata={"x-metadata": metadata[-1]} if metadata else None,
            bounce_class=_BOUNCES.get(bounce, "soft") if kind is EventType.BOUNCED else None,
            provider_message_id=text(mail.get("messageId")),
            description=description,
            mta_response=text(entry.get("diagnosticCode")) or text(details.get("smtpResponse")),
            user_agent=text(details.get("userAgent")),
            url=text(details.get("link")),
            tags=[value for name, value in sent if name == "x-tag"] or None,
        )
        for email, entry in recipients or [("", {})]
    ]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _fetch(url: str) -> bytes:
    import httpx

    try:
        response = httpx.get(url, timeout=10, follow_redirects=False)
    except httpx.HTTPError as error:
        raise ValueError(f"the certificate cannot be fetched: {error}") from error
    if response.status_code != 200:
        raise ValueError(f"the certificate cannot be fetched: {response.status_code}")
    return response.content
