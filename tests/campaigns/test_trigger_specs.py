"""Triggers as files: what is right, and the place and remedy of each mistake."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from campaigns.predicates import parse_predicate
from campaigns.triggers import TriggerQuietHours, TriggerSpec, check_references, load_triggers
from warehouse.errors import InputError

SEND = "send: {template: reminder, category: transactional, subject: Hi}\n"
COLUMNS = {
    "engagement_score": "Float64", "orders_count": "UInt32", "segments": "Array(String)",
    "last_order_at": "Nullable(DateTime64(3, 'UTC'))", "country": "Nullable(String)", "is_deleted": "Bool",
}  # fmt: skip


def load(folder: Path, text: str) -> dict[str, TriggerSpec]:
    (folder / "triggers").mkdir(exist_ok=True)
    (folder / "triggers" / "cart.yaml").write_text(f"trigger: cart\n{text}")
    return load_triggers(folder)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        specs = load(folder, text)
        check_references(specs, ["reminder"], ["engaged"], COLUMNS, ["carts"], provider="smtp")
    return f"{caught.value.message} {caught.value.fix}"


def test_defaults_and_version(tmp_path: Path) -> None:
    spec = load(tmp_path, "event: cart.updated\n" + SEND)["cart"]
    assert (spec.event, spec.cooldown, spec.wait, spec.source, spec.action) == (
        ["cart.updated"], timedelta(hours=24), None, "event", "send",
    )  # fmt: skip
    version = spec.version
    assert (
        load(tmp_path, "event: [cart.updated]\ncooldown: 24h\ndescription: x\n" + SEND)["cart"].version
        == version
    )
    assert load(tmp_path, "event: cart.updated\ncooldown: none\n" + SEND)["cart"].cooldown == timedelta(0)
    assert load(tmp_path, "event: cart.updated\ncooldown: none\n" + SEND)["cart"].version != version
    spec = load(tmp_path, "event: cart.updated\nunless: [order.placed, orders_count > 2]\n" + SEND)["cart"]
    assert (spec.unless_events, spec.unless_conditions) == (["order.placed"], ["orders_count > 2"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (SEND, "write one of event, date, becomes, entered, left. There is none"),
        ("event: a.b\nentered: engaged\n" + SEND, "There is both event and entered"),
        ("event: cart.updated\n", "write one of send, enter_journey"),
        ("event: clickd\n" + SEND, "Did you mean clicked?"),
        ("event: a.b\nwhen: engagment_score > 3\n" + SEND, "Did you mean engagement_score?"),
        ("event: a.b\nwhen: event_cout('a.b', '1h') > 1\n" + SEND, "Did you mean event_count?"),
        ("event: a.b\nwhen: event_count('a b', '1h') > 1\n" + SEND, "is no event type"),
        ("event: a.b\nwhen: event_count('a.b', '2y') > 1\n" + SEND, "is no duration"),
        ("event: a.b\nwhen: message.nam = 'x'\n" + SEND, "Did you mean name?"),
        ("event: a.b\nwhen: has(segments, 'engagd')\n" + SEND, "Did you mean engaged?"),
        ("event: a.b\nunless: order-placed\n" + SEND, "Allowed: "),
        ("entered: engagd\n" + SEND, "Did you mean engaged?"),
        ("event: a.b\nenter_journey: cart\n", "Did you mean carts?"),
        (
            "event: a.b\nsend: {template: remind, category: transactional, subject: Hi}\n",
            "Did you mean reminder?",
        ),
        (
            "event: a.b\nsend: {template: reminder, category: transactional, subject: Hi, provider: smpt}\n",
            "smtp",
        ),
        ("date: {column: last_ordered_at, after: 30d}\n" + SEND, "Did you mean last_order_at?"),
        ("becomes: engagement_score < 5 and event.x = 1\n" + SEND, "event. has no place"),
        ("entered: engaged\nwhen: event.x = 1\n" + SEND, "event.x has no value"),
        ("event: a.b\ncap: {messages: 1, within: 7d}\ntag: {add: vip}\n", "cap counts messages"),
        ("event: a.b\nwhen: (select 1)\n" + SEND, "no sub-queries"),
    ],
)
def test_mistakes_name_their_place_and_remedy(tmp_path: Path, text: str, wanted: str) -> None:
    message = refused(tmp_path, text)
    assert (wanted in message and "cart.yaml:" in message) or "smtp" in message


def test_quiet_hours_end_on_the_next_morning_there() -> None:
    hours = TriggerQuietHours(after="21:00", before="08:00", timezone="Europe/London")
    assert hours.quiet_until(datetime(2026, 6, 1, 12, tzinfo=UTC), None) is None
    assert hours.quiet_until(datetime(2026, 6, 1, 22, tzinfo=UTC), "nowhere") == datetime(
        2026, 6, 2, 7, tzinfo=UTC
    )
    assert hours.quiet_until(datetime(2026, 6, 2, 4, tzinfo=UTC), None) == datetime(2026, 6, 2, 7, tzinfo=UTC)
    assert hours.quiet_until(datetime(2026, 6, 1, 12, tzinfo=UTC), "Asia/Tokyo") == datetime(
        2026, 6, 1, 23, tzinfo=UTC
    )


def test_properties_have_the_type_that_they_are_compared_with() -> None:
    def sql(text: str) -> str:
        return parse_predicate(text, columns=COLUMNS, qualifiers=("event", "message")).sql

    assert "Nullable(Float64)" in sql("event.value > 3") and "Nullable(Float64)" in sql(
        "3 < event.cart.value"
    )
    assert "'cart', 'value'" in sql("3 < event.cart.value")
    assert "Nullable(String)" in sql("event.value = '3'") and "Nullable(String)" in sql(
        "event.country = country"
    )
    assert "Nullable(Float64)" in sql("event.value > engagement_score") and "Nullable(Bool)" in sql(
        "event.is_gift"
    )
    assert "Nullable(Bool)" in sql("event.is_gift and orders_count > 1") and "Nullable(Bool)" in sql(
        "not event.a"
    )
    assert "parseDateTime64BestEffortOrNull" in sql("event.at > now() - interval 1 day")
    assert "parseDateTime64BestEffortOrNull" in sql("event.at between last_order_at and now()")
    assert "Array(Nullable(String))" in sql("has(event.tags, 'x')")
    assert "Array(Nullable(Float64))" in sql("has(event.numbers, 3)")
    assert "Nullable(Float64)" in sql("event.price * event.quantity >= 100") and "JSONLength" in sql(
        "length(event.a) > 1"
    )
    assert "`event_type`" in sql("event.type = 'a.b'") and "`message_name`" in sql("message.name = 'x'")
    predicate = parse_predicate("event_count('a.b', '1h') > 2", qualifiers=("event",))
    assert [call.column for call in predicate.calls] == ["event_count|a.b|3600"]
    with pytest.raises(InputError, match="may not be used"):
        parse_predicate("event_count('a.b', '1h') > 2")
