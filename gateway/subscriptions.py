"""Subscribing by form or API, with double opt-in: what somebody asks for holds once a link in a mail was used.

    request -> `consent.requested` in the stream -> a trigger sends the confirmation -> its link -> rows that grant

A request changes nothing that counts: it is an event, and everything that proves it is in its properties. The message
is a trigger's (`content/triggers/confirm_subscription.yaml`), so it goes the way of all messages: once for a request,
tried again while the provider is away, and its cooldown keeps a stranger from filling somebody's mailbox. The link
names the message, whose occurrence is the request. Looking at it confirms nothing (scanners do), pressing the button
does.

Whoever asks learns nothing about an address: the answer is the same whether it is known, unsubscribed or dead.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from campaigns.consents import LONGEST_AGENT, Proof, record_texts
from campaigns.permissions import CHANNELS
from campaigns.purposes import PreferencesSpec
from campaigns.siphash import contact_of, normalised_email
from campaigns.triggers import load_triggers
from gateway.events import SUBSCRIPTION_TYPE, Event, EventError, is_unicode, milliseconds
from gateway.preferences import Caller, Grant, PreferenceCentre
from gateway.settings import GatewaySettings
from gateway.unsubscribes import NotStoredError, Recipient
from senders.ledger import LedgerError
from senders.limits import Buckets, Demand, LocalBuckets, RedisBuckets
from senders.rendering import TemplateLibrary
from warehouse.addresses import LONGEST_LOCAL, SPACES, mail_domain
from warehouse.errors import InputError, MailhouseError, WarehouseError
from warehouse.yaml_specs import nearest

BASIS: Final = "double_opt_in"
"""Basis of a consent that a link confirmed."""
MOST_A_DAY: Final = 3
"""Requests for one address within a day that get a message; what comes beyond is not kept."""
MOST_PURPOSES: Final = 50
"""Purposes of one request."""

_PREFIX = "gateway:subscribe:"
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DOT_ATOM = re.compile(rf"{_ATEXT}(\.{_ATEXT})*")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.%]{0,60}")
_FIELDS = ("email", "purposes", "page", "ip", "user_agent", "request_id")
_LONGEST_PAGE = 500
_YOUNG = timedelta(minutes=10)  # so long a request may be in the stream and not in the warehouse yet
_LOOK_SECONDS = 30.0
_CALLERS = 65_536  # buckets that callers share by chance: neither memory nor Redis keeps a list of addresses
_UNKNOWN_TABLE, _UNKNOWN_DATABASE = 60, 81
# the request that a confirmed consent is of: the consent's id without its purpose
_REQUEST = "arrayStringConcat(arraySlice(splitByChar(':', consent_id), 1, -1), ':')"
_log = logging.getLogger("mailhouse.gateway")

#: Adds events to the stream; returns when they are on disk.
Append = Callable[[Sequence[Event]], None]


class NotSetUpError(MailhouseError):
    """Nobody would get a confirmation: trigger or template is missing."""


@dataclass(frozen=True)
class Wish:
    """What somebody asks for.

    Attributes:
        email: normalised, its domain in ASCII.
        page, ip, user_agent: where and who; proof.
        recorded_by: the API key, or `form`.
        source: of the event and the consents.
        request_id: the same twice counts once; empty: each is another.
    """

    email: str
    purposes: tuple[str, ...]
    page: str = ""
    ip: str = ""
    user_agent: str = ""
    recorded_by: str = "form"
    source: str = "gateway"
    request_id: str = ""


@dataclass(frozen=True)
class Requested:
    """A request as it was stored.

    Attributes:
        texts: by purpose, version and digest of what was shown.
        purposes: those that are to be confirmed.
    """

    event_id: str
    at: datetime
    source: str
    purposes: tuple[str, ...]
    texts: dict[str, dict[str, str]]
    ip: str
    user_agent: str
    page: str
    recorded_by: str


@dataclass(frozen=True)
class Confirmation:
    """What a link leads to.

    Attributes:
        state: `open`, `done` (the link has been used), `expired`, or `refused` (a complaint or a dead mailbox stands
            against the address).
        titles: what is confirmed, in words.
        requests: ids of the requests that pressing the button confirms.
        confirmed_at: of a link that has been used.
    """

    state: Literal["open", "done", "expired", "refused"]
    recipient: Recipient
    titles: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    confirmed_at: datetime | None = None


def clean_address(text: str) -> str:
    """An address as it is stored: trimmed, lower case, an international domain in ASCII.

    The local part is a dot-atom (RFC 5322 3.2.3) of ASCII; the domain is the one that an import would take.

    Raises:
        ValueError: it is none.
    """
    local, _, domain = text.strip(SPACES).rpartition("@")
    try:
        address = normalised_email(f"{local}@{mail_domain(domain.rstrip('.'))}")
    except ValueError:
        address = ""
    if (
        not _DOT_ATOM.fullmatch(local)
        or len(local) > LONGEST_LOCAL
        or not CHANNELS["email"].is_address(address)
    ):
        raise ValueError("is no mail address; write it like ann@example.com")
    return address


def parse_wish(value: Any, key: str, caller: Caller, offered: Sequence[str]) -> Wish:
    """Read what is posted to /v1/subscribe.

    Args:
        key: name of the API key.
        caller: who called, if the body names nobody else.
        offered: purposes that can be subscribed to; a request that names none is for all if there is one.

    Raises:
        EventError: names the field.
    """
    if not isinstance(value, dict):
        raise EventError("", "A subscription is an object.")
    if strange := next((name for name in value if name not in _FIELDS), None):
        raise EventError(strange[:60], f"There is no such field. {nearest(strange[:60], _FIELDS)}".strip())
    given = {name: _text(value, name) for name in _FIELDS if name != "purposes"}
    try:
        address = clean_address(given["email"])
    except ValueError as error:
        raise EventError("email", f"It {error}." if given["email"] else "It is missing.") from None
    if given["ip"] and not _ADDRESS.fullmatch(given["ip"]):
        raise EventError("ip", "It is no IP address.")
    if len(given["request_id"]) > 200 or not given["request_id"].isprintable():
        raise EventError("request_id", "It is 1 to 200 printable characters.")
    return Wish(
        address,
        wished_purposes(value.get("purposes"), offered),
        page=given["page"][:_LONGEST_PAGE],
        # a server that calls for somebody says who it is; a page calls by itself
        ip=given["ip"] or caller.ip,
        user_agent=(given["user_agent"] or caller.user_agent)[:LONGEST_AGENT],
        recorded_by=f"API key {key}",
        source=key,
        request_id=given["request_id"],
    )


def wished_purposes(value: Any, offered: Sequence[str]) -> tuple[str, ...]:
    """The purposes of a request, each once.

    Raises:
        EventError: they are no list, or one is not offered.
    """
    if value is None and len(offered) == 1:
        return tuple(offered)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise EventError("purposes", f"It is a list of names. Allowed: {', '.join(offered)}.")
    if not value or len(value) > MOST_PURPOSES:
        raise EventError("purposes", f"It has 1 to {MOST_PURPOSES} names.")
    for one in value:
        if one not in offered:
            raise EventError(
                "purposes", f"There is no purpose {one[:60]!r} here. {nearest(one[:60], offered)}"
            )
    return tuple(dict.fromkeys(value))


class Subscriptions:
    """Takes requests, and confirms them. Safe to share between threads.

    Args:
        append: adds events to the stream.
    """

    def __init__(self, settings: GatewaySettings, centre: PreferenceCentre, append: Append) -> None:
        self.settings, self.centre = settings, centre
        self.unsubscribes, self.warehouse = centre.unsubscribes, centre.warehouse
        self._append = append
        self._lock = threading.Lock()
        self._looked_at, self._problem = float("-inf"), ""
        self._buckets: Buckets = (
            RedisBuckets(settings.redis_url.get_secret_value()) if settings.redis_url else LocalBuckets()
        )

    def wait(self, caller: str) -> float:
        """Seconds until a caller may ask again; 0: they may, and it counts.

        Raises:
            LimitError: shared limits cannot be asked.
        """
        settings = self.settings
        demands = [
            Demand(f"subscribe:{name}", rate / 60, max(1, int(rate)), 1)
            for name, rate in (
                (str(zlib.crc32(caller.encode()) % _CALLERS), settings.subscribe_per_minute),
                ("all", settings.subscribe_total_per_minute),
            )
            if rate
        ]  # fmt: skip
        if not demands:
            return 0.0
        seconds = self._buckets.reserve(demands)
        if seconds > 0:
            # who is refused has not used what they were refused
            self._buckets.reserve([Demand(one.bucket, one.rate, one.burst, -1) for one in demands])
        return seconds

    def spec(self) -> PreferencesSpec:
        """What is offered.

        Raises:
            InputError: the file does not say what it must.
        """
        return PreferencesSpec.load(self.settings.content_dir)

    def request(self, wish: Wish) -> None:
        """Take a request. When it returns, it is on disk, or there is nothing that could come of it.

        Raises:
            NotSetUpError: there is no message that could ask for a confirmation.
            NotStoredError: it could not be stored; nothing has changed.
            StreamError: the same, and why.
        """
        spec, now = self.spec(), self.settings.now()
        self._require_set_up(spec, wish.purposes)
        number = (
            hashlib.sha256(f"{wish.source}\0{wish.request_id}".encode()).hexdigest()[:32]
            if wish.request_id
            else uuid.uuid4().hex
        )
        event_id = f"{_PREFIX}{number}"
        recipient = Recipient("", wish.email, self._contact(wish.email))
        try:
            recent = self._recent(wish.email, now)
            standing = self.centre.read(recipient)
            if standing.suppressed_by not in ("", "unsubscribed") or recent >= MOST_A_DAY:
                _log.warning("a subscription gets no message: the address is blocked, or was asked for often")
                return
            texts = {one: spec.subscription_text(one, self.settings.company_name) for one in wish.purposes}
            record_texts(self.warehouse, texts.values(), now)
        except WarehouseError as error:
            raise NotStoredError(str(error)) from error
        # who has unsubscribed or said no must not be signed up again by somebody else
        refused = {one.pair for one in standing.choices if one.consent_id and not one.is_granted}
        at_once = [
            one
            for one in wish.purposes
            if not spec.purposes[one].double_opt_in
            and not standing.suppressed_by
            and (one, "email") not in refused
        ]
        if at_once:
            self._grant_at_once(event_id, recipient, wish, at_once, spec, now)
        waiting = [one for one in wish.purposes if one not in at_once]
        if waiting:
            said = {
                "purposes": waiting,
                "texts": {
                    one: {"version": texts[one].version, "digest": texts[one].digest, "title": spec.purposes[one].title}
                    for one in waiting
                },
                "ip": wish.ip, "user_agent": wish.user_agent, "page": wish.page, "recorded_by": wish.recorded_by,
            }  # fmt: skip
            moment = milliseconds(now)
            self._append(
                [
                    Event(
                        event_id, SUBSCRIPTION_TYPE, moment, moment, wish.source, wish.email,
                        properties=orjson.dumps(said).decode(),
                    )
                ]
            )  # fmt: skip

    def look(self, token: str) -> Confirmation | None:
        """What a link leads to; changes nothing. None if we did not make it.

        Raises:
            NotStoredError: neither ledger nor warehouse can be asked, or the request is still on its way.
        """
        found = self._found(token)
        return found if found is None or isinstance(found, Confirmation) else found[0]

    def confirm(self, token: str, chosen: Sequence[str], caller: Caller) -> Confirmation | None:
        """Let what the page showed hold. A link that was used before, or is too old, changes nothing.

        Args:
            chosen: ids of the requests that the page showed.

        Raises:
            NotStoredError: not all is stored; the same call again completes it.
        """
        with self._lock:
            found = self._found(token)
            if found is None:
                return None
            seen, pending = found
            if seen.state == "done" and seen.confirmed_at is not None:
                # had it broken off between consent and event, this completes it; else it is there already
                self._tell(seen.recipient, seen.requests, seen.confirmed_at)
                return seen
            if seen.state != "open":
                return seen
            wanted = [one for one in pending if one.event_id in chosen]
            if not wanted:
                return seen
            now = self.settings.now()
            grants = [
                Grant(
                    (purpose, "email"), self._row(one, purpose, seen.recipient, caller, now)
                )
                for one in wanted
                for purpose in one.purposes
            ]  # fmt: skip
            ids = tuple(one.event_id for one in wanted)
            if not self.centre.grant(seen.recipient, grants):
                return Confirmation("refused", seen.recipient)
            self._tell(seen.recipient, ids, now)
            return Confirmation("done", seen.recipient, seen.titles, ids, now)

    # its steps

    def _found(self, token: str) -> tuple[Confirmation, list[Requested]] | None:
        recipient = self.unsubscribes.recipient(token, "confirm")
        if recipient is None:
            return None
        if not recipient.email:
            return Confirmation("expired", recipient), []
        occurrence, sent_at = self._occurrence(recipient.message_id)
        now = self.settings.now()
        since = now - timedelta(days=self.settings.subscribe_link_days)
        try:
            requests = self._requests(recipient.email, occurrence, since)
            confirmed = self._confirmed(recipient.email, [one.event_id for one in requests])
        except WarehouseError as error:
            raise NotStoredError(str(error)) from error
        own = next((one for one in requests if one.event_id == occurrence), None)
        if own is None:
            if occurrence.startswith(_PREFIX) and sent_at is not None and now - sent_at < _YOUNG:
                raise NotStoredError(f"request {occurrence} is not in the warehouse yet")
            return Confirmation("expired", recipient), []
        titles = _titles([own])
        if own.event_id in confirmed:
            return Confirmation("done", recipient, titles, (own.event_id,), confirmed[own.event_id]), []
        if own.at <= since:
            return Confirmation("expired", recipient, titles), []
        # asked for twice within the cooldown, there is one message: its link is for both
        pending = [one for one in requests if one.event_id not in confirmed and one.at > since]
        ids = tuple(one.event_id for one in pending)
        return Confirmation("open", recipient, _titles(pending), ids), pending

    def _occurrence(self, message_id: str) -> tuple[str, datetime | None]:
        """The request that a message is about, and when the message was claimed."""
        try:
            known = self.unsubscribes.ledger.find(message_id)
            if known is not None:
                return str(known.values["occurrence"]), known.values["claimed_at"]
            rows = self.warehouse.frame(
                "select occurrence from raw.messages where message_id = {id:String} limit 1",
                {"id": message_id},
            ).rows()
        except (LedgerError, WarehouseError) as error:
            raise NotStoredError(str(error)) from error
        return (str(rows[0][0]) if rows else ""), None

    def _requests(self, email: str, occurrence: str, since: datetime) -> list[Requested]:
        rows = self.warehouse.frame(
            f"""
            select event_id, toUnixTimestamp64Milli(occurred_at) as at, source::String as source,
                toJSONString(properties) as said
            from raw.events
            where type = '{SUBSCRIPTION_TYPE}' and lower(trim(email)) = {{email:String}}
                and startsWith(event_id, '{_PREFIX}')
                and (occurred_at > {{since:DateTime64(3, 'UTC')}} or event_id = {{occurrence:String}})
            order by occurred_at, event_id limit 1 by event_id
            """,  # noqa: S608 - constants of this module
            {
                "email": normalised_email(email),
                "occurrence": occurrence,
                "since": since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
            },
        )
        found: list[Requested] = []
        for event_id, at, source, said in rows.iter_rows():
            known = orjson.loads(said)
            found.append(
                Requested(
                    event_id, datetime.fromtimestamp(at / 1000, UTC), source, tuple(known.get("purposes") or ()),
                    known.get("texts") or {}, known.get("ip") or "", known.get("user_agent") or "",
                    known.get("page") or "", known.get("recorded_by") or "",
                )
            )  # fmt: skip
        return found

    def _confirmed(self, email: str, event_ids: Sequence[str]) -> dict[str, datetime]:
        """Which requests have been confirmed, and when."""
        if not event_ids:
            return {}
        rows = self.warehouse.frame(
            f"""
            select {_REQUEST} as request, toUnixTimestamp64Milli(min(assumeNotNull(confirmed_at))) as at
            from raw.consents
            where email = {{email:String}} and confirmed_at is not null and request in {{ids:Array(String)}}
            group by request
            """,  # noqa: S608 - constants of this module
            {"ids": list(event_ids), "email": normalised_email(email)},
        )
        return {request: datetime.fromtimestamp(at / 1000, UTC) for request, at in rows.iter_rows()}

    def _row(
        self, request: Requested, purpose: str, recipient: Recipient, caller: Caller, now: datetime
    ) -> dict[str, Any]:
        text = request.texts.get(purpose) or {}
        proof = Proof(
            ip=caller.ip, user_agent=caller.user_agent, page=request.page, requested_at=request.at,
            requested_ip=request.ip, confirmed_at=now, recorded_by=request.recorded_by,
            more={
                "message_id": recipient.message_id, "contact_id": recipient.contact_id,
                "request_id": request.event_id, "requested_user_agent": request.user_agent,
            },
        )  # fmt: skip
        return {
            "consent_id": f"{request.event_id}:{purpose}", "source": request.source,
            "email": normalised_email(recipient.email), "channel": "email", "purpose": purpose, "is_granted": True,
            "basis": BASIS, "occurred_at": now, **proof.columns(),
            "text_version": text.get("version", ""), "text_digest": text.get("digest", ""),
        }  # fmt: skip

    def _grant_at_once(
        self, event_id: str, recipient: Recipient, wish: Wish, purposes: Sequence[str], spec: PreferencesSpec,
        now: datetime,
    ) -> None:  # fmt: skip
        """Purposes that need no confirmation: a request is the consent."""
        grants = [
            Grant(
                (one, "email"),
                {
                    "consent_id": f"{event_id}:{one}", "source": wish.source, "email": wish.email, "channel": "email",
                    "purpose": one, "is_granted": True, "basis": "consent", "occurred_at": now,
                    **Proof(
                        spec.subscription_text(one, self.settings.company_name), wish.ip, wish.user_agent, wish.page,
                        recorded_by=wish.recorded_by, more={"request_id": event_id},
                    ).columns(),
                },
            )
            for one in purposes
        ]  # fmt: skip
        if self.centre.grant(recipient, grants):
            self._tell(recipient, [event_id], now)

    def _tell(self, recipient: Recipient, requests: Sequence[str], at: datetime) -> None:
        """One `subscribed` event: it lifts an unsubscribe of before, and triggers that welcome people fire on it.

        Its time is that of the consent: told again after they unsubscribed once more, it lifts nothing.
        """
        try:
            self.unsubscribes.store(
                recipient, f"gateway:subscribed:{requests[0]}", "subscribed", "subscription", at
            )
        except WarehouseError as error:
            raise NotStoredError(str(error)) from error

    def _recent(self, email: str, now: datetime) -> int:
        """Requests for an address within a day that were not confirmed."""
        return int(
            self.warehouse.value(
                f"""
                select uniqExact(event_id) from raw.events
                where type = '{SUBSCRIPTION_TYPE}' and startsWith(event_id, '{_PREFIX}')
                    and lower(trim(email)) = {{email:String}} and occurred_at > {{since:DateTime64(3, 'UTC')}}
                    and event_id not in (
                        select {_REQUEST} from raw.consents
                        where email = {{email:String}} and confirmed_at is not null
                    )
                """,  # noqa: S608 - constants of this module
                {
                    "email": email,
                    "since": (now - timedelta(days=1)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
                },
            )
        )

    def _contact(self, email: str) -> int:
        """Who has the address, or the contact_id that they will have."""
        try:
            found = self.warehouse.frame(
                """
                select contact_id from intermediate.int_contacts__identified
                where kind = 'email' and identifier = {email:String} limit 1
                """,
                {"email": email},
            ).rows()
        except WarehouseError as error:
            if error.code not in (_UNKNOWN_TABLE, _UNKNOWN_DATABASE):
                raise NotStoredError(str(error)) from error
            found = []
        return int(found[0][0]) if found else contact_of(email)

    def _require_set_up(self, spec: PreferencesSpec, purposes: Sequence[str]) -> None:
        del purposes  # any may have to be confirmed: who has unsubscribed must, whatever the file says
        moment = time.monotonic()
        if moment - self._looked_at > _LOOK_SECONDS:
            self._problem = confirmation_problem(self.settings.content_dir, spec)
            self._looked_at = moment
        if self._problem:
            _log.error("nobody can subscribe: %s", self._problem)
            raise NotSetUpError(self._problem, fix="`mailhouse doctor` says what is missing.")


def confirmation_problem(content_dir: Path, spec: PreferencesSpec) -> str:
    """Why nobody would be asked to confirm a subscription; empty if all is there."""
    if not spec.offered():
        return "content/preferences.yaml offers no purpose by email."
    try:
        triggers = [
            one for one in load_triggers(content_dir).values() if SUBSCRIPTION_TYPE in (one.event or ()) and one.send
        ]  # fmt: skip
        if not triggers:
            return f"no trigger in content/triggers sends on {SUBSCRIPTION_TYPE}, so no confirmation would go out."
        library = TemplateLibrary.load(content_dir / "templates")
        for one in triggers:
            send = one.send
            assert send is not None
            if send.category != "transactional":
                return f"trigger {one.name} is {send.category}: who has not confirmed yet would get nothing."
            if send.channel != "email":
                return f"trigger {one.name} goes out by {send.channel}; a subscription is confirmed by email."
            template = library.template(send.template, subject=send.subject, has_event=True)
            if "confirm_url" not in template.names:
                return f"template {send.template} has no {{{{ confirm_url }}}}, which confirms."
    except MailhouseError as error:
        return error.message
    return ""


def _titles(requests: Sequence[Requested]) -> tuple[str, ...]:
    titles = (
        (request.texts.get(one) or {}).get("title") or one.replace("_", " ").capitalize()
        for request in requests
        for one in request.purposes
    )
    return tuple(dict.fromkeys(titles))


def _text(value: dict[str, Any], name: str) -> str:
    given = value.get(name)
    if given is None:
        return ""
    if not isinstance(given, str) or "\0" in given or not is_unicode(given):
        raise EventError(name, "It is a text.")
    return given.strip()


__all__ = ["InputError", "Subscriptions", "Wish", "clean_address", "confirmation_problem", "parse_wish"]
