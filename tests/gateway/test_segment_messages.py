"""Segment's messages become events of ours."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import TYPE, EventError
from gateway.segment import parse_message, type_of

NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
TRACK: dict[str, Any] = {
    "type": "track", "messageId": "m-1", "userId": "7", "anonymousId": "v-1", "event": "Product Viewed",
    "timestamp": "2026-06-27T08:59:00.000Z", "sentAt": "2026-06-27T08:59:59Z", "properties": {"sku": "a", "price": 5},
    "context": {"library": {"name": "analytics.js"}, "traits": {"email": "ann@example.com"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("Product Viewed", "product.viewed"), ("Product List Viewed", "product_list.viewed"),
        ("Order Completed", "order.placed"), ("order_completed", "order.placed"), ("OrderCompleted", "order.placed"),
        ("Signed Up", "account.created"), ("cart.updated", "cart.updated"), ("Signup", "signup.tracked"),
        ("購入", "unknown.tracked"), ("--", "unknown.tracked"), ("3D Model Opened", "n3_d_model.opened"),
        ("Checkout Step 2", "checkout_step.n2"),
    ],
)  # fmt: skip
def test_names(name: str, type_: str) -> None:
    assert type_of(name) == type_


@given(st.text(max_size=300))
def test_every_name_has_a_type(name: str) -> None:
    assert re.fullmatch(TYPE, type_of(name))


def test_track() -> None:
    event = parse_message(TRACK, "track", "web", None, NOW)
    assert (event.event_id, event.type, event.source) == ("segment:m-1", "product.viewed", "web")
    assert (event.external_id, event.anonymous_id, event.email) == ("7", "v-1", "ann@example.com")
    assert json.loads(event.properties) == {"sku": "a", "price": 5}
    assert json.loads(event.esp_event) == TRACK
    assert event.occurred_at == 1782550740000


def test_a_clock_that_is_wrong_is_put_right() -> None:
    wrong = {**TRACK, "timestamp": "2020-01-01T00:00:00Z", "sentAt": "2020-01-01T00:01:00Z"}
    assert parse_message(wrong, "track", "web", None, NOW).occurred_at == 1782550740000
    ahead = {**TRACK, "timestamp": "2031-01-01T00:00:00Z", "sentAt": None}
    assert parse_message(ahead, "track", "web", None, NOW).occurred_at == 1782550800000
    by_batch = {key: value for key, value in wrong.items() if key != "sentAt"}
    assert parse_message(by_batch, "", "web", "2020-01-01T00:01:00Z", NOW).occurred_at == 1782550740000


def test_an_order_has_items_as_the_models_read_them() -> None:
    products = [{"sku": "A1", "name": "Boots", "price": 9.5, "quantity": 2}, {"product_id": 5}, "odd"]
    message = {**TRACK, "event": "Order Completed", "properties": {"order_id": "o1", "products": products}}
    properties = json.loads(parse_message(message, "track", "web", None, NOW).properties)
    assert properties["items"] == [
        {"line_number": 1, "product_id": "A1", "name": "Boots", "quantity": 2, "unit_price": 9.5},
        {"line_number": 2, "product_id": "5", "name": "", "quantity": 1, "unit_price": 0},
    ]


@pytest.mark.parametrize(
    ("message", "type_", "properties"),
    [
        ({"type": "identify", "userId": "bo@example.com", "traits": {"plan": "x"}}, "contact.identified",
         {"plan": "x"}),
        ({"type": "identify", "userId": "7", "traits": {"phone": "+44 1"}, "context": {"device": {"token": "t"}}},
         "contact.identified", {"phone": "+44 1", "push_token": "t"}),
        ({"type": "track", "userId": "7", "event": "Application Opened", "context": {"device": {"token": "t"}}},
         "application.opened", {"push_token": "t"}),
        ({"type": "track", "userId": "7", "event": "Application Uninstalled", "properties": {"push_token": "s"},
          "context": {"device": {"token": "t"}}}, "application.uninstalled", {"push_token": "s"}),
        ({"type": "track", "userId": "7", "event": "Cart Viewed", "context": {"device": {"token": "t"}}},
         "cart.viewed", {}),
        ({"type": "page", "userId": 7, "name": "Home", "context": {"page": {"url": "https://a.b/"}}}, "page.viewed",
         {"name": "Home", "url": "https://a.b/"}),
        ({"type": "screen", "anonymousId": "v", "name": "Home"}, "screen.viewed", {"name": "Home"}),
        ({"type": "group", "userId": "7", "groupId": "g", "traits": {"n": 1}}, "group.joined",
         {"n": 1, "group_id": "g"}),
        ({"type": "alias", "userId": "7", "previousId": "v"}, "contact.aliased", {"previous_id": "v"}),
    ],
)  # fmt: skip
def test_other_types(message: dict[str, Any], type_: str, properties: dict[str, Any]) -> None:
    event = parse_message(message, "", "web", None, NOW)
    assert (event.type, json.loads(event.properties)) == (type_, properties)
    assert event.email == ("bo@example.com" if message.get("userId") == "bo@example.com" else "")
    assert event.external_id in ("bo@example.com", "7", "")
    assert event.anonymous_id == (message.get("anonymousId") or message.get("previousId") or "")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"type": "trak"}, "type"), ({"event": None}, "event"), ({"event": 5}, "event"),
        ({"userId": "x" * 300}, "userId"), ({"userId": {}}, "userId"), ({"properties": [1]}, "properties"),
        ({"context": {"traits": 1}}, "context.traits"), ({"messageId": "a\0"}, "messageId"),
        ({"properties": {"a": {"b": "\0"}}}, "properties.a.b"), ({"big": "x" * 40_000}, ""), ({"odd": "\ud800"}, ""),
    ],
)  # fmt: skip
def test_what_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(EventError) as caught:
        parse_message({**TRACK, **change}, "", "web", None, NOW)
    assert caught.value.field == field


def test_nobody() -> None:
    message = {"type": "track", "event": "Product Viewed"}
    with pytest.raises(EventError, match="nobody"):
        parse_message(message, "", "web", None, NOW)
