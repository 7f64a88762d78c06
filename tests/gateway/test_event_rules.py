"""What an event may be: whatever is taken can be stored, and whatever is refused names its place."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.events import DEEPEST, Event, EventError, frame_of, parse_event, parse_json
from warehouse.client import Warehouse
from warehouse.loads import EVENT_COLUMNS, append_events

NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
GOOD: dict[str, Any] = {"type": "cart.updated", "email": "ann@example.com"}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def test_an_event_in_full() -> None:
    event = parse_event(
        {
            "event_id": "e-1", "type": "order.placed", "occurred_at": "2026-06-27T10:30:00.5+02:00", "source": "shop",
            "email": "ann@example.com", "external_id": "7", "anonymous_id": "v1", "properties": {"total": 9.5},
        },
        "website",
        NOW,
    )  # fmt: skip
    assert event == Event(
        "e-1", "order.placed", 1782549000500, 1782550800000, "shop", "ann@example.com", "7", "v1", "",
        '{"total":9.5}',
    )  # fmt: skip
    assert Event.decode(event.encode()) == event
    frame = frame_of([event])
    assert frame.schema == EVENT_COLUMNS
    assert frame["occurred_at"][0] == datetime(2026, 6, 27, 8, 30, 0, 500_000, UTC)


def test_ids_are_derived_from_what_is_said() -> None:
    said = {**GOOD, "occurred_at": "2026-06-27T08:00:00Z", "properties": {"a": 1}}
    one, again = parse_event(said, "web", NOW), parse_event(dict(reversed(said.items())), "web", NOW)
    assert one.event_id == again.event_id
    others = [
        parse_event({**said, "properties": {"a": 2}}, "web", NOW), parse_event(said, "app", NOW),
        parse_event({**said, "email": "bob@example.com"}, "web", NOW),
    ]  # fmt: skip
    assert len({one.event_id, *(other.event_id for other in others)}) == 4
    # without a time two are two
    assert parse_event(GOOD, "web", NOW).event_id != parse_event(GOOD, "web", NOW).event_id
    assert parse_event(GOOD, "web", NOW).occurred_at == 1782550800000


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"type": None}, "type"), ({"type": "clicked"}, "type"), ({"type": "Cart.Updated"}, "type"),
        ({"type": "a.b.c"}, "type"), ({"type": 7}, "type"), ({"type": "cart.updated\n"}, "type"),
        ({"email": "nobody"}, "email"), ({"email": "a b@example.com"}, "email"), ({"email": ["a@b.c"]}, "email"),
        ({"email": "a@b\0.c"}, "email"), ({"email": "\ud800@b.c"}, "email"),
        ({"event_id": ""}, "event_id"), ({"event_id": "x" * 201}, "event_id"), ({"event_id": "a\nb"}, "event_id"),
        ({"event_id": "gateway:unsubscribed:1"}, "event_id"), ({"event_id": "SendGrid:1"}, "event_id"),
        ({"occurred_at": "2026-06-27"}, "occurred_at"), ({"occurred_at": "2026-06-27T09:00:00"}, "occurred_at"),
        ({"occurred_at": 1782550800}, "occurred_at"), ({"occurred_at": "2026-06-29T09:00:00Z"}, "occurred_at"),
        ({"occurred_at": "0001-01-01T00:00:00Z"}, "occurred_at"),
        ({"occurred_at": "2026-13-01T00:00:00Z"}, "occurred_at"),
        ({"source": "Web Shop"}, "source"), ({"emial": "x"}, '"emial"'), ({"properties": []}, "properties"),
        ({"properties": {"a": {"b": [1, {"c": "x\0y"}]}}}, "properties.a.b[1].c"),
        ({"properties": {"a": 2**64}}, "properties.a"), ({"properties": {"": 1}}, 'properties.""'),
        ({"properties": {"a.b": 1, "a": {"b": 2}}}, "properties.a.b"),
        ({"properties": {"a": 1, "a.b": 2}}, "properties"), ({"properties": {"a": "\ud800"}}, "properties"),
        ({"properties": {f"k{n}": n for n in range(501)}}, "properties"),
        ({"properties": {"a": "x" * 40_000}}, "properties"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_place(change: dict[str, Any], field: str) -> None:
    with pytest.raises(EventError) as caught:
        parse_event({**GOOD, **change}, "web", NOW)
    assert caught.value.field == field
    assert len(str(caught.value)) < 600


def test_depth_and_nobody() -> None:
    parse_event({**GOOD, "properties": nested(DEEPEST)}, "web", NOW)
    for deep in (nested(DEEPEST + 1), {"a": [nested(DEEPEST)]}, {"a": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}):
        with pytest.raises(EventError, match="deep"):
            parse_event({**GOOD, "properties": deep}, "web", NOW)
    with pytest.raises(EventError, match="nobody"):
        parse_event({"type": "cart.updated"}, "web", NOW)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1, "a": 2}', b'{"a": {"b": 1, "b": 1}}', b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e400}',
        b'{"a": ' + b"9" * 5_000 + b"}", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b'"\xed\xa0\x80"', b"",
        b"{", b"{'a': 1}", b"[1,]", b"\xef\xbb\xbf{}",
    ],
)  # fmt: skip
def test_bodies_that_are_no_json_or_that_readers_would_read_in_two_ways(body: bytes) -> None:
    with pytest.raises(EventError) as caught:
        parse_json(body)
    assert len(str(caught.value)) < 300


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["2026-01-01", "1", "true", "'; drop table raw.events --", "{}", "NULL", "\\N", "\t\n"]),
)
_keys = st.one_of(
    st.text(min_size=1, max_size=8),
    st.sampled_from(["a", "a.b", "b", "items", "type", "a`b", "x'y", "[]", "é"]),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_keys, inner, max_size=4)),
    max_leaves=12,
)


def test_whatever_is_taken_says_the_same_and_can_be_stored(warehouse: Warehouse) -> None:
    taken: list[Event] = []

    @settings(max_examples=100)
    @given(st.dictionaries(_keys, _values, max_size=5))
    def judge(properties: dict[str, Any]) -> None:
        try:
            value = parse_json(json.dumps({**GOOD, "properties": properties}).encode())
            event = parse_event(value, "web", NOW)
        except EventError:
            return
        assert json.loads(event.properties) == properties
        taken.append(event._replace(event_id=f"e{len(taken)}"))

    judge()
    assert len(taken) > 20
    result = append_events(warehouse, frame_of(taken))
    assert (result.loaded, result.quarantined) == (len(taken), 0)
    assert append_events(warehouse, frame_of(taken[:20])).duplicates == 20
    assert warehouse.value("select count() from raw.quarantined_rows") == 0


def test_a_row_that_cannot_be_stored_does_not_hold_up_the_others(warehouse: Warehouse) -> None:
    events = [parse_event({**GOOD, "event_id": name}, "web", NOW) for name in "abc"]
    events[1] = events[1]._replace(properties='{"x": 1, "x": 2}')
    result = append_events(warehouse, frame_of(events))
    assert (result.read, result.loaded, result.quarantined) == (3, 2, 1)


def test_an_old_event_is_found_by_its_time_and_a_young_one_by_its_id(warehouse: Warehouse) -> None:
    old = parse_event({**GOOD, "event_id": "old", "occurred_at": "2020-01-01T00:00:00Z"}, "web", NOW)
    now = datetime.now(UTC)
    young = parse_event({**GOOD, "event_id": "young"}, "web", now)
    assert append_events(warehouse, frame_of([old, young])).loaded == 2
    later = young._replace(occurred_at=young.occurred_at + 5_000, type="page.viewed")
    assert append_events(warehouse, frame_of([old, later])).duplicates == 2
    # a month on either side of a year: partitions of their own
    ages = [old._replace(event_id=f"m{n}", occurred_at=n * 2_678_400_000) for n in range(150)]
    assert append_events(warehouse, frame_of(ages)).loaded == 150
