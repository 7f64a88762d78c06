"""BombBomb: mail around a video, through API v2.

One call a message, because subject and words are personal. BombBomb publishes no limits, no form of errors, and no way
to let an id of ours travel: calls are few at a time, an answer that is not JSON leaves the outcome unknown, and no
event or question can settle that. Its calls are unsigned, so the address it is told ends in `?secret=...`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx
from pydantic import SecretStr

from senders.message import Delivery, EventType, Message, RejectReason, Status
from senders.providers.base import Capabilities
from senders.providers.http import Call, HttpProvider, TokenAuth, required
from senders.providers.webhooks import (
    WebhookError,
    event_row,
    event_type,
    from_epoch,
    has_secret,
    parse_json,
    required_key,
    text,
)
from senders.settings import SenderSettings

BASE_URL = "https://api.bombbomb.com/v2"
TOKEN_URL = "https://app.bombbomb.com/auth/access_token"  # noqa: S105  (an address)
_CONNECTIONS = 2

_EVENTS = {
    "EmailSent": EventType.SENT,
    "ContactUnsubscribed": EventType.UNSUBSCRIBED,
    # why it is suppressed is not said; that no more mail shall go to it is
    "ContactSuppressed": EventType.UNSUBSCRIBED,
}
_FAILURES = ("failure", "failed", "error")


class BombBombProvider(HttpProvider):
    """Send through BombBomb's quick send.

    Args:
        token: a key or access token that does not expire; or a refresh token, if a client is named.
        video: id of the video in each mail.
        template: id of BombBomb's template around it; empty takes the account's own.
        client_id, client_secret: of the OAuth client that the refresh token was given to.
    """

    name = "bombbomb"
    capabilities = Capabilities(
        channel="video", dispatch_window=20, wants_raw=False, has_list_unsubscribe=False,
        longest_hold=timedelta(days=365), has_webhooks=True,
    )  # fmt: skip

    def __init__(
        self,
        token: SecretStr,
        *,
        video: str,
        template: str = "",
        client_id: str = "",
        client_secret: SecretStr | None = None,
        base_url: str = BASE_URL,
        token_url: str = TOKEN_URL,
        url_secret: SecretStr | None = None,
        **options: Any,
    ) -> None:
        options["connections"] = min(options.get("connections", _CONNECTIONS), _CONNECTIONS)
        headers: dict[str, str] = {}
        auth: httpx.Auth | None = None
        if client_id:
            secret = client_secret.get_secret_value() if client_secret is not None else ""
            asked = {
                "grant_type": "refresh_token", "refresh_token": token.get_secret_value(), "client_id": client_id,
                "client_secret": secret,
            }  # fmt: skip
            auth = TokenAuth(lambda: httpx.post(token_url, json=asked, timeout=30))
        else:
            headers["authorization"] = f"Bearer {token.get_secret_value()}"
        super().__init__(
            base_url, headers=headers, auth=auth, secrets=[token, client_secret, url_secret], **options
        )
        self._video, self._template, self._url_secret = video, template, url_secret

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> BombBombProvider:
        """The provider of the settings.

        Raises:
            SettingsError: token or video is missing.
        """
        token = required(
            settings.bombbomb_token, "bombbomb", "a token", "bombbomb_token",
            "Set the account's API key, or a refresh token with MAILHOUSE_BOMBBOMB_CLIENT_ID and its secret.",
        )  # fmt: skip
        video = required(
            settings.bombbomb_video, "bombbomb", "a video", "bombbomb_video",
            "Set the id of a video of the account.",
        )  # fmt: skip
        return cls(
            token, video=video, template=settings.bombbomb_template,
            client_id=settings.bombbomb_client_id, client_secret=settings.bombbomb_client_secret,
            url_secret=settings.webhook_url_secret, connections=settings.http_connections,
        )  # fmt: skip

    def problem(self, message: Message) -> str:
        """BombBomb separates addresses with semicolons."""
        return "the address holds a semicolon" if ";" in message.recipient.email else super().problem(message)

    def calls(self, batch: Sequence[Message]) -> Iterator[Call]:
        """One quick send a message."""
        for message in batch:
            form = {
                "videoId": self._video,
                "emailAddresses": message.recipient.email,
                "subject": message.subject,
                "message": message.html or message.text,
                "extendedProperties": "true",
            }
            if self._template:
                form["templateId"] = self._template
            if message.deliver_at is not None:
                form["scheduledSendTimestamp"] = str(int(message.deliver_at.timestamp()))
            yield Call([message], "/emails/quicksend", form=form)

    def parse(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """JSON that does not say it failed; its shape is nowhere described."""
        (message,) = call.messages
        answer = response.json()
        answer = answer if isinstance(answer, dict) else {}
        said = text(answer.get("status")).lower()
        status, reason = (
            (Status.REJECTED, RejectReason.OTHER.value) if said in _FAILURES else (Status.SENT, "")
        )
        return [
            Delivery(
                message.message_id, status, reason,
                provider_message_id=text(answer.get("emailId")) or text(answer.get("jobId")),
                reply=self.words(response),
            )
        ]  # fmt: skip

    def is_own(self, response: httpx.Response) -> bool:
        """Anything but a page: errors are objects, strings, or plain text."""
        return not response.text.lstrip().startswith("<")

    # webhooks

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """The secret in the address."""
        return has_secret(url, required_key(self._url_secret, self.name, "webhook_url_secret"))

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row a contact, or one if the event names none."""
        event = parse_json(body, self.name)
        if not isinstance(event, dict):
            raise WebhookError("This call of bombbomb is no event.")
        word = text(event.get("eventName"))
        payload = event.get("payload") if isinstance(event.get("payload"), dict) else {}
        assert isinstance(payload, dict)
        contacts = payload.get("contacts")
        people = [c for c in contacts if isinstance(c, dict)] if isinstance(contacts, list) else []
        stamp = text(event.get("eventTimestamp"))
        # ten-thousandths of a second
        occurred_at = from_epoch(int(stamp) / 10_000 if stamp.isascii() and stamp.isdigit() else None, now)
        kind = event_type(_EVENTS, word)
        return [
            event_row(
                self.name,
                kind,
                event,
                occurred_at=occurred_at,
                email=text(person.get("email")),
                reject_reason=RejectReason.UNSUBSCRIBED if kind is EventType.UNSUBSCRIBED else None,
                bombbomb_event=word,
                bombbomb_contact_id=text(person.get("id")) or text(payload.get("contactId")),
                list_id=text(payload.get("listId")),
                provider_message_id=text(payload.get("emailId")),
            )
            for person in people or [{}]
        ]
