"""Mailchimp Transactional (Mandrill): mail through messages/send, and its signed webhooks.

Each call carries one message, because each has HTML and headers of its own and Mandrill takes headers only a call.
Status 200 is no success by itself: the answer says for each recipient what became of it. Failures are told apart by
their name, since Mandrill has said many of them with status 500. There is no idempotency key: our message id travels
as metadata, and `lookup` searches for it (make `mailhouse_message_id` a searchable field in Mandrill's settings).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
from pydantic import SecretStr

from senders.attachments import base64_of
from senders.message import Delivery, EventType, Message, Reason, RejectReason, Status
from senders.mime import mailbox
from senders.providers.base import Capabilities, ProviderError
from senders.providers.http import Call, HttpProvider, Verdict, json_object, required
from senders.providers.webhooks import (
    MESSAGE_ID,
    event_row,
    event_type,
    form_content,
    from_epoch,
    hmac_base64,
    is_equal,
    lowered,
    objects,
    parse_form,
    parse_json,
    required_key,
    text,
)
from senders.settings import SenderSettings

BASE_URL = "https://mandrillapp.com/api/1.0"
_IDS_A_SEARCH = 20

_STATUSES = {
    "sent": Status.SENT,
    "queued": Status.QUEUED,
    "scheduled": Status.QUEUED,
    "rejected": Status.REJECTED,
    "invalid": Status.INVALID,
}
_REJECTED = {
    "hard-bounce": RejectReason.BOUNCED,
    "soft-bounce": RejectReason.BOUNCED,
    "spam": RejectReason.SPAM,
    "unsub": RejectReason.UNSUBSCRIBED,
    "custom": RejectReason.BLOCKED,
    "rule": RejectReason.BLOCKED,
    "unsigned": RejectReason.BLOCKED,
    "invalid-sender": RejectReason.OTHER,
    "invalid": RejectReason.INVALID,
}
_FAILURES = {
    "Invalid_Key": Verdict.REFUSED,
    "PaymentRequired": Verdict.REFUSED,
    "Unknown_Subaccount": Verdict.REFUSED,
    "ValidationError": Verdict.BAD,
    "Unknown_Template": Verdict.BAD,
    "ServiceUnavailable": Verdict.LATER,
    "GeneralError": Verdict.UNKNOWN,
}
_EVENTS = {
    "send": EventType.SENT,
    "deferral": EventType.DEFERRED,
    "hard_bounce": EventType.BOUNCED,
    "soft_bounce": EventType.BOUNCED,
    "delivered": EventType.DELIVERED,
    "open": EventType.OPENED,
    "click": EventType.CLICKED,
    "spam": EventType.COMPLAINED,
    "unsub": EventType.UNSUBSCRIBED,
    "reject": EventType.REJECTED,
    "inbound": EventType.INBOUND,
}
_REASONS = {
    EventType.BOUNCED: RejectReason.BOUNCED,
    EventType.COMPLAINED: RejectReason.SPAM,
    EventType.UNSUBSCRIBED: RejectReason.UNSUBSCRIBED,
}
_BOUNCES = {
    "invalid_domain": RejectReason.INVALID,
    "spam": RejectReason.SPAM,
    "expired": RejectReason.TIMED_OUT,
}


class MandrillProvider(HttpProvider):
    """Send through Mailchimp Transactional.

    Args:
        webhook_key: key of the webhook, as Mandrill's settings show it.
    """

    name = "mandrill"
    capabilities = Capabilities(
        dispatch_window=100, wants_raw=False, can_attach=True, can_track=True, longest_hold=timedelta(days=365),
        can_look_up=True, has_webhooks=True,
    )  # fmt: skip

    def __init__(
        self,
        key: SecretStr,
        *,
        base_url: str = BASE_URL,
        webhook_key: SecretStr | None = None,
        **options: Any,
    ) -> None:
        super().__init__(base_url, secrets=[key, webhook_key], **options)
        self._key, self._webhook_key = key.get_secret_value(), webhook_key

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> MandrillProvider:
        """The provider of the settings.

        Raises:
            SettingsError: there is no key.
        """
        key = required(
            settings.mandrill_key, "mandrill", "a key", "mandrill_key",
            "Make one in Mailchimp Transactional under Settings, API Keys.",
        )  # fmt: skip
        return cls(
            key,
            webhook_key=settings.mandrill_webhook_key,
            connections=settings.http_connections,
        )

    def calls(self, batch: Sequence[Message]) -> Iterator[Call]:
        """One call a message."""
        for message in batch:
            headers = dict(message.headers)
            if message.reply_to is not None:
                headers["Reply-To"] = mailbox(message.reply_to.email)
            content: dict[str, Any] = {
                "from_email": mailbox(message.sender.email),
                "from_name": message.sender.name,
                "to": [
                    {"email": mailbox(message.recipient.email), "name": message.recipient.name, "type": "to"}
                ],
                "subject": message.subject,
                "html": message.html,
                "text": message.text,
                "headers": headers,
                "metadata": {MESSAGE_ID: message.message_id},
                "track_opens": message.is_tracked,
                "track_clicks": message.is_tracked,
                # it is finished: nothing is to be filled in, made, or rewritten
                "merge": False,
                "auto_text": False,
                "auto_html": False,
                "inline_css": False,
                "preserve_recipients": False,
            }
            if message.attachments:
                content["attachments"] = [
                    {"type": one.media_type, "name": one.name, "content": base64_of(one)}
                    for one in message.attachments
                ]
            payload: dict[str, Any] = {"key": self._key, "message": content, "async": False}
            if message.deliver_at is not None:
                payload["send_at"] = message.deliver_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
            yield Call([message], "/messages/send.json", json=orjson.dumps(payload))

    def parse(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """What Mandrill says of the recipient."""
        (message,) = call.messages
        (answer,) = response.json()
        status = _STATUSES.get(answer["status"], Status.UNKNOWN)
        why = text(answer.get("reject_reason")) or text(answer.get("queued_reason"))
        reason = ""
        if status is Status.REJECTED:
            reason = _REJECTED.get(why, RejectReason.OTHER).value
            if why == "invalid-sender":
                # no fault of the recipient: a later run may try again
                status, reason = Status.FAILED, Reason.SENDER_REFUSED.value
        elif status is Status.INVALID:
            reason = RejectReason.INVALID.value
        return [
            Delivery(
                message.message_id, status, reason, provider_message_id=text(answer.get("_id")),
                reply=self.clean(f"{response.status_code} {answer['status']} {why}"),
            )
        ]  # fmt: skip

    def judge(self, response: httpx.Response) -> Verdict:
        """By the error's name; by status where it has none."""
        if not response.is_success and self.is_own(response):
            name = text((json_object(response) or {}).get("name"))
            if name in _FAILURES:
                return _FAILURES[name]
        return super().judge(response)

    def is_own(self, response: httpx.Response) -> bool:
        """Mandrill's errors have a `name`."""
        return "name" in (json_object(response) or {})

    def lookup(self, message_ids: Sequence[str]) -> Mapping[str, Delivery]:
        """`sent` for messages that are found. One that is not may be too young to be: it is left out.

        Searching is allowed 20 times a minute; when that is used up, the rest is left out, too.
        """
        found: dict[str, Delivery] = {}
        asked = set(message_ids)
        for start in range(0, len(message_ids), _IDS_A_SEARCH):
            part = message_ids[start : start + _IDS_A_SEARCH]
            query = " OR ".join(f"u_{MESSAGE_ID}:{message_id}" for message_id in part)
            body = orjson.dumps({"key": self._key, "query": query, "limit": 1000})
            try:
                answers = self.ask(Call([], "/messages/search.json", json=body), "search for messages").json()
            except (ProviderError, ValueError):
                break
            for answer in answers if isinstance(answers, list) else ():
                metadata = answer.get("metadata") if isinstance(answer, dict) else None
                message_id = text(metadata.get(MESSAGE_ID)) if isinstance(metadata, dict) else ""
                if message_id in asked:
                    found[message_id] = Delivery(
                        message_id, Status.SENT, provider_message_id=text(answer.get("_id")),
                        reply=self.clean(f"found as {text(answer.get('state'))}"),
                    )  # fmt: skip
        return found

    # webhooks

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """HMAC-SHA1 of the address and the fields. It says no time: repeated calls are found by what they say."""
        key = required_key(self._webhook_key, self.name, "mandrill_webhook_key")
        pairs = parse_form(body, self.name)
        given = lowered(headers).get("x-mandrill-signature", "")
        if is_equal(hmac_base64(key, form_content(url, pairs), "sha1"), given):
            return True
        # when the webhook is made, its key does not exist yet, and the call has no events
        return dict(pairs).get("mandrill_events") == "[]" and is_equal(
            hmac_base64(b"test-webhook", form_content(url, pairs), "sha1"), given
        )

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row an event."""
        events = dict(parse_form(body, self.name)).get("mandrill_events", "")
        return [_row(event, now) for event in objects(parse_json(events, self.name), self.name)]


def _row(event: dict[str, Any], now: datetime | None) -> dict[str, Any]:
    word = text(event.get("event"))
    kind = event_type(_EVENTS, word)
    message = event.get("msg") if isinstance(event.get("msg"), dict) else {}
    assert isinstance(message, dict)
    metadata = message.get("metadata") if isinstance(message.get("metadata"), dict) else {}
    assert isinstance(metadata, dict)
    reason = _REASONS.get(kind)
    bounce_class = None
    if kind is EventType.BOUNCED:
        bounce_class = "soft" if word == "soft_bounce" else "hard"
        reason = _BOUNCES.get(text(message.get("bounce_description")), RejectReason.BOUNCED)
    elif kind is EventType.REJECTED:
        given = event.get("reject") if isinstance(event.get("reject"), dict) else {}
        assert isinstance(given, dict)
        reason = _REJECTED.get(text(given.get("reason")), RejectReason.OTHER)
    tags = message.get("tags")
    said = message.get("smtp_events")
    last = said[-1] if isinstance(said, list) and said and isinstance(said[-1], dict) else {}
    return event_row(
        "mandrill",
        kind,
        event,
        occurred_at=from_epoch(event.get("ts"), now),
        email=text(message.get("email")),
        message_id=text(metadata.get(MESSAGE_ID)),
        reject_reason=reason,
        metadata={name: value for name, value in metadata.items() if name != MESSAGE_ID},
        bounce_class=bounce_class,
        provider_message_id=text(event.get("_id")) or text(message.get("_id")),
        description=text(message.get("bounce_description")),
        mta_response=text(message.get("diag")) or text(last.get("diag")),
        user_agent=text(event.get("user_agent")),
        url=text(event.get("url")),
        tags=[text(tag) for tag in tags if text(tag)] or None if isinstance(tags, list) else None,
    )
