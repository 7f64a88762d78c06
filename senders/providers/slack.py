"""Slack: messages to one channel, through an incoming webhook.

For telling colleagues, not customers: every message goes to the channel that the webhook belongs to. Slack takes about
one a second, which is kept by itself; it answers in plain words, of which only `ok` means that it was accepted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from pydantic import SecretStr

from senders.loopback import is_loopback
from senders.message import Delivery, EventType, Message, Status
from senders.providers.base import Capabilities
from senders.providers.http import Call, HttpProvider, Verdict, required
from senders.providers.webhooks import (
    event_row,
    from_epoch,
    hmac_hex,
    is_equal,
    is_recent,
    lowered,
    parse_form,
    required_key,
)
from senders.settings import SenderSettings
from warehouse.buckets import Buckets, Demand, LocalBuckets
from warehouse.errors import SettingsError

MOST_CHARACTERS = 40_000

_VERDICTS = {
    "invalid_payload": Verdict.BAD,
    "no_text": Verdict.BAD,
    "user_not_found": Verdict.REFUSED,
    "action_prohibited": Verdict.REFUSED,
    "channel_not_found": Verdict.REFUSED,
    "channel_is_archived": Verdict.REFUSED,
    "no_service": Verdict.REFUSED,
    "no_service_id": Verdict.REFUSED,
    "no_team": Verdict.REFUSED,
    "team_disabled": Verdict.REFUSED,
    "invalid_token": Verdict.REFUSED,
    "posting_to_general_channel_denied": Verdict.REFUSED,
    "rollup_error": Verdict.UNKNOWN,
}

#: One message a second, a few more at once (docs.slack.dev, rate limits of incoming webhooks).
_PACE = Demand("slack", 1.0, 4, 1)


class SlackProvider(HttpProvider):
    """Post to one channel.

    Args:
        url: the incoming webhook's address; whoever has it can post, so it is a secret.
        signing_secret: of the Slack app, for calls that come in.
        buckets: where the pace is kept; this process if left out.
    """

    name = "slack"
    signed_headers = ("x-slack-request-timestamp",)
    capabilities = Capabilities(channel="chat", dispatch_window=10, wants_raw=False, has_webhooks=True)

    def __init__(
        self,
        url: SecretStr,
        *,
        signing_secret: SecretStr | None = None,
        buckets: Buckets | None = None,
        **options: Any,
    ) -> None:
        place = url.get_secret_value()
        parts = urlsplit(place)
        if not parts.hostname or (parts.scheme != "https" and not is_loopback(parts.hostname)):
            raise SettingsError(
                "MAILHOUSE_SLACK_URL is no https address.",
                fix="Copy it from the Slack app, Incoming Webhooks.",
            )
        super().__init__(
            f"{parts.scheme}://{parts.netloc}", secrets=[url, SecretStr(parts.path), signing_secret],
            **{**options, "connections": 1},
        )  # fmt: skip
        self._place = parts.path
        self._signing_secret = signing_secret
        self._buckets = buckets or LocalBuckets()

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> SlackProvider:
        """The provider of the settings.

        Raises:
            SettingsError: there is no address, or it is none.
        """
        url = required(
            settings.slack_url, "slack", "a webhook", "slack_url",
            "Add an incoming webhook to a Slack app and copy its address.",
        )  # fmt: skip
        return cls(url, signing_secret=settings.slack_signing_secret)

    def problem(self, message: Message) -> str:
        """Something to say, at most 40,000 characters."""
        if not (message.subject or message.text).strip():
            return "the message is empty"
        return (
            f"more than {MOST_CHARACTERS} characters"
            if len(message.subject) + len(message.text) > MOST_CHARACTERS - 10
            else ""
        )

    def calls(self, batch: Sequence[Message]) -> Iterator[Call]:
        """One post a message."""
        for message in batch:
            subject = f"*{_escaped(message.subject)}*" if message.subject else ""
            body = "\n".join(filter(None, (subject, _escaped(message.text))))
            yield Call([message], self._place, json=orjson.dumps({"text": body}))

    def request(self, call: Call) -> httpx.Response:
        """Keep to Slack's pace."""
        time.sleep(self._buckets.reserve([_PACE]))
        return super().request(call)

    def parse(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """`ok`, and nothing else."""
        (message,) = call.messages
        if response.text.strip() != "ok":
            raise ValueError("only ok says that it was accepted")
        return [Delivery(message.message_id, Status.SENT, reply="200 ok")]

    def judge(self, response: httpx.Response) -> Verdict:
        """By Slack's word; by status where it is none of them."""
        word = response.text.strip()[:100]
        if not response.is_success and word in _VERDICTS:
            return _VERDICTS[word]
        return super().judge(response)

    # webhooks

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """HMAC-SHA256 of version, time and body; five minutes old at most."""
        key = required_key(self._signing_secret, self.name, "slack_signing_secret")
        values = lowered(headers)
        timestamp = values.get("x-slack-request-timestamp", "")
        if not is_recent(timestamp, now):
            return False
        signed = "v0=" + hmac_hex(key, b"v0:" + timestamp.encode() + b":" + body)
        return is_equal(signed, values.get("x-slack-signature", ""))

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row: what a colleague did in Slack. Slack reports nothing about messages, so its type is `unknown`."""
        fields = dict(parse_form(body, self.name))
        # a password of old, and the address under which anyone may answer
        kept = {name: value for name, value in fields.items() if name not in ("token", "response_url")}
        return [
            event_row(
                self.name,
                EventType.UNKNOWN,
                kept,
                occurred_at=from_epoch(lowered(headers).get("x-slack-request-timestamp"), now),
                event_id=fields.get("trigger_id", ""),
                command=fields.get("command", ""),
                user_name=fields.get("user_name", ""),
            )
        ]


def _escaped(value: str) -> str:
    """Text as Slack wants it: the three characters that begin its own marks."""
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
