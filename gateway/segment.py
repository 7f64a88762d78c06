"""Messages as Segment's libraries send them, read as events of ours.

track, identify, page, screen, group and alias, one a request or many in a batch. The whole message is kept in
`esp_event`. Names of tracked events become `noun.verb`: 'Product Viewed' is product.viewed, 'Order Completed', which is
what we call it, order.placed with its items. A name without any letter of ours is unknown.tracked.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import orjson

from gateway.events import (
    EMAIL,
    IDENTIFIER,
    LONGEST_EVENT,
    TYPE,
    Event,
    EventError,
    is_unicode,
    milliseconds,
    parse_moment,
    properties_text,
    require_foreign,
)
from warehouse.yaml_specs import nearest

#: Paths below /v1/ -> the type of message that comes there; empty: each message says it. Browsers use the letters.
ROUTES: Mapping[str, str] = {
    "track": "track", "identify": "identify", "page": "page", "screen": "screen", "group": "group", "alias": "alias",
    "batch": "", "import": "", "t": "track", "i": "identify", "p": "page", "s": "screen", "g": "group", "a": "alias",
    "b": "",
}  # fmt: skip
_TYPES = ("track", "identify", "page", "screen", "group", "alias")
#: Where Segment's own names mean something that has another name here.
_NAMES: Mapping[str, str] = {
    "order completed": "order.placed",
    "order canceled": "order.cancelled",
    "signed up": "account.created",
    "account created": "account.created",
}
_OTHER_TYPES: Mapping[str, str] = {
    "identify": "contact.identified",
    "page": "page.viewed",
    "screen": "screen.viewed",
    "group": "group.joined",
    "alias": "contact.aliased",
}
#: Types of events that say which device is whose: they get the token that libraries put into `context.device`.
_TELL_DEVICE = frozenset(
    ("contact.identified", "push.registered", "push.unregistered", "application.installed", "application.opened",
     "application.uninstalled")
)  # fmt: skip
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_EMAIL, _IDENTIFIER, _OWN_TYPE = re.compile(EMAIL), re.compile(IDENTIFIER), re.compile(TYPE)
# a clock that is wrong by less is taken as right, so that a message sent again has the same time
_SKEW = timedelta(minutes=1)
_AHEAD = timedelta(days=1)


def parse_message(value: Any, kind: str, source: str, sent_at: Any, now: datetime) -> Event:
    """Read one message.

    Args:
        kind: its type by its address; empty if it must say it.
        sent_at: `sentAt` of the batch, if it has one.
        now: when it came in.

    Raises:
        EventError: names the field.
    """
    if not isinstance(value, dict):
        raise EventError("", "A message is an object.")
    kind = kind or _string(value, "type")
    if kind not in _TYPES:
        raise EventError("type", f"There is no such type of message. {nearest(kind[:40], _TYPES)}")
    context = _object(value, "context")
    traits = _object(value, "traits") or _object(context, "traits", "context.traits")
    given = _object(value, "properties")
    user_id, anonymous_id = _identifier(value, "userId"), _identifier(value, "anonymousId")
    if kind == "alias" and not anonymous_id:
        # whoever had the id before is this user: a visitor, as Segment's libraries call it after signing up
        anonymous_id = _identifier(value, "previousId")
    email = next(
        (
            candidate
            for candidate in (traits.get("email"), given.get("email"), user_id)
            if isinstance(candidate, str) and _EMAIL.fullmatch(candidate) and is_unicode(candidate)
        ),
        "",
    )
    if not (user_id or anonymous_id or email):
        raise EventError(
            "userId", "A message needs userId, anonymousId or an email trait, or it is nobody's."
        )
    type_, properties = _meaning(value, kind, given, traits, context)
    require_foreign(type_)
    if type_ in _TELL_DEVICE and "push_token" not in properties and (token := _device_token(context)):
        properties = {**properties, "push_token": token}
    text = properties_text(properties, "traits" if kind in ("identify", "group") else "properties")
    occurred = _occurred(value, sent_at, now)
    try:
        whole = orjson.dumps(value).decode()
    except (orjson.JSONEncodeError, TypeError):
        raise EventError(
            "", "The message cannot be stored: a text is not Unicode.", is_hostile=True
        ) from None
    if len(whole) > LONGEST_EVENT:
        raise EventError("", f"A message has {LONGEST_EVENT:,} bytes at most.", is_hostile=True)
    message_id = _identifier(value, "messageId")
    if not message_id:
        has_time = value.get("timestamp") or value.get("originalTimestamp")
        message_id = hashlib.sha256(whole.encode()).hexdigest()[:32] if has_time else uuid.uuid4().hex
    return Event(
        f"segment:{message_id}", type_, milliseconds(occurred), milliseconds(now), source, email, user_id,
        anonymous_id, "", text, whole,
    )  # fmt: skip


def type_of(name: str) -> str:
    """`noun.verb` of the name of a tracked event: 'Product List Viewed' is product_list.viewed."""
    if _OWN_TYPE.fullmatch(name):
        return name
    words = [word.lower() for word in _WORD.findall(name)][:12]
    if (known := _NAMES.get(" ".join(words))) is not None:
        return known
    if not words:
        return "unknown.tracked"
    noun, verb = ("_".join(words[:-1]), words[-1]) if len(words) > 1 else (words[0], "tracked")
    noun, verb = (part if part[0].isalpha() else f"n{part}" for part in (noun, verb))
    return f"{noun[:63].rstrip('_')}.{verb[:63]}"


def _meaning(
    value: Mapping[str, Any],
    kind: str,
    given: dict[str, Any],
    traits: dict[str, Any],
    context: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    if kind == "track":
        name = _string(value, "event")
        if not name:
            raise EventError("event", "It is missing. It is the name of what was done.")
        type_ = type_of(name)
        if type_ == "unknown.tracked":
            return type_, {**given, "event": name}
        return type_, _with_items(given) if type_.startswith("order.") else given
    if kind == "identify":
        return _OTHER_TYPES[kind], traits
    if kind == "group":
        return _OTHER_TYPES[kind], {**traits, "group_id": _identifier(value, "groupId")}
    if kind == "alias":
        return _OTHER_TYPES[kind], {"previous_id": _identifier(value, "previousId")}
    page = _object(context, "page", "context.page")
    more = {
        name: found
        for name in ("name", "category")
        if isinstance(found := value.get(name), str) and name not in given
    }
    seen = {name: page[name] for name in ("url", "path", "referrer", "title") if name in page}
    return _OTHER_TYPES[kind], {**seen, **given, **more}


def _device_token(context: Mapping[str, Any]) -> str:
    device = context.get("device")
    token = device.get("token") if isinstance(device, dict) else None
    return token if isinstance(token, str) and len(token) <= 4_096 else ""


def _with_items(given: dict[str, Any]) -> dict[str, Any]:
    """An order's properties with `items` as the models of orders read them."""
    products = given.get("products")
    if "items" in given or not isinstance(products, list):
        return given
    items = [
        {
            "line_number": number,
            "product_id": str(product.get("product_id") or product.get("sku") or ""),
            "name": str(product.get("name") or ""),
            "quantity": product.get("quantity", 1),
            "unit_price": product.get("price", 0),
        }
        for number, product in enumerate(products, 1)
        if isinstance(product, dict)
    ]
    return {**given, "items": items}


def _occurred(value: Mapping[str, Any], sent_at: Any, now: datetime) -> datetime:
    """When it happened: by the device's clock, corrected by what that said when it sent the message."""
    said = parse_moment(value.get("timestamp")) or parse_moment(value.get("originalTimestamp"))
    if said is None:
        return now
    sent = parse_moment(value.get("sentAt")) or parse_moment(sent_at)
    if sent is not None and abs(now - sent) > _SKEW:
        said += now - sent
    return now if said > now + _AHEAD or said.year < 1971 else said


def _string(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if found is None:
        return ""
    if not isinstance(found, str) or len(found) > 1_000:
        raise EventError(name, "It is a text of up to 1,000 characters.")
    return found


def _identifier(value: Mapping[str, Any], name: str) -> str:
    """An id: libraries send numbers, too."""
    found = value.get(name)
    if found is None or found == "":
        return ""
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) < 2**64:
        return str(found)
    if not isinstance(found, str) or not _IDENTIFIER.fullmatch(found) or not is_unicode(found):
        raise EventError(name, "It is 1 to 200 printable characters.")
    return found


def _object(value: Mapping[str, Any], name: str, place: str = "") -> dict[str, Any]:
    found = value.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise EventError(place or name, "It is an object.")
    return found
