"""Calls by which providers report what became of messages: who sent them, how old they are, what they say.

`receive` takes a call as it came in and answers rows of `raw.events`. Nothing of a call that is forged, stale or seen
before is ever read. What has been seen is kept by whoever receives (`SeenCalls`), and noted only after the rows are
stored: a provider that calls again because we failed is welcome, one that repeats what we have is told that we have it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

from senders.message import EventType, RejectReason
from senders.providers.base import WebhookReader
from warehouse.errors import MailhouseError, SettingsError

#: Usual age of a signed call at most, either way, since clocks differ.
TOLERANCE = timedelta(minutes=5)
#: How long a call is remembered, so that it cannot be repeated while its signature is still good.
REMEMBERED = timedelta(days=3)
#: The key under which our message id travels with a message and comes back with its events.
MESSAGE_ID = "mailhouse_message_id"
BATCH_ID = "mailhouse_batch_id"
_MOST_EVENTS = 10_000
_OWN_MESSAGE_ID = re.compile(
    r"<?([0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})@[^>]*>?"
)

#: An address -> what is there; raises ValueError if it cannot be had.
Fetch = Callable[[str], bytes]
RefusalReason = Literal["forged", "replayed", "unreadable"]


class WebhookError(MailhouseError):
    """A webhook call that is not taken.

    Attributes:
        reason: `forged` (signature or age wrong), `replayed` (we have it), `unreadable` (not what is promised).
    """

    def __init__(self, message: str, *, reason: RefusalReason = "unreadable", fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.reason = reason


class SeenStore(Protocol):
    """Keeps keys until they expire; handed in by whoever receives webhooks."""

    def has(self, key: str, now: datetime) -> bool:
        """Whether the key was added and has not expired."""
        ...

    def add(self, key: str, expires_at: datetime) -> None:
        """Keep the key."""
        ...


class MemorySeenStore:
    """Keys in this process's memory, the oldest forgotten beyond `most`. Safe to share between threads."""

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._keys: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def has(self, key: str, now: datetime) -> bool:
        """Whether the key was added and has not expired."""
        with self._lock:
            expires_at = self._keys.get(key)
            return expires_at is not None and expires_at > now

    def add(self, key: str, expires_at: datetime) -> None:
        """Keep the key."""
        with self._lock:
            self._keys.pop(key, None)
            self._keys[key] = expires_at
            while len(self._keys) > self._most:
                del self._keys[next(iter(self._keys))]


class SeenCalls:
    """Defence against calls that are sent again: remembers the digest of each.

    Args:
        store: where they are kept; one that all processes share, if several receive.
    """

    def __init__(self, store: SeenStore, *, remembered: timedelta = REMEMBERED) -> None:
        self._store, self._remembered = store, remembered

    def refuse_repeated(
        self, reader: WebhookReader, body: bytes, headers: Mapping[str, str], now: datetime
    ) -> str:
        """The call's key, for `note` once its rows are stored.

        Only what is signed makes the key: whoever repeats a call may change anything else, the signature's form too.

        Raises:
            WebhookError: it was noted before (`replayed`).
        """
        values = lowered(headers)
        digest = hashlib.sha256(reader.name.encode() + b"\0")
        for header in reader.signed_headers:
            digest.update(f"{header}={values.get(header, '')}\0".encode())
        digest.update(body)
        key = digest.hexdigest()
        if self._store.has(key, now):
            raise WebhookError(f"This call of {reader.name} was received before.", reason="replayed")
        return key

    def note(self, key: str, now: datetime) -> None:
        """Remember a call whose rows are stored."""
        self._store.add(key, now + self._remembered)


@dataclass(frozen=True)
class Received:
    """A call that was taken: rows of `raw.events`, and the key to note once they are stored."""

    rows: list[dict[str, Any]]
    key: str


def receive(
    reader: WebhookReader,
    body: bytes,
    headers: Mapping[str, str],
    *,
    seen: SeenCalls,
    now: datetime,
    url: str = "",
) -> Received:
    """Check a call and read it.

    Args:
        url: the address that was called, as the provider was told it.

    Raises:
        WebhookError: forged or stale, seen before, or unreadable; nothing may be stored.
        NotSupportedError, SettingsError: this provider's calls cannot be taken, as it is set up.
    """
    if not reader.verify_signature(body, headers, url=url, now=now):
        raise WebhookError(f"The signature of this call of {reader.name} is not good.", reason="forged")
    key = seen.refuse_repeated(reader, body, headers, now)
    rows = reader.parse_webhook(body, headers, url=url, now=now)
    for row in rows:
        row["received_at"] = now
    return Received(rows, key)


def lowered(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers by their names in small letters."""
    return {name.lower(): value for name, value in headers.items()}


def required_key(secret: SecretStr | str | None, provider: str, setting: str) -> bytes:
    """The key that a provider's signatures are checked with.

    Raises:
        SettingsError: it is not set: an unsigned call proves nothing.
    """
    value = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
    if not value:
        raise SettingsError(
            f"Webhooks of {provider} cannot be checked, because MAILHOUSE_{setting.upper()} is not set.",
            fix=f"Set MAILHOUSE_{setting.upper()}; docs/providers.md says where {provider} shows it.",
        )
    return value.encode()


def is_equal(expected: str | bytes, given: str) -> bool:
    """Whether a signature is the expected one, in time that does not depend on it."""
    expected = expected.encode() if isinstance(expected, str) else expected
    return hmac.compare_digest(expected, given.encode("utf-8", "surrogatepass"))


def hmac_base64(key: bytes, content: bytes, algorithm: str) -> str:
    """Base64 of an HMAC."""
    return base64.b64encode(hmac.new(key, content, algorithm).digest()).decode()


def hmac_hex(key: bytes, content: bytes) -> str:
    """HMAC-SHA256 in hexadecimal digits."""
    return hmac.new(key, content, "sha256").hexdigest()


def form_content(url: str, pairs: Sequence[tuple[str, str]]) -> bytes:
    """What Mandrill and Twilio sign: the address, then all fields by name, names and values run together."""
    return (url + "".join(name + value for name, value in sorted(pairs))).encode()


def has_secret(url: str, key: bytes) -> bool:
    """Whether the address that was called ends in `?secret=...`: for vendors that do not sign."""
    given = dict(parse_qsl(urlsplit(url).query)).get("secret", "")
    return is_equal(key, given)


def is_recent(epoch: str, now: datetime | None, tolerance: timedelta = TOLERANCE) -> bool:
    """Whether a moment in seconds since 1970 is near now, before or after."""
    if not (epoch.isascii() and epoch.isdigit() and len(epoch) < 16):
        return False
    return abs((now or datetime.now(UTC)).timestamp() - int(epoch)) <= tolerance.total_seconds()


def from_base64(value: str) -> bytes | None:
    """Bytes of a base64 text; None if it is none."""
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None


def own_message_id(header: str) -> str:
    """Our message id in a Message-ID header that we wrote; empty if another wrote it."""
    match = _OWN_MESSAGE_ID.fullmatch(header.strip())
    return match[1] if match else ""


def parse_json(body: bytes | str, provider: str) -> Any:
    """The JSON value of a call's body.

    Raises:
        WebhookError: it is none.
    """
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise WebhookError(f"This call of {provider} is no JSON.") from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def objects(value: Any, provider: str) -> list[dict[str, Any]]:
    """The events of a call: a list of objects.

    Raises:
        WebhookError: it is something else, or more than any provider sends.
    """
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise WebhookError(f"This call of {provider} is no list of events.")
    if len(value) > _MOST_EVENTS:
        raise WebhookError(f"This call of {provider} has {len(value)} events.")
    return value


def parse_form(body: bytes, provider: str) -> list[tuple[str, str]]:
    """The fields of a form, in order, blank ones too.

    Raises:
        WebhookError: it is no form.
    """
    try:
        return parse_qsl(
            body.decode("utf-8"), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=5000
        )
    except ValueError:
        raise WebhookError(f"This call of {provider} is no form.") from None


def text(value: Any) -> str:
    """A value as text: text and numbers as they are, anything else as empty."""
    if isinstance(value, bool) or value is None:
        return ""
    return value if isinstance(value, str) else str(value) if isinstance(value, int | float) else ""


def event_type(words: Mapping[str, EventType], word: Any) -> EventType:
    """What a provider's word for an event means; `unknown` if it is not in the mapping."""
    return words.get(text(word), EventType.UNKNOWN)


def from_epoch(value: Any, now: datetime | None) -> datetime:
    """A moment in seconds since 1970, as number or text; `now` if it is none."""
    try:
        if not isinstance(value, bool):
            return datetime.fromtimestamp(float(value), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        pass
    return now or datetime.now(UTC)


def from_iso(value: Any, now: datetime | None) -> datetime:
    """A moment as ISO 8601 writes it, UTC if it names no zone; `now` if it is none."""
    try:
        moment = datetime.fromisoformat(text(value))
    except ValueError:
        return now or datetime.now(UTC)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def event_row(
    provider: str,
    kind: EventType,
    raw: Any,
    *,
    occurred_at: datetime,
    event_id: str = "",
    email: str = "",
    message_id: str = "",
    external_id: str = "",
    reject_reason: RejectReason | None = None,
    metadata: Mapping[str, Any] | None = None,
    **properties: Any,
) -> dict[str, Any]:
    """One row of `raw.events`.

    Args:
        raw: the provider's own event, kept whole.
        event_id: the provider's id of it; left out, a digest of the event, so that the same one is the same row.
        message_id: ours; the provider's own goes into `provider_message_id`.
        metadata: what else travelled with the message; kept as text, because its names are anyone's.
        properties: further ones; None and empty text are left out.
    """
    content = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, sort_keys=True)
    if not event_id:
        event_id = hashlib.sha256(f"{kind}\0{email}\0{content}".encode("utf-8", "replace")).hexdigest()[:32]
    known = {
        "provider": provider,
        "reject_reason": reject_reason.value if reject_reason else None,
        "metadata": json.dumps(metadata, ensure_ascii=False, sort_keys=True) if metadata else None,
        **properties,
    }
    return {
        "event_id": f"{provider}:{_storable(event_id)}",
        "type": kind.value,
        "source": provider,
        "email": _storable(email),
        "external_id": _storable(external_id),
        "message_id": _storable(message_id),
        "occurred_at": occurred_at.astimezone(UTC),
        "properties": _storable(
            json.dumps({name: value for name, value in known.items() if value not in (None, "")})
        ),
        "esp_event": _storable(content),
    }


def _storable(value: str) -> str:
    # lone surrogates, which JSON can spell, are no UTF-8
    return value.encode("utf-8", "replace").decode()
