"""Twilio: text messages (SMS), and its signed status callbacks.

One call a message, and no idempotency key: our message id stands in the address of the status callback, which Twilio
signs, so the callback tells what became of a message even if the answer to its call was lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import httpx
from pydantic import SecretStr

from senders.message import Delivery, EventType, Message, RejectReason, Status
from senders.providers.base import Capabilities
from senders.providers.http import Call, HttpProvider, Verdict, json_object, required
from senders.providers.webhooks import (
    MESSAGE_ID,
    event_row,
    event_type,
    form_content,
    hmac_base64,
    is_equal,
    lowered,
    parse_form,
    required_key,
    text,
)
from senders.settings import SenderSettings

BASE_URL = "https://api.twilio.com"
MOST_CHARACTERS = 1600
_NUMBER = re.compile(r"\+[1-9]\d{6,14}")

_STATUSES = {
    "accepted": Status.QUEUED,
    "scheduled": Status.QUEUED,
    "queued": Status.SENT,
    "sending": Status.SENT,
    "sent": Status.SENT,
    "delivered": Status.SENT,
    "failed": Status.REJECTED,
    "undelivered": Status.REJECTED,
}
#: Codes of errors that are about us, or about now; all others are about the message.
_VERDICTS = {
    20003: Verdict.REFUSED,
    20005: Verdict.REFUSED,
    20404: Verdict.REFUSED,
    20429: Verdict.LATER,
    21603: Verdict.REFUSED,
    21606: Verdict.REFUSED,
    21611: Verdict.LATER,
    21659: Verdict.REFUSED,
    21701: Verdict.REFUSED,
    30001: Verdict.LATER,
}
_REASONS = {
    21211: RejectReason.INVALID,
    21217: RejectReason.INVALID,
    21408: RejectReason.BLOCKED,
    21610: RejectReason.UNSUBSCRIBED,
    21612: RejectReason.BLOCKED,
    21614: RejectReason.INVALID,
    30003: RejectReason.BOUNCED,
    30004: RejectReason.BLOCKED,
    30005: RejectReason.INVALID,
    30006: RejectReason.INVALID,
    30007: RejectReason.SPAM,
}
_EVENTS = {
    "accepted": EventType.QUEUED,
    "scheduled": EventType.QUEUED,
    "queued": EventType.QUEUED,
    "sending": EventType.QUEUED,
    "sent": EventType.SENT,
    "delivered": EventType.DELIVERED,
    "undelivered": EventType.BOUNCED,
    "failed": EventType.FAILED,
    "canceled": EventType.FAILED,
    "read": EventType.OPENED,
    "received": EventType.INBOUND,
}
_OPT_OUTS = {"STOP": EventType.UNSUBSCRIBED, "START": EventType.SUBSCRIBED}
#: Replies that Twilio acts on where Advanced Opt-Out, which says what a reply meant, is not set up.
_REPLIES = {
    **dict.fromkeys(
        ("STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT"),
        EventType.UNSUBSCRIBED,
    ),
    **dict.fromkeys(("START", "UNSTOP", "YES"), EventType.SUBSCRIBED),
}


class TwilioProvider(HttpProvider):
    """Send text messages.

    Args:
        account: account SID, begins with AC.
        token: its auth token; signs the callbacks, too.
        sender: a number of the account, a short code or alphanumeric sender, or a messaging service (MG...).
        callback: where Twilio reports to; empty for nowhere.
    """

    name = "twilio"
    capabilities = Capabilities(channel="sms", dispatch_window=100, wants_raw=False, has_webhooks=True)

    def __init__(
        self,
        account: str,
        token: SecretStr,
        *,
        sender: str,
        callback: str = "",
        base_url: str = BASE_URL,
        **options: Any,
    ) -> None:
        super().__init__(base_url, auth=(account, token.get_secret_value()), secrets=[token], **options)
        self._token, self._sender, self._callback = token, sender, callback
        self._path = f"/2010-04-01/Accounts/{quote(account, safe='')}/Messages.json"

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> TwilioProvider:
        """The provider of the settings.

        Raises:
            SettingsError: account, token or sender is missing.
        """
        token = required(
            settings.twilio_token, "twilio", "a token", "twilio_token",
            "Copy account SID and auth token from Twilio's console.",
        )  # fmt: skip
        fix = "Set the account SID (AC...), and a number or messaging service (MG...) to send from."
        account = required(settings.twilio_account, "twilio", "an account", "twilio_account", fix)
        sender = required(settings.twilio_from, "twilio", "a sender", "twilio_from", fix)
        base = settings.base_url.rstrip("/")
        # Twilio refuses addresses that it could not reach
        callback = f"{base}/webhooks/twilio" if urlsplit(base).scheme == "https" else ""
        return cls(
            account, token, sender=sender, callback=callback,
            base_url=settings.twilio_url, connections=settings.http_connections,
        )  # fmt: skip

    def problem(self, message: Message) -> str:
        """Numbers as E.164 writes them, and at most 1,600 characters."""
        if not _NUMBER.fullmatch(message.address):
            return "no telephone number as +447700900123"
        if not message.text.strip():
            return "the text is empty"
        if len(message.text) > MOST_CHARACTERS:
            return f"{len(message.text)} characters, and Twilio takes {MOST_CHARACTERS}"
        return ""

    def calls(self, batch: Sequence[Message]) -> Iterator[Call]:
        """One call a message."""
        sender = "MessagingServiceSid" if self._sender.startswith("MG") else "From"
        for message in batch:
            form = {"To": message.address, sender: self._sender, "Body": message.text}
            if self._callback:
                form["StatusCallback"] = f"{self._callback}?{MESSAGE_ID}={quote(message.message_id, safe='')}"
            yield Call([message], self._path, form=form)

    def parse(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """The message that Twilio made of it."""
        (message,) = call.messages
        answer = response.json()
        status = _STATUSES.get(answer["status"], Status.UNKNOWN)
        code = answer.get("error_code")
        reason = _REASONS.get(code, RejectReason.OTHER).value if status is Status.REJECTED else ""
        return [
            Delivery(
                message.message_id, status, reason, provider_message_id=text(answer["sid"]),
                reply=self.clean(f"{response.status_code} {answer['status']} {text(code)}"),
            )
        ]  # fmt: skip

    def judge(self, response: httpx.Response) -> Verdict:
        """By Twilio's code; by status where there is none. What it refuses it has never processed."""
        code = (json_object(response) or {}).get("code")
        if not response.is_success and isinstance(code, int) and code in _VERDICTS:
            return _VERDICTS[code]
        if isinstance(code, int) and code in _REASONS and 400 <= response.status_code < 500:
            return Verdict.BAD
        return super().judge(response)

    def is_own(self, response: httpx.Response) -> bool:
        """Twilio's errors have a `code`."""
        return "code" in (json_object(response) or {})

    def reject_reason(self, response: httpx.Response) -> RejectReason:
        """By Twilio's code."""
        code = (json_object(response) or {}).get("code")
        return _REASONS.get(code, RejectReason.OTHER) if isinstance(code, int) else RejectReason.OTHER

    # webhooks

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """HMAC-SHA1 of the address and the fields. It says no time: repeated calls are found by what they say."""
        key = required_key(self._token, self.name, "twilio_token")
        given = lowered(headers).get("x-twilio-signature", "")
        return is_equal(hmac_base64(key, form_content(url, parse_form(body, self.name)), "sha1"), given)

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row; the message is the one that the address names.

        A second one if Twilio did not send it because the number has opted out: of the number, as a STOP is.
        """
        fields = dict(parse_form(body, self.name))
        word = fields.get("MessageStatus") or fields.get("SmsStatus", "")
        kind = event_type(_EVENTS, word)
        opt_out = fields.get("OptOutType", "").upper()
        if kind is EventType.INBOUND and not opt_out:
            kind = _REPLIES.get(fields.get("Body", "").strip().upper(), kind)
        kind = _OPT_OUTS.get(opt_out, kind)
        code = int(fields["ErrorCode"]) if fields.get("ErrorCode", "").isdecimal() else 0
        reason = _REASONS.get(code, RejectReason.OTHER) if code else None
        if kind is EventType.UNSUBSCRIBED:
            reason = RejectReason.UNSUBSCRIBED
        sid = fields.get("MessageSid") or fields.get("SmsSid", "")
        is_ours = kind not in (EventType.INBOUND, EventType.UNSUBSCRIBED, EventType.SUBSCRIBED)
        phone, occurred_at = fields.get("To" if is_ours else "From", ""), now or datetime.now(UTC)
        rows = [
            event_row(
                self.name,
                kind,
                fields,
                occurred_at=occurred_at,
                event_id=f"{sid}:{word}:{opt_out}" if sid else "",
                message_id=dict(parse_qsl(urlsplit(url).query)).get(MESSAGE_ID, ""),
                reject_reason=reason,
                bounce_class=("hard" if reason is RejectReason.INVALID else "soft")
                if kind is EventType.BOUNCED
                else None,
                provider_message_id=sid,
                description=fields.get("ErrorCode", ""),
                phone=phone,
            )
        ]
        if is_ours and reason is RejectReason.UNSUBSCRIBED:
            rows.append(
                event_row(
                    self.name, EventType.UNSUBSCRIBED, fields, occurred_at=occurred_at,
                    event_id=f"{sid}:opted_out" if sid else "", reject_reason=reason, provider_message_id=sid,
                    description=fields["ErrorCode"], phone=phone,
                )
            )  # fmt: skip
        return rows
