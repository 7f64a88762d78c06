"""Twilio SendGrid: mail through v3 Mail Send, and its signed Event Webhook.

Up to 1,000 messages go in one call: what messages of one template share is sent once, what differs as substitutions
(`senders.providers.batching`). SendGrid has no idempotency key, so our message id travels in `custom_args` and comes
back with every event; those settle what a lost connection leaves open. A batch that is held back (`deliver_at`) gets a
batch id, by which `cancel` stops it.
"""

from __future__ import annotations

import base64
import itertools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx
import orjson
from pydantic import SecretStr

from senders.attachments import base64_of
from senders.message import Address, Delivery, EventType, Message, RejectReason, Status
from senders.mime import mailbox
from senders.providers.base import Capabilities, ProviderRefusedError
from senders.providers.batching import Shared, share
from senders.providers.http import (
    Call,
    HttpProvider,
    Verdict,
    json_object,
    required,
    seconds_until,
    unique_recipients,
)
from senders.providers.webhooks import (
    BATCH_ID,
    MESSAGE_ID,
    event_row,
    event_type,
    from_base64,
    from_epoch,
    is_recent,
    lowered,
    objects,
    own_message_id,
    parse_json,
    required_key,
    text,
)
from senders.settings import SenderSettings
from warehouse.errors import SettingsError

BASE_URL = "https://api.sendgrid.com"
MOST_PERSONALIZATIONS = 1000
#: Bytes of one personalization's substitutions; SendGrid allows 10,000 with its custom_args.
MOST_BYTES = 9_500
#: SendGrid calls again for 24 hours when we fail to answer, and states no age at which a call is stale.
TOLERANCE = timedelta(hours=25)

_EVENTS = {
    "processed": EventType.QUEUED,
    "deferred": EventType.DEFERRED,
    "delivered": EventType.DELIVERED,
    "bounce": EventType.BOUNCED,
    "dropped": EventType.REJECTED,
    "open": EventType.OPENED,
    "click": EventType.CLICKED,
    "spamreport": EventType.COMPLAINED,
    "unsubscribe": EventType.UNSUBSCRIBED,
    "group_unsubscribe": EventType.UNSUBSCRIBED,
    "group_resubscribe": EventType.SUBSCRIBED,
}
_DROPPED = {
    "invalid": RejectReason.INVALID,
    "bounced address": RejectReason.BOUNCED,
    "unsubscribed address": RejectReason.UNSUBSCRIBED,
    "spam reporting address": RejectReason.SPAM,
    "spam content (if spam checker app enabled)": RejectReason.SPAM,
    "recipient list over package quota": RejectReason.BLOCKED,
}
_REASONS = {
    EventType.COMPLAINED: RejectReason.SPAM,
    EventType.UNSUBSCRIBED: RejectReason.UNSUBSCRIBED,
}
#: Keys that SendGrid puts into an event itself; others came with the message.
_OWN_KEYS = frozenset(
    {
        "email", "timestamp", "smtp-id", "event", "category", "sg_event_id", "sg_message_id", "ip", "response", "tls",
        "status", "reason", "type", "attempt", "useragent", "url", "url_offset", "asm_group_id", "sg_machine_open",
        "bounce_classification", "cert_err", "sg_content_type", "sg_template_id", "sg_template_name",
        "marketing_campaign_id", "marketing_campaign_name", "pool", "send_at", "newsletter", MESSAGE_ID, BATCH_ID,
    }
)  # fmt: skip
_ALIKE = operator.attrgetter("sender", "reply_to", "is_tracked", "attachments")
_CULPRIT = re.compile(r"personalizations[.\[](\d+)")


class SendGridProvider(HttpProvider):
    """Send through SendGrid.

    Args:
        webhook_key: the public key of the Event Webhook's signatures, base64 as SendGrid shows it.
    """

    name = "sendgrid"
    signed_headers = ("x-twilio-email-event-webhook-timestamp",)
    capabilities = Capabilities(
        most_per_call=MOST_PERSONALIZATIONS, wants_raw=False, can_attach=True, can_track=True,
        longest_hold=timedelta(hours=72), can_cancel=True, has_webhooks=True,
    )  # fmt: skip

    def __init__(
        self,
        key: SecretStr,
        *,
        base_url: str = BASE_URL,
        webhook_key: str = "",
        **options: Any,
    ) -> None:
        super().__init__(
            base_url, headers={"authorization": f"Bearer {key.get_secret_value()}"}, secrets=[key], **options
        )
        self._webhook_key = webhook_key
        self._batch_id = ""

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> SendGridProvider:
        """The provider of the settings.

        Raises:
            SettingsError: there is no key.
        """
        key = required(
            settings.sendgrid_key, "sendgrid", "a key", "sendgrid_key",
            "Make one with the permission Mail Send under Settings, API Keys.",
        )  # fmt: skip
        return cls(
            key, base_url=settings.sendgrid_url, webhook_key=settings.sendgrid_webhook_key,
            connections=settings.http_connections,
        )  # fmt: skip

    # sending

    def problem(self, message: Message) -> str:
        """SendGrid takes no message without subject or content."""
        if not message.subject:
            return "the subject is empty"
        if not (any(map(any, message.pieces)) if message.pieces else message.html or message.text):
            return "the message is empty"
        return super().problem(message)

    def calls(self, batch: Sequence[Message]) -> Iterator[Call]:
        """One call for up to 1,000 messages of one shape, sender and tracking."""
        alike: dict[tuple[Any, ...], list[Message]] = {}
        # nearly all have the same sender: comparing costs less than hashing
        for key, run in itertools.groupby(batch, _ALIKE):
            held: list[Message] = []
            at_once: list[Message] = []
            for message in run:
                (at_once if message.deliver_at is None else held).append(message)
            for is_held, messages in ((False, at_once), (True, held)):
                if messages:
                    alike.setdefault((key, is_held), []).extend(messages)
        for messages in alike.values():
            for group in unique_recipients(messages, MOST_PERSONALIZATIONS):
                for shared in share(
                    group, tag=lambda name: f"-mh{name}-", most_bytes=MOST_BYTES, most=MOST_PERSONALIZATIONS
                ):
                    yield self._call(shared)

    def _call(self, shared: Shared) -> Call:
        first = shared.messages[0]
        batch_id = self._batch() if first.deliver_at is not None else ""
        payload: dict[str, Any] = {
            "personalizations": [
                _personalization(message, values, batch_id)
                for message, values in zip(shared.messages, shared.values, strict=True)
            ],
            "from": _address(first.sender),
            "content": [
                {"type": kind, "value": value}
                for kind, value in (("text/plain", shared.text), ("text/html", shared.html))
                if value
            ],
            "tracking_settings": {
                "click_tracking": {"enable": first.is_tracked, "enable_text": False},
                "open_tracking": {"enable": first.is_tracked},
                # our own link and header do that
                "subscription_tracking": {"enable": False},
            },
        }
        if first.attachments:
            payload["attachments"] = [
                {
                    "content": base64_of(one), "filename": one.name, "type": one.media_type,
                    "disposition": "attachment",
                }
                for one in first.attachments
            ]  # fmt: skip
        if first.reply_to is not None:
            payload["reply_to"] = _address(first.reply_to)
        if batch_id:
            payload["batch_id"] = batch_id
        return Call(shared.messages, "/v3/mail/send", json=orjson.dumps(payload), note=batch_id)

    def parse(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """202 means that all were accepted."""
        if response.status_code != 202:
            raise ValueError("only 202 says that the messages were accepted")
        provider_message_id = response.headers.get("x-message-id", "")
        reply = f"202 Accepted; batch {call.note}" if call.note else "202 Accepted"
        status = Status.QUEUED if call.note else Status.SENT
        return [
            Delivery(message.message_id, status, provider_message_id=provider_message_id, reply=reply)
            for message in call.messages
        ]

    def judge(self, response: httpx.Response) -> Verdict:
        """SendGrid's own 5xx says that it failed to accept; a gateway's says nothing."""
        status = response.status_code
        if status in (500, 502, 504) and self.is_own(response):
            return Verdict.LATER
        if status == 400 and any(str(field).startswith("from") for field in _fields(response)):
            return Verdict.REFUSED
        return super().judge(response)

    def is_own(self, response: httpx.Response) -> bool:
        """SendGrid's errors have a list `errors`."""
        return isinstance((json_object(response) or {}).get("errors"), list)

    def culprits(self, call: Call, response: httpx.Response) -> set[int] | None:
        """Positions that the errors' fields name; all, where they name something that the messages share."""
        fields = _fields(response)
        found = {int(match[1]) for field in fields if (match := _CULPRIT.match(str(field)))}
        found = {position for position in found if position < len(call.messages)}
        if found:
            return found
        shared = [field for field in fields if field and not str(field).startswith("personalizations")]
        return set(range(len(call.messages))) if shared and response.status_code == 400 else None

    def reject_reason(self, response: httpx.Response) -> RejectReason:
        """An address that SendGrid does not take is invalid."""
        is_address = any(str(field).endswith(("to", "email")) for field in _fields(response))
        return RejectReason.INVALID if is_address else RejectReason.OTHER

    def retry_after(self, response: httpx.Response) -> float | None:
        """Retry-After if there is one, else the moment at which the rate limit is reset."""
        asked = super().retry_after(response)
        return seconds_until(response.headers.get("x-ratelimit-reset", "")) if asked is None else asked

    def refusal(self, response: httpx.Response) -> ProviderRefusedError:
        """Say which setting to correct."""
        return ProviderRefusedError(
            f"SendGrid refuses us: {self.words(response)}.",
            fix="Correct MAILHOUSE_SENDGRID_KEY (permission Mail Send), MAILHOUSE_SENDGRID_URL (the EU has its own) "
            "or MAILHOUSE_FROM_EMAIL (a verified sender).",
        )

    # batches that are held back

    def _batch(self) -> str:
        """One batch id for all that this provider holds back; raises as `send` may."""
        with self._lock:
            if not self._batch_id:
                response = self.ask(Call([], "/v3/mail/batch"), "make a batch id")
                self._batch_id = text((json_object(response) or {}).get("batch_id"))
                if not self._batch_id:
                    raise ProviderRefusedError(f"SendGrid gave no batch id: {self.words(response)}.")
            return self._batch_id

    def cancel(self, batch_id: str) -> None:
        """Stop what SendGrid still holds back of a batch; until ten minutes before it is due.

        Raises:
            ProviderError: it refuses, or does not answer.
        """
        body = orjson.dumps({"batch_id": batch_id, "status": "cancel"})
        self.ask(Call([], "/v3/user/scheduled_sends", json=body), f"cancel batch {batch_id}")

    # webhooks

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """ECDSA over P-256 and SHA-256 of timestamp and body."""
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        required_key(self._webhook_key, "sendgrid", "sendgrid_webhook_key")
        values = lowered(headers)
        timestamp = values.get("x-twilio-email-event-webhook-timestamp", "")
        signature = from_base64(values.get("x-twilio-email-event-webhook-signature", ""))
        if not signature or not is_recent(timestamp, now, TOLERANCE):
            return False
        try:
            key = load_der_public_key(base64.b64decode(self._webhook_key))
            if not isinstance(key, EllipticCurvePublicKey):
                raise ValueError
        except (ValueError, UnsupportedAlgorithm):
            raise SettingsError(
                "MAILHOUSE_SENDGRID_WEBHOOK_KEY is no public key of an Event Webhook.",
                fix="Copy the verification key from Settings, Mail Settings, Event Webhook; it begins with MFkw.",
            ) from None
        try:
            key.verify(signature, timestamp.encode() + body, ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row an event."""
        return [_row(event, now) for event in objects(parse_json(body, self.name), self.name)]


def _row(event: dict[str, Any], now: datetime | None) -> dict[str, Any]:
    kind = event_type(_EVENTS, event.get("event"))
    reason = _REASONS.get(kind)
    bounce_class = ""
    if kind is EventType.REJECTED:
        reason = _DROPPED.get(text(event.get("reason")).lower(), RejectReason.OTHER)
    elif kind is EventType.BOUNCED:
        # a block is about the sender or the content; SendGrid goes on mailing the address
        is_blocked = event.get("type") == "blocked"
        reason = RejectReason.BLOCKED if is_blocked else RejectReason.BOUNCED
        bounce_class = "soft" if is_blocked or text(event.get("status")).startswith("4") else "hard"
    categories = event.get("category")
    said = text(event.get("response")) or (text(event.get("reason")) if kind is EventType.BOUNCED else "")
    return event_row(
        "sendgrid",
        kind,
        event,
        occurred_at=from_epoch(event.get("timestamp"), now),
        event_id=text(event.get("sg_event_id")),
        email=text(event.get("email")),
        message_id=text(event.get(MESSAGE_ID)) or own_message_id(text(event.get("smtp-id"))),
        reject_reason=reason,
        metadata={key: value for key, value in event.items() if key not in _OWN_KEYS},
        bounce_class=bounce_class,
        provider_message_id=text(event.get("sg_message_id")).partition(".filter")[0],
        smtp_id=text(event.get("smtp-id")),
        mta_response=said,
        description=text(event.get("reason")),
        user_agent=text(event.get("useragent")),
        url=text(event.get("url")),
        is_machine=True if event.get("sg_machine_open") is True else None,
        tags=[
            text(tag) for tag in (categories if isinstance(categories, list) else [categories]) if text(tag)
        ]
        or None,
    )


def _fields(response: httpx.Response) -> list[Any]:
    errors = (json_object(response) or {}).get("errors")
    return (
        [error.get("field") for error in errors if isinstance(error, dict)]
        if isinstance(errors, list)
        else []
    )


def _address(address: Address) -> dict[str, str]:
    email = mailbox(address.email)
    return {"email": email, "name": address.name} if address.name else {"email": email}


def _personalization(message: Message, values: Mapping[str, str], batch_id: str) -> dict[str, Any]:
    arguments = {MESSAGE_ID: message.message_id}
    if batch_id:
        arguments[BATCH_ID] = batch_id
    email, name = message.recipient
    email = mailbox(email)
    personalization: dict[str, Any] = {
        "to": [{"email": email, "name": name} if name else {"email": email}],
        "subject": message.subject,
        "custom_args": arguments,
    }
    if message.headers:
        personalization["headers"] = dict(message.headers)
    if values:
        personalization["substitutions"] = values
    if message.deliver_at is not None:
        personalization["send_at"] = int(message.deliver_at.timestamp())
    return personalization
