"""Real time and replay decide alike; the commands tell what was decided."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from trigger_world import (
    SEND,
    START,
    build,
    contact_of,
    drop,
    events,
    feed,
    order,
    people,
    sender_settings,
    write_content,
)
from typer.testing import CliRunner

from campaigns.replaying import replay
from gateway.triggers import TriggerHandler
from mailhouse.cli import app
from senders.ledger import Ledger
from warehouse.client import Warehouse
from warehouse.errors import InputError, MailhouseError
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

RULES = {
    "cart": "event: cart.updated\nwhen: event.value > 3 and orders_count < 3\nwait: 5m\nunless: order.placed\n"
    "cooldown: 20m\n",
    "looked": "event: product.viewed\nwhen: event_count('product.viewed', '10m') >= 2 and"
    " (last_event_at('order.placed', '1h') is null or revenue < 25)\ncooldown: 15m\n",
    "bought": "event: [order.placed, order.cancelled]\nwhen: event.type = 'order.cancelled' or average_order_value > 6"
    "\ncooldown: none\nwait: 1m\nunless: orders_count = 0\n",
}
"""Triggers whose decisions hang on what happened before."""


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Events of two people, in order, a minute apart at least."""
    made: list[dict[str, Any]] = []
    at = 0
    for number in range(draw(st.integers(3, 14))):
        at += draw(st.integers(1, 9)) * 60
        kind = draw(st.sampled_from(["cart.updated", "product.viewed", "order.placed", "order.cancelled"]))
        person = draw(st.integers(1, 2))
        row: dict[str, Any] = {"id": f"e{number}", "type": kind, "person": person, "at": at}
        if kind == "cart.updated":
            row["value"] = draw(st.one_of(st.integers(0, 8), st.sampled_from(["5", "x", None])))
        elif kind == "order.placed":
            row = order(
                f"e{number}", person, at, draw(st.sampled_from([2.5, 7.25, 0.0])), draw(st.integers(1, 3))
            )
            row["order_id"] = f"o{draw(st.integers(1, 4))}-{person}"
        elif kind == "order.cancelled":
            row["order_id"] = f"o{draw(st.integers(1, 4))}-{person}"
        made.append(row)
    return made


@pytest.mark.slow
@hypothesis_settings(max_examples=12)
@example(
    # the order comes in the instant in which the cancellation's firing is due
    history=[
        {"id": "e0", "type": "order.cancelled", "person": 2, "at": 60, "order_id": "o3-2"},
        order("e1", 2, 120, 7.25, order_id="o1-2"),
    ],
    cut=2,
)
@given(history=histories(), cut=st.integers(1, 4))
def test_replay_decides_as_real_time_did(
    warehouse_server: MailhouseSettings,
    tmp_path_factory: pytest.TempPathFactory,
    history: list[dict[str, Any]],
    cut: int,
) -> None:
    home = tmp_path_factory.mktemp("replay")
    write_content(home / "content", **{name: rule + "tag: {add: seen}\n" for name, rule in RULES.items()})
    settings = sender_settings(warehouse_server, home)
    with Warehouse.connect(settings, comment="test") as warehouse, Ledger.open(settings) as ledger:
        warehouse.execute("drop database if exists raw")
        migrate(warehouse)
        build(warehouse)
        people(warehouse, 2)
        moment = START
        with TriggerHandler(settings, ledger, warehouse, is_inline=True, clock=lambda: moment) as handler:
            # as the gateway does: batches as they come, and what is due before the next one
            for place in range(0, len(history), cut):
                part = history[place : place + cut]
                for due in range(int((moment - START).total_seconds()) // 60, part[-1]["at"] // 60 + 1):
                    moment = max(moment, START + timedelta(seconds=due * 60))
                    arrived = [row for row in part if row["at"] == due * 60]
                    handler.tick(moment)
                    if arrived:
                        feed(handler, events(*arrived), moment)
            # what still waits is done when it is due, not later
            for _ in range(6):
                moment += timedelta(minutes=1)
                handler.tick(moment)
            for name, spec in handler.decider.specs.items():
                said = {
                    (one.event_id, one.contact_id): one.outcome
                    for one in replay(handler.decider, spec, START, moment)
                }
                told: dict[tuple[str, int], str] = {}
                for person in (1, 2):
                    contact = contact_of(warehouse, person)
                    for row in handler.log.read(trigger=name, contact_id=contact):
                        if row["outcome"] != "due":
                            told[row["event_id"], contact] = row["outcome"]
                assert said == told, name
        drop(warehouse)


@pytest.fixture
def world(
    warehouse: Warehouse, warehouse_server: MailhouseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Warehouse, Path]]:
    build(warehouse)
    people(warehouse, 1, columns="30 as engagement_score")
    write_content(
        tmp_path / "content",
        cart="event: cart.updated\nwhen: engagement_score >= 20 and event.value > 50\n" + SEND,
    )
    for name, value in {
        "HOME": tmp_path, "CONTENT_DIR": tmp_path / "content", "WAREHOUSE_URL": f"http://127.0.0.1:{warehouse_server.warehouse_port}",
        "FROM_EMAIL": "shop@example.com", "COMPANY_NAME": "Shop", "POSTAL_ADDRESS": "1 High Street",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"MAILHOUSE_{name}", str(value))
    yield warehouse, tmp_path
    drop(warehouse)


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.output.split())


def test_commands_check_test_replay_and_say_why(
    world: tuple[Warehouse, Path], warehouse_server: MailhouseSettings
) -> None:
    warehouse, home = world
    file = str(home / "content" / "triggers" / "cart.yaml")
    assert "cart is right: event -> send" in said("trigger", "check", file)
    event = json.dumps({"email": "p1@example.com", "properties": {"value": 60}})
    assert "due: it is to fire" in said("trigger", "test", file, "--event", event)
    low = said("trigger", "test", file, "--event", json.dumps({"email": "p1@example.com"}))
    assert "its condition was not met" in low and "event.value = null" in low
    settings = sender_settings(warehouse_server, home)
    contact = contact_of(warehouse, 1)
    with (
        Ledger.open(settings) as ledger,
        TriggerHandler(settings, ledger, warehouse, is_inline=True, clock=lambda: START) as handler,
    ):
        frame = events({"id": "a", "person": 1, "value": 60}, {"id": "b", "person": 1, "at": 1, "value": 1})
        feed(handler, frame, START)
        [firing] = handler.firings.of_contact("cart", contact)
    why = said("why", firing.firing_id)
    assert "It was sent" in why and "trigger cart" in why and 'event.value = "60"' in why
    why = said("why", "--contact", str(contact), "--trigger", "cart", "--event", "b")
    assert "condition" in why and "engagement_score = 30.0" in why and 'event.value = "1"' in why
    with pytest.raises(InputError, match="has decided nothing"):
        said("why", "--contact", "5", "--trigger", "cart")
    shown = said("replay", "--trigger", "cart", "--since", "2026-06-01", "--until", "2026-06-02")
    assert "2 events of cart: 1 condition, 1 fired" in shown and "Nothing was done" in shown
    assert "nothing that had not been done before" in said(
        "replay", "--trigger", "cart", "--since", "2026-06-01", "--until", "2026-06-02", "--send"
    )
    assert "cart is paused" in said("trigger", "pause", "cart")
    assert "cart (paused): event -> send" in said("trigger", "list")
    (home / "content" / "triggers" / "cart.yaml").write_text(
        "trigger: cart\nevent: cart.updated\nwhen: |\n  engagement_score >= 20\n  and lower(orders_count) = 'x'\n"
        + SEND
    )
    with pytest.raises(MailhouseError, match=r"cart\.yaml:\d+: when does not fit"):
        said("trigger", "check", file)
