"""One event on its way, and reading it from what a caller posted.

Everything that callers can get wrong is found here, before an event is acknowledged: what ClickHouse would refuse later
would be lost to the caller, who was told that we have it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson
import polars as pl

from warehouse.errors import MailhouseError
from warehouse.loads import EVENT_COLUMNS
from warehouse.yaml_specs import nearest

LONGEST_EVENT = 32_768
"""Bytes of one event's JSON."""
MOST_EVENTS = 1_000
"""Events of one request."""
DEEPEST = 16
"""Objects and lists within each other in `properties`."""
MOST_KEYS = 500
"""Keys of `properties`, nested ones counted."""

TYPE = r"^[a-z][a-z0-9_]{0,62}\.[a-z][a-z0-9_]{0,62}$"
SOURCE = r"^[a-z][a-z0-9_]{0,62}$"
EMAIL = r"^[^\s\x00-\x1f\x7f@<>,;:\"()\[\]\\]{1,64}@[^\s\x00-\x1f\x7f@<>,;:\"()\[\]\\]{1,254}$"
IDENTIFIER = r"^[^\x00-\x20\x7f](?:[^\x00-\x1f\x7f]{0,198}[^\x00-\x20\x7f])?$"
# event ids that others give: a caller who took one would keep the real event out
_RESERVED = (
    "gateway", "segment", "webhook", "sendgrid", "mandrill", "mailchimp", "bombbomb", "twilio", "fcm", "slack",
    "amazon_ses", "postmark", "hubspot", "pipedrive", "salesforce", "bounce",
)  # fmt: skip
SUBSCRIPTION_TYPE = "consent.requested"
"""The event of a subscription that is to be confirmed. Only the gateway makes it: it leads to a message."""
_FIELDS = (
    "event_id", "type", "occurred_at", "source", "email", "external_id", "anonymous_id", "properties",
)  # fmt: skip
_TYPE, _SOURCE, _EMAIL, _IDENTIFIER = (re.compile(text) for text in (TYPE, SOURCE, EMAIL, IDENTIFIER))
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:?\d\d)")
_LONGEST_KEY = 200
_NOT_PLAIN = 1 << 30
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(days=1)
_LONGEST_SHOWN = 60


class EventError(MailhouseError):
    """An event that is not taken.

    Attributes:
        field: where in the event: `properties.items[2].price`; empty for the event itself.
        is_hostile: no client that means well sends this.
    """

    def __init__(self, field: str, problem: str, *, is_hostile: bool = False) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field, self.problem, self.is_hostile = field, problem, is_hostile


class Event(NamedTuple):
    """A row of `raw.events` on its way; times in milliseconds since 1970 UTC, `properties` the text of an object."""

    event_id: str
    type: str
    occurred_at: int
    received_at: int
    source: str = ""
    email: str = ""
    external_id: str = ""
    anonymous_id: str = ""
    message_id: str = ""
    properties: str = "{}"
    esp_event: str = ""

    def encode(self) -> bytes:
        """As the stream keeps it."""
        return orjson.dumps(tuple(self))

    @classmethod
    def decode(cls, content: bytes) -> Event:
        """From what the stream kept."""
        return cls(*orjson.loads(content))

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Event:
        """From a row as webhook readers make them, with datetimes."""
        occurred = milliseconds(row["occurred_at"])
        received = milliseconds(row["received_at"]) if row.get("received_at") else occurred
        texts = {
            name: str(row[name])
            for name in cls._fields
            if row.get(name) is not None and name not in ("occurred_at", "received_at")
        }
        return cls(occurred_at=occurred, received_at=received, **texts)


def milliseconds(moment: datetime) -> int:
    """Whole milliseconds since 1970 UTC."""
    return round(moment.timestamp() * 1000)


def frame_of(events: Sequence[Event]) -> pl.DataFrame:
    """Events as rows of `raw.events`: columns and types of `warehouse.loads.EVENT_COLUMNS`."""
    schema = {
        name: pl.Int64() if name in ("occurred_at", "received_at") else pl.String() for name in Event._fields
    }
    frame = pl.DataFrame(events, schema=schema, orient="row")
    return frame.select(
        pl.col(name).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
        if dtype == pl.Datetime("ms", "UTC")
        else name
        for name, dtype in EVENT_COLUMNS.items()
    )


def parse_json(body: bytes) -> Any:
    """The JSON value of a body.

    Raises:
        EventError: it is none, or one on which readers disagree: keys written twice, numbers beyond all bounds.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EventError(
            "", f"The body is not UTF-8: byte {error.start} is wrong.", is_hostile=True
        ) from None
    try:
        return _DECODER.decode(text)
    except EventError:
        raise
    except RecursionError:
        raise EventError("", "The body is nested too deeply.", is_hostile=True) from None
    except json.JSONDecodeError as error:
        raise EventError(
            "", f"The body is no JSON: {error.msg}, line {error.lineno} column {error.colno}."
        ) from None
    except ValueError:
        raise EventError("", "The body has a number with too many digits.", is_hostile=True) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise EventError("", f"The key {_shown(twice)} is written twice in one object.", is_hostile=True)
    return made


def _no_constant(name: str) -> Any:
    raise EventError("", f"{name} is no JSON.", is_hostile=True)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise EventError("", f"The number {text[:20]} is beyond a double.", is_hostile=True)
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)


def parse_event(value: Any, source: str, now: datetime) -> Event:
    """Read one event in the form of our own API.

    Args:
        value: parsed JSON.
        source: of events that name none.
        now: when it came in.

    Raises:
        EventError: names the field.
    """
    if not isinstance(value, dict):
        raise EventError("", f"An event is an object, not {_kind(value)}.")
    for name in value:
        if name not in _FIELDS:
            raise EventError(_shown(name), f"There is no such field. {nearest(name, _FIELDS) or ''}".strip())
    type_ = _text(value, "type", _TYPE, "noun.verb in small letters, such as cart.updated", is_required=True)
    require_foreign(type_)
    named = _text(value, "source", _SOURCE, "a name in small letters, such as shop") or source
    email = _text(value, "email", _EMAIL, "an email address")
    external_id = _text(value, "external_id", _IDENTIFIER, "1 to 200 printable characters")
    anonymous_id = _text(value, "anonymous_id", _IDENTIFIER, "1 to 200 printable characters")
    if not (email or external_id or anonymous_id):
        raise EventError("", "An event needs email, external_id or anonymous_id, or it is nobody's.")
    event_id = _text(value, "event_id", _IDENTIFIER, "1 to 200 printable characters")
    if event_id.partition(":")[0].lower() in _RESERVED and ":" in event_id:
        raise EventError(
            "event_id", f"Ids that begin with {event_id.partition(':')[0]}: are given by Mailhouse."
        )
    occurred = _moment(value, now)
    given = value.get("properties")
    properties = properties_text({} if given is None else given)
    received = milliseconds(now)
    if not event_id:
        if occurred is None:
            event_id = uuid.uuid4().hex
        else:
            content = "\0".join(
                (named, type_, email, external_id, anonymous_id, str(milliseconds(occurred)), properties)
            )
            event_id = hashlib.sha256(content.encode()).hexdigest()[:32]
    return Event(
        event_id, type_, received if occurred is None else milliseconds(occurred), received, named, email,
        external_id, anonymous_id, "", properties,
    )  # fmt: skip


def require_foreign(type_: str) -> None:
    """Refuse a type that only the gateway makes.

    Raises:
        EventError: it is one.
    """
    if type_ == SUBSCRIPTION_TYPE:
        raise EventError("type", "Subscriptions are posted to /v1/subscribe.")


def properties_text(value: Any, field: str = "properties") -> str:
    """The text of an object that ClickHouse's JSON type can store.

    Raises:
        EventError: it cannot; names the place.
    """
    if not isinstance(value, dict):
        raise EventError(field, f"It is an object, not {_kind(value)}.")
    if _plain_keys(value, 1) > MOST_KEYS:
        _Check(field).object(value, field)
    try:
        text = orjson.dumps(value).decode()
    except (orjson.JSONEncodeError, TypeError):
        raise EventError(field, "It cannot be stored: a text is not Unicode.", is_hostile=True) from None
    if len(text) > LONGEST_EVENT:
        raise EventError(field, f"An event has {LONGEST_EVENT:,} bytes at most.", is_hostile=True)
    return text


def _plain_keys(value: dict[str, Any], depth: int) -> int:
    """The number of keys, where there is nothing else to judge, as with nearly all events; else a number too large.

    A third of the cost of judging each value by its place.
    """
    keys = len(value)
    if depth > DEEPEST // 2:
        return _NOT_PLAIN
    for key, inner in value.items():
        if not key or len(key) > _LONGEST_KEY or "." in key or "\0" in key:
            return _NOT_PLAIN
        kind = type(inner)
        if kind is str:
            if "\0" in inner:
                return _NOT_PLAIN
        elif kind is int:
            if not -(2**63) <= inner < 2**63:
                return _NOT_PLAIN
        elif kind is dict:
            keys += _plain_keys(inner, depth + 1)
        elif kind is list:
            for one in inner:
                if type(one) is dict:
                    keys += _plain_keys(one, depth + 2)
                elif type(one) in (int, list) or (type(one) is str and "\0" in one):
                    return _NOT_PLAIN
    return keys


class _Check:
    """Depth, size, numbers, texts, and paths that mean two things: what ClickHouse's JSON type refuses and more."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._keys = 0

    def object(self, value: dict[str, Any], place: str, depth: int = 1) -> None:
        """Check an object that has paths of its own: the whole, or an element of a list."""
        paths: set[str] = set()
        self._members(value, place, "", depth, paths)
        for path in paths:
            parent = path
            while "." in parent:
                parent = parent.rpartition(".")[0]
                if parent in paths:
                    problem = f"{_shown(parent)} is a value, and {_shown(path)} lies below it."
                    raise EventError(place, problem, is_hostile=True)

    def _members(self, value: dict[str, Any], place: str, path: str, depth: int, paths: set[str]) -> None:
        self._deep(place, depth)
        self._keys += len(value)
        if self._keys > MOST_KEYS:
            raise EventError(self._field, f"It has more than {MOST_KEYS} keys.", is_hostile=True)
        for key, inner in value.items():
            where = f"{place}.{key if key.isidentifier() and len(key) <= _LONGEST_SHOWN else _shown(key)}"
            if not key or len(key) > _LONGEST_KEY or "\0" in key:
                raise EventError(
                    where, f"A key has 1 to {_LONGEST_KEY} characters, and no NUL.", is_hostile=True
                )
            # ClickHouse reads {"a.b": 1} and {"a": {"b": 1}} as one path
            below = f"{path}.{key}" if path else key
            if isinstance(inner, dict) and inner:
                self._members(inner, where, below, depth + 1, paths)
                continue
            if below in paths:
                raise EventError(where, f"The path {_shown(below)} is written in two ways.", is_hostile=True)
            paths.add(below)
            self._value(inner, where, depth + 1)

    def _value(self, value: Any, place: str, depth: int) -> None:
        if isinstance(value, list):
            self._deep(place, depth)
            for index, inner in enumerate(value):
                where = f"{place}[{index}]"
                if isinstance(inner, dict):
                    self.object(inner, where, depth + 1)
                else:
                    self._value(inner, where, depth + 1)
        elif isinstance(value, str):
            if "\0" in value:
                raise EventError(place, "It holds a NUL.", is_hostile=True)
        elif isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
            raise EventError(place, "It is beyond 64 bits; send it as text.", is_hostile=True)

    @staticmethod
    def _deep(place: str, depth: int) -> None:
        if depth > DEEPEST:
            raise EventError(place[:200], f"It is nested more than {DEEPEST} deep.", is_hostile=True)


def _text(
    value: Mapping[str, Any], name: str, pattern: re.Pattern[str], wanted: str, *, is_required: bool = False
) -> str:
    if name not in value or value[name] is None:
        if is_required:
            raise EventError(name, f"It is missing. It is {wanted}.")
        return ""
    given = value[name]
    if not isinstance(given, str):
        raise EventError(name, f"It is {wanted}, not {_kind(given)}.")
    if not pattern.fullmatch(given) or not is_unicode(given):
        raise EventError(
            name, f"{_shown(given)} is not {wanted}.", is_hostile="\0" in given or not is_unicode(given)
        )
    return given


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a pair (lone surrogates, which JSON can spell)."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _moment(value: Mapping[str, Any], now: datetime) -> datetime | None:
    given = value.get("occurred_at")
    if given is None:
        return None
    moment = parse_moment(given)
    if moment is None:
        shown = _shown(given) if isinstance(given, str) else _kind(given)
        raise EventError("occurred_at", f"{shown} is no time with its zone, such as 2026-06-27T09:00:00Z.")
    if moment > now + _AHEAD:
        raise EventError("occurred_at", f"{_shown(given)} lies more than a day ahead.")
    if moment < _EARLIEST:
        raise EventError("occurred_at", f"{_shown(given)} lies before 1970.")
    return moment


def parse_moment(text: Any) -> datetime | None:
    """A moment as RFC 3339 writes it, zone and all; None if it is none."""
    if not isinstance(text, str) or len(text) > 40 or not text.isascii() or not _TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _kind(value: Any) -> str:
    return {
        type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list",
        dict: "an object",
    }.get(type(value), "that")  # fmt: skip


def _shown(text: str) -> str:
    """A caller's word as it may stand in an answer and a log: short, printable, quoted."""
    short = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return json.dumps(short)
