"""Mailchimp Marketing 3.0: audiences kept in step, campaigns sent, journeys triggered; and its webhooks.

What goes out is written in Mailchimp, so this is a channel of its own, `journey`: `send` puts each recipient into the
audience (an upsert under the MD5 of the address, safe to repeat) and triggers one step of a customer journey. Only the
trigger is not safe to repeat: without its answer the outcome is unknown. `send_campaign` sends one mail of ours to a
whole audience or tag, once by its key; `sync_members` brings many members up to date in batches.

At very high rates Mailchimp says 403 without JSON, which means later, not no. At most 10 connections are allowed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx
import orjson
from pydantic import SecretStr

from senders.loopback import is_loopback
from senders.message import Delivery, EventType, Message, RejectReason, Status
from senders.providers.base import Capabilities, ProviderError, ProviderRefusedError, ProviderUnavailableError
from senders.providers.http import Call, HttpProvider, LostError, NotSentError, Verdict, json_object, required
from senders.providers.webhooks import (
    event_row,
    event_type,
    from_iso,
    has_secret,
    hmac_hex,
    is_equal,
    is_recent,
    lowered,
    parse_form,
    required_key,
    text,
)
from senders.settings import SenderSettings
from warehouse.errors import SettingsError

MOST_CONNECTIONS = 10
#: Operations in one batch.
MOST_OPERATIONS = 500
_CENTRE = re.compile(r"[a-z]{2,4}\d{1,3}")
_SAFE_TO_REPEAT = frozenset({429, 500, 502, 503, 504})

MemberStatus = Literal["subscribed", "unsubscribed", "pending", "cleaned", "transactional"]

_EVENTS = {
    "subscribe": EventType.SUBSCRIBED,
    "unsubscribe": EventType.UNSUBSCRIBED,
    "cleaned": EventType.BOUNCED,
}
_STATUSES_OUT = ("sending", "sent", "schedule")


@dataclass(frozen=True)
class Member:
    """One member of an audience as it should be.

    Attributes:
        status_if_new: what somebody becomes who is not in the audience; who is there keeps their status.
        merge_fields: Mailchimp's field names, such as FNAME, to values.
        tags: tag -> whether the member should have it.
    """

    email: str
    status_if_new: MemberStatus = "transactional"
    merge_fields: Mapping[str, str | float] = field(default_factory=dict)
    tags: Mapping[str, bool] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """What Mailchimp knows the member by."""
        return hashlib.md5(self.email.strip().lower().encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class SyncResult:
    """What became of a sync.

    Attributes:
        failed: address -> Mailchimp's words.
    """

    synced: int
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MailchimpCampaign:
    """One mail to an audience or to those with a tag.

    Attributes:
        key: what makes it one campaign: sending the same key again sends nothing.
        html: with Mailchimp's own merge tags, its unsubscribe link (`*|UNSUB|*`) among them.
        segment_id: a saved segment or tag; 0 means the whole audience.
    """

    key: str
    subject: str
    from_name: str
    reply_to: str
    html: str
    text: str = ""
    segment_id: int = 0


class MailchimpProvider(HttpProvider):
    """One audience of a Mailchimp account, and one step of a journey there.

    Args:
        key: API key; its end names the data centre.
        audience: id of the audience (list).
        journey, step: numbers of the journey and of its step that is triggered by API; 0 if only audiences are kept.
    """

    name = "mailchimp"
    capabilities = Capabilities(channel="journey", dispatch_window=100, wants_raw=False, has_webhooks=True)

    def __init__(
        self,
        key: SecretStr,
        *,
        audience: str,
        journey: int = 0,
        step: int = 0,
        base_url: str = "",
        url_secret: SecretStr | None = None,
        webhook_secret: SecretStr | None = None,
        sleep: Callable[[float], None] = time.sleep,
        **options: Any,
    ) -> None:
        options["connections"] = min(options.get("connections", MOST_CONNECTIONS), MOST_CONNECTIONS)
        centre = key.get_secret_value().rpartition("-")[2]
        if not base_url and not _CENTRE.fullmatch(centre):
            raise SettingsError(
                "MAILHOUSE_MAILCHIMP_KEY names no data centre.",
                fix="Copy it whole: it ends in -us6 or the like.",
            )
        super().__init__(
            base_url or f"https://{centre}.api.mailchimp.com/3.0",
            auth=("mailhouse", key.get_secret_value()),
            secrets=[key, url_secret, webhook_secret],
            **options,
        )
        self.audience, self.journey, self.step = audience, journey, step
        self._url_secret, self._webhook_secret, self._sleep = url_secret, webhook_secret, sleep

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> MailchimpProvider:
        """The provider of the settings.

        Raises:
            SettingsError: key or audience is missing.
        """
        key = required(
            settings.mailchimp_key, "mailchimp", "a key", "mailchimp_key",
            "Make one in Mailchimp under Profile, Extras, API keys.",
        )  # fmt: skip
        audience = required(
            settings.mailchimp_audience, "mailchimp", "an audience", "mailchimp_audience",
            "Copy the audience id from Audience, Settings, Audience name and defaults.",
        )  # fmt: skip
        return cls(
            key, audience=audience, journey=settings.mailchimp_journey,
            step=settings.mailchimp_step, url_secret=settings.webhook_url_secret,
            webhook_secret=settings.mailchimp_webhook_secret, connections=settings.http_connections,
        )  # fmt: skip

    # journeys

    def calls(self, batch: Sequence[Message]) -> Iterator[Call]:
        """One trigger a message."""
        if not (self.journey and self.step):
            raise ProviderRefusedError(
                "Provider mailchimp has no journey to trigger.",
                fix="Set MAILHOUSE_MAILCHIMP_JOURNEY and MAILHOUSE_MAILCHIMP_STEP; the step's page shows both.",
            )
        path = f"/customer-journeys/journeys/{self.journey}/steps/{self.step}/actions/trigger"
        for message in batch:
            yield Call([message], path, json=orjson.dumps({"email_address": message.recipient.email}))

    def request(self, call: Call) -> httpx.Response:
        """Put the recipient into the audience first; what goes wrong with that happens before anything is sent."""
        if not call.messages:
            return super().request(call)
        (message,) = call.messages
        # marketing goes to those who consented to it, and every such message has this header
        is_marketing = any(name == "List-Unsubscribe" for name, _ in message.headers)
        member = Member(message.recipient.email, "subscribed" if is_marketing else "transactional")
        try:
            response = super().request(self._upsert_call(member))
        except LostError as error:
            raise NotSentError(f"member not put into the audience: {error}") from error
        if response.status_code in _SAFE_TO_REPEAT:
            raise NotSentError(f"member not put into the audience: {self.words(response)}")
        return super().request(call) if response.is_success else response

    def parse(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """204: the contact has entered the step."""
        (message,) = call.messages
        if response.status_code != 204:
            raise ValueError("only 204 says that the step was triggered")
        return [Delivery(message.message_id, Status.SENT, reply="204 journey step triggered")]

    def is_own(self, response: httpx.Response) -> bool:
        """Mailchimp's problems have a `title`."""
        return "title" in (json_object(response) or {})

    def judge(self, response: httpx.Response) -> Verdict:
        """404 is about the member or the journey, not about us."""
        if response.status_code == 404 and self.is_own(response):
            return Verdict.BAD
        return super().judge(response)

    def reject_reason(self, response: httpx.Response) -> RejectReason:
        """Mailchimp says `Member In Compliance State` of those who left, and of bad addresses that they look so."""
        title = text((json_object(response) or {}).get("title"))
        reasons = {
            "Member In Compliance State": RejectReason.UNSUBSCRIBED,
            "Forgotten Email Not Subscribed": RejectReason.UNSUBSCRIBED,
            "Invalid Resource": RejectReason.INVALID,
        }
        return reasons.get(title, RejectReason.OTHER)

    # audiences

    def _upsert_call(self, member: Member) -> Call:
        return Call([], self._member_path(member), json=orjson.dumps(_member_body(member)), method="PUT")

    def _member_path(self, member: Member) -> str:
        return f"/lists/{quote(self.audience, safe='')}/members/{member.hash}"

    def upsert_member(self, member: Member) -> None:
        """Add a member or bring it up to date, with its tags; safe to repeat.

        Raises:
            ProviderError: Mailchimp refuses it or does not answer.
        """
        self.ask(self._upsert_call(member), "update a member")
        if member.tags:
            path = f"{self._member_path(member)}/tags"
            self.ask(Call([], path, json=orjson.dumps(_tags_body(member))), "tag a member")

    def sync_members(
        self, members: Iterable[Member], *, poll_seconds: float = 2.0, patience: float = 3600
    ) -> SyncResult:
        """Bring many members up to date, in batches that Mailchimp works through by itself; safe to repeat.

        Args:
            poll_seconds: between two looks at a batch.
            patience: seconds after which a batch that is not finished counts as unavailable.

        Raises:
            ProviderError: Mailchimp takes no batch, or one does not finish. Members before it are up to date.
        """
        synced, failed = 0, dict[str, str]()
        part: list[Member] = []
        for member in members:
            part.append(member)
            # tags are an operation of their own
            if len(part) * 2 > MOST_OPERATIONS - 2:
                synced += self._sync_part(part, failed, poll_seconds, patience)
                part = []
        if part:
            synced += self._sync_part(part, failed, poll_seconds, patience)
        return SyncResult(synced, failed)

    def _sync_part(
        self, members: Sequence[Member], failed: dict[str, str], poll_seconds: float, patience: float
    ) -> int:
        operations: list[dict[str, str]] = []
        for number, member in enumerate(members):
            path = self._member_path(member)
            bodies: list[tuple[str, str, dict[str, Any]]] = [("PUT", path, _member_body(member))]
            if member.tags:
                bodies.append(("POST", f"{path}/tags", _tags_body(member)))
            operations += [
                {
                    "method": method,
                    "path": place,
                    "operation_id": f"{number}:{method}",
                    "body": json.dumps(body),
                }
                for method, place, body in bodies
            ]
        answer = self.ask(Call([], "/batches", json=orjson.dumps({"operations": operations})), "take a batch")
        batch = text((json_object(answer) or {}).get("id"))
        state: dict[str, Any] = {}
        waited = 0.0
        while batch and state.get("status") != "finished":
            if waited > patience:
                raise ProviderUnavailableError(
                    f"Mailchimp's batch {batch} has not finished after {patience:.0f} seconds.",
                    fix="Sync again later: it is safe to repeat.",
                )
            self._sleep(poll_seconds if state else 0.0)
            waited += poll_seconds
            state = json_object(self.ask(Call([], f"/batches/{batch}", method="GET"), "show a batch")) or {}
        if not batch:
            raise ProviderUnavailableError(f"Mailchimp gave a batch no id: {self.words(answer)}.")
        before = len(failed)
        if state.get("errored_operations"):
            failed.update(self._failures(text(state.get("response_body_url")), members))
            if len(failed) == before:
                raise ProviderUnavailableError(
                    f"Mailchimp's batch {batch} had {state['errored_operations']} failures and does not say which.",
                    fix="Sync again: it is safe to repeat.",
                )
        return len(members) - (len(failed) - before)

    def _failures(self, url: str, members: Sequence[Member]) -> dict[str, str]:
        """Failed operations of a batch, out of the tar.gz of JSON files that Mailchimp makes of it."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            raise ProviderUnavailableError("The results of a Mailchimp batch are at no https address.")
        try:
            # on another server, which must not be shown our key
            response = httpx.get(url, timeout=60, follow_redirects=False)
            response.raise_for_status()
            failed: dict[str, str] = {}
            with tarfile.open(fileobj=io.BytesIO(response.content), mode="r:*") as archive:
                for entry in archive:
                    file = archive.extractfile(entry) if entry.isfile() else None
                    for result in json.load(file) if file is not None else ():
                        if int(result["status_code"]) >= 400:
                            number = int(text(result["operation_id"]).partition(":")[0])
                            failed.setdefault(
                                members[number].email, self.clean(text(result["response"]))[:500]
                            )
            return failed
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            tarfile.TarError,
            gzip.BadGzipFile,
            OSError,
            EOFError,
        ) as error:
            raise ProviderUnavailableError(
                f"The results of a Mailchimp batch cannot be read: {type(error).__name__}.",
                fix="Sync again: it is safe to repeat.",
            ) from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ProviderUnavailableError(
                "The results of a Mailchimp batch are not what they should be.",
                fix="Sync again: it is safe to repeat.",
            ) from error

    # campaigns

    def send_campaign(self, campaign: MailchimpCampaign) -> str:
        """Send one campaign, once: where one with its key is on its way already, nothing happens. Returns its id.

        Whether it went is never guessed: if the answer to sending is lost, Mailchimp is asked for its state.

        Raises:
            ProviderError: it was not sent, or Mailchimp cannot be asked; calling again is safe.
        """
        found = self._find_campaign(campaign.key)
        if found is not None and found[1] in _STATUSES_OUT:
            return found[0]
        recipients: dict[str, Any] = {"list_id": self.audience}
        if campaign.segment_id:
            recipients["segment_opts"] = {"saved_segment_id": campaign.segment_id}
        settings = {
            "subject_line": campaign.subject, "title": campaign.key, "from_name": campaign.from_name,
            "reply_to": campaign.reply_to,
        }  # fmt: skip
        if found is None:
            body = orjson.dumps({"type": "regular", "recipients": recipients, "settings": settings})
            made = json_object(self.ask(Call([], "/campaigns", json=body), "make a campaign")) or {}
            campaign_id = text(made.get("id"))
            if not campaign_id:
                raise ProviderUnavailableError(
                    "Mailchimp gave a campaign no id.", fix="Call again: it is safe."
                )
        else:
            campaign_id = found[0]
            body = orjson.dumps({"recipients": recipients, "settings": settings})
            self.ask(Call([], f"/campaigns/{campaign_id}", json=body, method="PATCH"), "change a campaign")
        content = {"html": campaign.html, **({"plain_text": campaign.text} if campaign.text else {})}
        place = f"/campaigns/{campaign_id}"
        self.ask(Call([], f"{place}/content", json=orjson.dumps(content), method="PUT"), "take its content")
        try:
            self.ask(Call([], f"{place}/actions/send"), "send a campaign")
        except ProviderError:
            if self._status(campaign_id) not in _STATUSES_OUT:
                raise
        return campaign_id

    def _find_campaign(self, key: str) -> tuple[str, str] | None:
        fields = "campaigns.id,campaigns.status,campaigns.settings.title,total_items"
        for offset in range(0, 100_000, 1000):
            path = f"/campaigns?count=1000&offset={offset}&list_id={quote(self.audience, safe='')}&fields={fields}"
            answer = json_object(self.ask(Call([], path, method="GET"), "list campaigns")) or {}
            entries = answer.get("campaigns")
            if not isinstance(entries, list):
                raise ProviderUnavailableError(
                    "Mailchimp does not list its campaigns.", fix="Try again later."
                )
            for entry in entries:
                if isinstance(entry, dict) and (entry.get("settings") or {}).get("title") == key:
                    return text(entry.get("id")), text(entry.get("status"))
            if len(entries) < 1000:
                return None
        return None

    def _status(self, campaign_id: str) -> str:
        path = f"/campaigns/{campaign_id}?fields=status"
        answer = self.ask(Call([], path, method="GET"), "show a campaign")
        return text((json_object(answer) or {}).get("status"))

    # webhooks

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """The secret in the address; and where a signing secret is set, HMAC-SHA256 of time and body, too.

        Sources disagree on whether Mailchimp signs its calls, so the address's secret is always asked for.
        """
        if not has_secret(url, required_key(self._url_secret, self.name, "webhook_url_secret")):
            return False
        if self._webhook_secret is None:
            return True
        header = lowered(headers).get("x-mailchimp-signature", "")
        pairs = (part.strip().partition("=") for part in header.split(","))
        parts = {name: value for name, _, value in pairs}
        if not is_recent(parts.get("t", ""), now):
            return False
        signed = hmac_hex(self._webhook_secret.get_secret_value().encode(), parts["t"].encode() + b"." + body)
        return is_equal(signed, parts.get("v1", ""))

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row; Mailchimp calls once an event, with a form."""
        fields = dict(parse_form(body, self.name))
        word, reason = fields.get("type", ""), fields.get("data[reason]", "")
        kind = event_type(_EVENTS, word)
        reject_reason = RejectReason.UNSUBSCRIBED if kind is EventType.UNSUBSCRIBED else None
        if kind is EventType.BOUNCED:
            # an address is cleaned for bounces, or for a complaint
            kind = EventType.COMPLAINED if reason == "abuse" else EventType.BOUNCED
            reject_reason = RejectReason.SPAM if reason == "abuse" else RejectReason.BOUNCED
        return [
            event_row(
                self.name,
                kind,
                fields,
                occurred_at=from_iso(fields.get("fired_at"), now),
                email=fields.get("data[email]", "") or fields.get("data[new_email]", ""),
                reject_reason=reject_reason,
                bounce_class="hard" if kind is EventType.BOUNCED else None,
                description=reason,
                mailchimp_type=word,
                list_id=fields.get("data[list_id]", ""),
                provider_message_id=fields.get("data[campaign_id]", ""),
            )
        ]


def _member_body(member: Member) -> dict[str, Any]:
    body: dict[str, Any] = {"email_address": member.email, "status_if_new": member.status_if_new}
    if member.merge_fields:
        body["merge_fields"] = dict(member.merge_fields)
    return body


def _tags_body(member: Member) -> dict[str, Any]:
    return {
        "tags": [
            {"name": name, "status": "active" if is_on else "inactive"} for name, is_on in member.tags.items()
        ]
    }
