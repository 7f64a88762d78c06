"""Triggers on a real engine, ledger and maildir: what fires, what does not and why, once each."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from mailbox import Maildir
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import polars as pl
import pytest
from pydantic import SecretStr
from trigger_world import (
    MARKETING,
    SEND,
    START,
    TEMPLATE,
    build,
    contact_of,
    drop,
    events,
    feed,
    keep,
    order,
    people,
    received,
    sender_settings,
    write_content,
)

from campaigns.deciding import clock_events, note_states
from gateway.triggers import TriggerHandler, retry_wait
from privacy.person import Person
from privacy.restricting import change
from senders.ledger import Ledger
from senders.providers.webhook import WebhookProvider
from warehouse.client import Warehouse
from warehouse.loads import load_consents, load_events
from warehouse.settings import MailhouseSettings


class Shop:
    """One gateway's triggers, judged inline at a time of the test's choosing."""

    def __init__(self, warehouse: Warehouse, base: MailhouseSettings, home: Path) -> None:
        self.warehouse, self.base, self.home = warehouse, base, home
        self.now = START
        self.moves: list[pl.DataFrame] = []
        self.open: list[tuple[TriggerHandler, Ledger]] = []

    def start(self, *, settings: dict[str, Any] | None = None, **triggers: str) -> TriggerHandler:
        write_content(self.home / "content", **triggers)
        self.settings = sender_settings(self.base, self.home, **(settings or {}))
        ledger = Ledger.open(self.settings)
        handler = TriggerHandler(
            self.settings,
            ledger,
            self.warehouse,
            is_inline=True,
            request_moves=self._move,
            clock=lambda: self.now,
        )
        self.open.append((handler, ledger))
        return handler

    def _move(self, warehouse: Warehouse, frame: pl.DataFrame) -> int:
        del warehouse
        self.moves.append(frame)
        return frame.height

    def at(self, seconds: float) -> datetime:
        self.now = START + timedelta(seconds=seconds)
        return self.now

    def outcomes(self, trigger: str, person: int = 1) -> list[str]:
        found = self.open[-1][0].log.read(trigger=trigger, contact_id=contact_of(self.warehouse, person))
        return [row["outcome"] for row in found]


@pytest.fixture
def shop(warehouse: Warehouse, warehouse_server: MailhouseSettings, tmp_path: Path) -> Iterator[Shop]:
    build(warehouse)
    made = Shop(warehouse, warehouse_server, tmp_path)
    yield made
    for handler, ledger in made.open:
        handler.close()
        ledger.close()
    drop(warehouse)


def test_condition_wait_unless_and_cooldown(shop: Shop) -> None:
    people(shop.warehouse, 3, columns="30 as engagement_score; ['active_buyers'] as segments")
    handler = shop.start(
        cart="event: cart.updated\nwhen: engagement_score >= 20 and has(segments, 'active_buyers') and"
        " event.cart.value > 50\nwait: 1h\nunless: order.placed\n" + SEND
    )
    feed(
        handler,
        events(
            {"id": "a", "person": 1, "cart": {"value": 60}},
            {"id": "b", "person": 2, "cart": {"value": "70"}},
            {"id": "c", "person": 3, "cart": {"value": 40}},
            {"id": "d", "person": 3, "cart": "'; drop table raw.events; --"},
            {"id": "e", "anonymous_id": "v", "cart": {"value": 99}},
            {"id": "f", "person": 1, "at": 60, "cart": {"value": 61}},
            {"id": "g", "person": 2, "cart": {"value": 80}, "at": -90_000, "received": 0},
        ),
        shop.at(61),
    )
    assert not received(shop.settings)
    feed(handler, events(order("o1", 2, 1800, 10.0)), shop.at(1800))
    handler.tick(shop.at(3599))
    assert not received(shop.settings)
    handler.tick(shop.at(3661))
    assert received(shop.settings) == {"p1@example.com": 1}
    assert shop.outcomes("cart", 1) == ["due", "due", "fired", "cooldown"]
    assert shop.outcomes("cart", 2) == ["due", "late", "unless"]
    assert shop.outcomes("cart", 3) == ["condition", "condition"]
    [said] = handler.log.read(trigger="cart", contact_id=contact_of(shop.warehouse, 3), event_id="c")
    assert said["details"]["values"]["event.cart.value"] == "40"
    assert said["details"]["values"]["engagement_score"] == 30.0
    # the same batch once more, as after a crash, and once more when all is due
    feed(handler, events({"id": "a", "person": 1, "cart": {"value": 60}}), shop.at(4000))
    assert received(shop.settings) == {"p1@example.com": 1}
    # a day later it may fire again
    feed(handler, events({"id": "h", "person": 1, "at": 90_100, "cart": {"value": 60}}), shop.at(90_100))
    handler.tick(shop.at(94_000))
    assert received(shop.settings) == {"p1@example.com": 2}


def test_a_message_names_the_event_that_fired_it(shop: Shop) -> None:
    people(shop.warehouse, 1)
    handler = shop.start(cart="event: cart.updated\ncooldown: none\n" + SEND.replace("reminder", "cart"))
    body = "{% for item in event.items %}{{ item.name }} at {{ item.price | money }}, {% endfor %}"
    cart = TEMPLATE.replace(
        "<mj-body>", f"<mj-body><mj-section><mj-column><mj-text>{body}</mj-text></mj-column></mj-section>"
    )
    (shop.settings.content_dir / "templates" / "cart.mjml").write_text(cart)
    items = [{"name": "Lamp & <i>shade</i>", "price": 12.5}, {"name": "Bed", "price": 60}]
    feed(handler, events({"id": "a", "person": 1, "items": items}), shop.at(1))
    [message] = Maildir(shop.settings.maildir, create=False)
    html = message.get_payload()[1].get_payload(decode=True).decode()
    assert "Lamp &amp; &lt;i&gt;shade&lt;/i&gt; at £12.50, Bed at £60.00, " in html


def test_what_happened_a_second_ago_counts(shop: Shop) -> None:
    people(shop.warehouse, 1, columns="2 as orders_count; toDecimal64(100, 2) as revenue")
    shop.warehouse.execute(
        "insert into intermediate.int_orders__combined values ('web', 'old', true, 40, 1, '2026-05-01 00:00:00', null)"
    )
    handler = shop.start(
        third="event: order.placed\nwhen: orders_count = 3 and revenue = 112.5 and days_since_last_order = 0\n"
        "cooldown: none\n" + SEND,
        cancelled="event: order.cancelled\nwhen: orders_count = 2 and revenue = 72.50\ncooldown: none\n"
        + SEND,
        looked="event: product.viewed\nwhen: event_count('product.viewed', '1h') >= 3 and"
        " last_event_at('order.placed', '7d') is not null\ncooldown: none\n" + SEND,
    )
    feed(handler, events(order("o1", 1, 1, 6.25, 2)), shop.at(1))
    assert shop.outcomes("third") == ["due", "fired"]
    feed(
        handler,
        events({"id": "x", "type": "order.cancelled", "person": 1, "at": 2, "order_id": "old"}),
        shop.at(2),
    )
    assert shop.outcomes("cancelled") == ["due", "fired"]
    # an earlier view came another way than through the gateway, and one is too old
    contact = contact_of(shop.warehouse, 1)
    for name, at in (("v0", -60), ("vv", -3700)):
        shop.warehouse.execute(
            "insert into intermediate.int_events__recorded"
            " (event_id, identity_id, type, occurred_at, loaded_at, loaded_on)"
            " select {name:String}, identity_id, 'product.viewed', {at:DateTime64(3, 'UTC')}, now64(3), today()"
            f" from intermediate.int_contacts__identified where contact_id = {contact}",
            {"name": name, "at": (START + timedelta(seconds=at)).strftime("%Y-%m-%d %H:%M:%S.000")},
        )
    feed(
        handler,
        events(*({"id": f"v{n}", "type": "product.viewed", "person": 1, "at": 2 + n} for n in (1, 2, 3))),
        shop.at(6),
    )
    found = handler.log.read(trigger="looked", contact_id=contact)
    assert {row["event_id"]: row["outcome"] for row in found if row["outcome"] != "due"} == {
        "v1": "condition", "v2": "fired", "v3": "fired",
    }  # fmt: skip


def test_consent_suppression_quiet_hours_and_deletion(shop: Shop) -> None:
    people(shop.warehouse, 2, columns="'Europe/London' as timezone")
    people(shop.warehouse, 1, first=3, columns="false as has_marketing_consent")
    people(shop.warehouse, 1, first=4, columns="true as is_suppressed")
    people(shop.warehouse, 1, first=5, columns="true as is_deleted")
    people(shop.warehouse, 1, first=6)
    handler = shop.start(
        news="event: cart.updated\n" + MARKETING,
        receipt="event: cart.updated\n" + SEND,
        night="event: product.viewed\nquiet_hours: {after: '21:00', before: '08:00'}\n" + SEND,
        never="event: product.viewed\nquiet_hours: {after: '21:00', before: '08:00', then: skip}\n" + SEND,
    )
    shop.warehouse.execute("insert into marts.suppressions values ('p4@example.com', true, 's')")
    # who no longer wants text messages may want mail
    text = {"id": "t", "type": "unsubscribed", "person": 6, "at": 0, "phone": "+447700900123"}
    feed(handler, events({"id": "u", "type": "unsubscribed", "person": 2, "at": 0}, text), shop.at(1))
    feed(handler, events(*({"id": f"c{n}", "person": n, "at": 2} for n in range(1, 7))), shop.at(3))
    assert [shop.outcomes("news", n)[-1] for n in range(1, 7)] == [
        "fired", "suppressed", "no_consent", "suppressed", "deleted", "fired",
    ]  # fmt: skip
    # an operational message goes to whoever unsubscribed, never to a dead mailbox
    assert [shop.outcomes("receipt", n)[-1] for n in range(1, 5)] == ["fired", "fired", "fired", "suppressed"]
    late = 10 * 3600
    feed(handler, events({"id": "v", "type": "product.viewed", "person": 1, "at": late}), shop.at(late))
    assert shop.outcomes("night")[-1] == "quiet_hours" and shop.outcomes("never")[-1] == "quiet_hours"
    handler.tick(shop.at(18 * 3600))
    assert shop.outcomes("night")[-1] == "quiet_hours"
    handler.tick(shop.at(19 * 3600 + 1))  # eight in London
    assert shop.outcomes("night")[-1] == "fired" and shop.outcomes("never")[-1] == "quiet_hours"


def test_text_messages_are_judged_as_campaigns_judge_them(shop: Shop) -> None:
    texts: list[str] = []

    class Twilio(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = dict(parse_qsl(self.rfile.read(int(self.headers["content-length"])).decode()))
            texts.append(form["To"])
            body = json.dumps({"sid": f"SM{len(texts)}", "status": "queued", "error_code": None}).encode()
            self.send_response(201)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    for statement in (
        "alter table marts.contact_profiles add column phone Nullable(String)",
        "drop table marts.suppressions",
        "create table marts.suppressions (email String, phone String, is_bounced Bool, is_global Bool, event_id String,"
        " suppressed_at DateTime64(3, 'UTC')) engine = MergeTree order by event_id",
        "create table marts.consents (contact_id Int64, channel String, purpose String, consent_id String,"
        " is_granted Bool, occurred_at DateTime64(3, 'UTC')) engine = MergeTree order by contact_id",
    ):
        shop.warehouse.execute(statement)
    people(shop.warehouse, 5, columns="'+44770090000' || toString(number) as phone")
    people(shop.warehouse, 1, first=6)
    shop.warehouse.execute(
        "insert into marts.consents select contact_id, 'sms', 'marketing', 'c' || email, true, now64(3)"
        " from marts.contact_profiles where email != 'p2@example.com'"
    )
    shop.warehouse.execute(
        "insert into marts.suppressions values ('', '+447700900003', false, false, 'stop', now64(3)),"
        " ('p4@example.com', '', false, true, 'all', now64(3)), ('p5@example.com', '', false, false, 'mail', now64(3))"
    )
    server = HTTPServer(("127.0.0.1", 0), Twilio)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        handler = shop.start(
            settings={
                "twilio_account": "AC1", "twilio_token": SecretStr("t"), "twilio_from": "+447700900999",
                "twilio_url": f"http://127.0.0.1:{server.server_address[1]}",
            },
            text="event: cart.updated\nsend: {template: reminder, category: marketing, subject: Your cart,"
            " channel: sms, provider: twilio}\n",
        )  # fmt: skip
        templates = shop.home / "content/templates"
        (templates / "reminder.txt").write_text("Your cart waits. Reply STOP to opt out.")
        feed(
            handler,
            events(
                *({"id": f"c{n}", "person": n, "at": 2} for n in range(1, 7)),
                {"id": "new", "email": "new@example.com", "at": 2},
            ),
            shop.at(3),
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [shop.outcomes("text", n)[-1] for n in range(1, 7)] == [
        "fired", "no_consent", "suppressed", "suppressed", "fired", "invalid",
    ]  # fmt: skip
    assert sorted(texts) == ["+447700900001", "+447700900005"]
    new = shop.warehouse.value("select toInt64(bitShiftRight(sipHash64('new@example.com'), 1))")
    assert [row["outcome"] for row in handler.log.read(trigger="text", contact_id=new)] == ["due", "invalid"]


def test_somebody_new_is_welcomed_and_a_click_on_a_campaign_counts(shop: Shop) -> None:
    handler = shop.start(
        welcome="event: subscribed\nwhen: orders_count = 0 and engagement_band = 'never'\n" + MARKETING,
        clicked="event: clicked\nwhen: message.name = 'welcome' and messages_clicked_count = 1\n" + SEND,
    )
    shop.warehouse.execute(
        "insert into raw.consents (consent_id, email, channel, purpose, is_granted, basis, occurred_at)"
        " values ('k', 'New@Example.com', 'email', 'marketing', true, 'opt_in', now64(3))"
    )
    feed(handler, events({"id": "s", "type": "subscribed", "email": "new@example.com "}), shop.at(1))
    contact = shop.warehouse.value("select toInt64(bitShiftRight(sipHash64('new@example.com'), 1))")
    assert received(shop.settings) == {"new@example.com": 1}
    [firing] = handler.firings.of_contact("welcome", contact)
    found = handler.ledger.find(firing.firing_id)
    assert found is not None and found.occurrence == "s" and found.kind == "trigger"
    assert found.details["consent_id"] == "k"
    clicks = ({"id": f"k{n}", "type": "clicked", "message_id": firing.firing_id, "at": n} for n in (2, 3))
    feed(handler, events(*clicks), shop.at(4))
    assert [row["outcome"] for row in handler.log.read(trigger="clicked", contact_id=contact)] == [
        "due", "fired", "due", "cooldown",
    ]  # fmt: skip


def test_a_cap_is_kept_and_holds_back_no_cooldown(shop: Shop) -> None:
    people(shop.warehouse, 1)
    handler = shop.start(
        one="event: cart.updated\ncap: {messages: 1, within: 7d}\n" + MARKETING,
        two="event: cart.updated\ncap: {messages: 1, within: 7d}\n" + MARKETING,
    )
    feed(handler, events({"id": "a", "person": 1}), shop.at(1))
    assert sorted([shop.outcomes("one")[-1], shop.outcomes("two")[-1]]) == ["fired", "frequency_cap"]
    capped = "one" if shop.outcomes("one")[-1] == "frequency_cap" else "two"
    feed(handler, events({"id": "b", "person": 1, "at": 691_300}), shop.at(691_300))
    assert shop.outcomes(capped)[-1] in ("fired", "frequency_cap")
    assert received(shop.settings)["p1@example.com"] == 2


class _Calls(BaseHTTPRequestHandler):
    answers: list[int]
    calls: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.answers.pop(0) if self.answers else 200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def test_webhook_journeys_tags_and_tasks(shop: Shop) -> None:
    _Calls.answers, _Calls.calls = [503], []
    server = HTTPServer(("127.0.0.1", 0), _Calls)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    people(shop.warehouse, 1)
    secret = SecretStr("whsec_" + base64.b64encode(b"k" * 32).decode())
    url = f"http://127.0.0.1:{server.server_port}/hook"
    handler = shop.start(
        settings={"webhook_secret": secret},
        call=f"event: cart.updated\nwebhook: {{url: '{url}'}}\n",
        enter="event: cart.updated\nenter_journey: carts\n",
        leave="event: order.placed\nleave_journey: carts\n",
        tag="event: cart.updated\ntag: {add: has_cart}\n",
        task="event: cart.updated\ncrm_task: {subject: Ring them, due_in: 2d}\n",
    )
    feed(handler, events({"id": "a", "person": 1, "value": 3}), shop.at(1))
    feed(handler, events(order("o", 1, 2, 5.0)), shop.at(2))
    assert shop.outcomes("call") == ["due", "put_off"]
    handler.tick(shop.at(2 + retry_wait(0).total_seconds()))
    server.shutdown()
    server.server_close()
    assert shop.outcomes("call")[-1] == "fired"
    (first, _), (second, body) = _Calls.calls
    assert first["webhook-id"] == second["webhook-id"]
    assert json.loads(body)["data"]["event"]["properties"] == {"value": 3}
    reader = WebhookProvider(url, secret)
    assert reader.verify_signature(body, second)
    assert [(move["journey"][0], move["action"][0]) for move in shop.moves] == [
        ("carts", "enter"),
        ("carts", "leave"),
    ]
    assert shop.moves[0].columns == ["request_id", "journey", "contact_id", "action", "cause", "requested_at"]
    tags = shop.warehouse.frame("select list, source, email, is_member from raw.list_members").rows()
    assert tags == [("has_cart", "tag", "p1@example.com", True)]
    [task] = shop.warehouse.frame(
        "select event_id, toJSONString(properties) as said from raw.events where type = 'crm.task_requested'"
    ).rows()
    assert json.loads(task[1])["subject"] == "Ring them"


def test_a_provider_that_is_away_holds_up_nothing_and_loses_nothing(shop: Shop) -> None:
    people(shop.warehouse, 2)
    handler = shop.start(
        settings={"smtp_url": SecretStr("smtp://127.0.0.1:9?tls=none")},
        away="event: cart.updated\nsend: {template: reminder, category: transactional, subject: Hi, provider: smtp}\n",
        here="event: cart.updated\n" + SEND,
    )
    feed(handler, events({"id": "a", "person": 1}), shop.at(1))
    assert shop.outcomes("away") == ["due", "put_off"] and shop.outcomes("here") == ["due", "fired"]
    # the trigger is told to use another provider, and the same message goes, once
    write_content(shop.home / "content", away="event: cart.updated\n" + SEND)
    handler._looked = -1e9
    handler.tick(shop.at(2))
    handler.tick(shop.at(2 + retry_wait(0).total_seconds()))
    assert shop.outcomes("away")[-1] == "fired"
    assert received(shop.settings) == {"p1@example.com": 2}


def test_paused_triggers_wait(shop: Shop) -> None:
    people(shop.warehouse, 1)
    handler = shop.start(cart="event: cart.updated\n" + SEND)
    handler.ledger.pause("trigger", "cart", shop.now)
    feed(handler, events({"id": "a", "person": 1}), shop.at(1))
    handler.tick(shop.at(2))
    assert not received(shop.settings)
    handler.ledger.resume("trigger", "cart")
    handler.tick(shop.at(3))
    assert received(shop.settings) == {"p1@example.com": 1}


def test_two_gateways_do_not_double(shop: Shop) -> None:
    people(shop.warehouse, 20)
    first = shop.start(cart="event: cart.updated\nwait: 1m\n" + SEND)
    second = shop.start()
    frame = events(*({"id": f"e{n}", "person": n + 1} for n in range(20)))
    feed(first, frame, shop.at(1))
    feed(second, frame, shop.at(1))
    now = shop.at(61)
    threads = [threading.Thread(target=one.tick, args=(now,)) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert received(shop.settings) == {f"p{n}@example.com": 1 for n in range(1, 21)}


def test_days_states_and_segments_fire_by_the_clock(shop: Shop) -> None:
    people(
        shop.warehouse,
        1,
        columns="toDateTime64('2026-04-02 12:00:00', 3, 'UTC') as last_order_at; 30 as engagement_score",
    )
    people(
        shop.warehouse,
        1,
        first=2,
        columns="toDateTime64('2025-06-01 23:30:00', 3, 'UTC') as first_order_at; 3 as engagement_score",
    )
    handler = shop.start(
        lapsed="date: {column: last_order_at, after: 60d}\n" + SEND,
        anniversary="date: {column: first_order_at, every: year, at: '11:00', timezone: Europe/London}\n"
        + SEND,
        fell="becomes: engagement_score < 5\n" + SEND,
        joined="entered: champions\n" + SEND,
        went="left: champions\ncooldown: none\n" + SEND,
    )
    from orchestration.lib.trigger_clock import tick

    counts = tick(handler, shop.at(3600))
    assert counts == {"lapsed": 1, "anniversary": 0, "fell": 0, "joined": 0, "went": 0}
    assert tick(handler, shop.at(7200))["lapsed"] == 0
    shop.warehouse.execute(
        "alter table marts.contact_profiles update engagement_score = 1, segments = ['champions']"
        " where email = 'p1@example.com' settings mutations_sync = 1"
    )
    counts = tick(handler, shop.at(10_800))
    assert counts["fell"] == counts["joined"] == 1 and counts["went"] == 0
    assert tick(handler, shop.at(10_900))["fell"] == 0
    shop.warehouse.execute(
        "alter table marts.contact_profiles update segments = [] where true settings mutations_sync = 1"
    )
    assert tick(handler, shop.at(14_400)) == {
        "lapsed": 0,
        "anniversary": 0,
        "fell": 0,
        "joined": 0,
        "went": 1,
    }
    # half past eleven at night in UTC is the second of June in London
    assert tick(handler, shop.at(22 * 3600 + 100))["anniversary"] == 1
    handler.tick(shop.now)
    assert received(shop.settings) == {"p1@example.com": 4, "p2@example.com": 1}
    spec = handler.decider.specs["fell"]
    again = clock_events(shop.warehouse, handler.live, spec, shop.now)
    assert again.is_empty()
    note_states(shop.warehouse, handler.live, spec, shop.now)


def test_a_trigger_that_is_wrong_holds_up_no_other(shop: Shop) -> None:
    people(shop.warehouse, 1)
    handler = shop.start(
        column="event: cart.updated\nwhen: no_such_column > 1\n" + SEND,
        types="event: cart.updated\nwhen: lower(orders_count) = 'x'\n" + SEND,
        values="event: cart.updated\nwhen: toInt64(event.value) > 1\n" + SEND,
        unless="event: cart.updated\nunless: lower(orders_count) = 'x'\n" + SEND,
        good="event: cart.updated\n" + SEND,
    )
    feed(handler, events({"id": "a", "person": 1, "value": "abc"}), shop.at(1))
    assert [shop.outcomes(name) for name in ("column", "types", "good", "unless")] == [
        ["failed"], ["failed"], ["due", "fired"], ["due", "put_off"],
    ]  # fmt: skip
    assert shop.outcomes("values")[0] in ("failed", "condition")


def test_what_is_in_flight_counts_and_stops(shop: Shop) -> None:
    people(shop.warehouse, 2)
    handler = shop.start(
        looked="event: product.viewed\nwhen: event_count('product.viewed', '10m') >= 2 and revenue > 5\n"
        + MARKETING,
        left="event: cart.updated\n" + MARKETING,
    )
    batches = [
        events(
            {"id": "v1", "type": "product.viewed", "person": 1},
            {"id": "b1", "type": "page.viewed", "person": 1},
        ),
        events(order("o1", 1, 1, 7.5)),
        events({"id": "v2", "type": "product.viewed", "person": 1, "at": 2}),
        events({"id": "u", "type": "unsubscribed", "person": 2, "at": 3}),
        events({"id": "c", "person": 2, "at": 4}),
    ]
    for seconds, frame in enumerate(batches):
        # the warehouse has none of it yet
        handler.handle(frame, shop.at(seconds))
    assert received(shop.settings) == {"p1@example.com": 1}
    # the same batches after a crash, and only then what is behind
    for seconds, frame in enumerate(batches):
        handler.handle(frame, shop.at(seconds + 10))
        keep(handler, frame)
    assert received(shop.settings) == {"p1@example.com": 1}
    # what was decided twice is told twice, what was done is not
    assert sorted(shop.outcomes("left", 2)) == ["due", "due", "suppressed"]
    assert sorted(shop.outcomes("looked", 1)) == ["condition", "condition", "due", "due", "fired"]
    assert handler._held == [] and set(handler.live.flight.all()["event_id"]) <= {"u"}
    stored = "select count() from live.events where event_id in ('v1', 'v2', 'b1', 'o1', 'u', 'c') and contact_id != 0"
    assert shop.warehouse.value(stored) == 6


def test_a_withdrawal_elsewhere_counts_within_a_second(shop: Shop) -> None:
    people(shop.warehouse, 3)
    handler = shop.start(left="event: cart.updated\ncooldown: none\n" + MARKETING)
    handler.live.follow()
    assert handler.live.news is not None

    def told() -> None:
        assert handler.live.news is not None
        handler.live.news.fresh()
        handler.live.refresh()
        assert handler.live.news.fresh() is not None

    handler.prepare()
    told()
    feed(handler, events({"id": "a", "person": 1}, {"id": "b", "person": 2}), shop.at(1))
    # another process writes them down: the next answer in the background has them
    columns = {
        "channel": "email",
        "purpose": "marketing",
        "is_granted": False,
        "basis": "withdrawal",
        "occurred_at": shop.now,
    }
    consent = pl.DataFrame([{"consent_id": "w", "source": "web", "email": "P1@example.com", **columns}])
    load_consents(shop.warehouse, consent.with_columns(pl.col("occurred_at").cast(pl.Datetime("ms", "UTC"))))
    text = {"id": "t", "type": "unsubscribed", "person": 3, "at": 1, "phone": "+447700900123"}
    load_events(shop.warehouse, events({"id": "u", "type": "unsubscribed", "person": 2, "at": 1}, text))
    handler.live.changed_permissions()
    assert handler.live.news.fresh() is None
    told()
    numbers = (("c", 1), ("d", 2), ("e", 3))
    feed(handler, events(*({"id": name, "person": one, "at": 2} for name, one in numbers)), shop.at(2))
    assert [shop.outcomes("left", one)[-1] for one in (1, 2, 3)] == ["no_consent", "suppressed", "fired"]
    # what this process stores counts at once: it asks by address until it is told again
    load_events(shop.warehouse, events({"id": "v", "type": "unsubscribed", "person": 3, "at": 2}))
    handler.live.changed_permissions()
    feed(handler, events({"id": "f", "person": 3, "at": 3}), shop.at(3))
    assert shop.outcomes("left", 3)[-1] == "suppressed"


def test_a_restriction_counts_within_a_second_and_when_it_is_lifted_too(shop: Shop) -> None:
    people(shop.warehouse, 5)
    handler = shop.start(
        left="event: cart.updated\ncooldown: none\n" + MARKETING,
        told="event: cart.updated\ncooldown: none\n" + SEND,
        moved="event: cart.updated\ncooldown: none\nenter_journey: j\n",
        rung="event: cart.updated\ncooldown: none\ncrm_task: {subject: Ring them}\n",
        tagged="event: cart.updated\ncooldown: none\ntag: {add: warm}\n",
    )
    one, two, three = (Person(contact_ids={contact_of(shop.warehouse, number)}) for number in (1, 2, 3))
    by_address = Person(emails={"p4@example.com"})

    def restrict(person: Person, *, is_restricted: bool = True, allows: bool = False) -> None:
        change(
            shop.warehouse, person, is_restricted=is_restricted, allows_transactional=allows, reason="", actor="",
            now=shop.now,
        )  # fmt: skip

    def outcomes(trigger: str) -> list[str]:
        return [shop.outcomes(trigger, number)[-1] for number in range(1, 6)]

    restrict(one)
    restrict(two, allows=True)
    restrict(three)
    restrict(three, is_restricted=False)
    restrict(by_address)
    for name, is_told in (("a", False), ("b", True)):
        if is_told:
            # in the background, as a gateway does
            handler.live.follow()
            assert handler.live.news is not None
            handler.live.news.fresh()
            handler.live.refresh()
            assert handler.live.news.fresh() is not None
        feed(handler, events(*({"id": f"{name}{n}", "person": n, "at": 1} for n in range(1, 6))), shop.at(2))
        assert outcomes("left") == ["restricted", "restricted", "fired", "restricted", "fired"]
        assert outcomes("told") == ["restricted", "fired", "fired", "restricted", "fired"]
        for name in ("moved", "rung", "tagged"):
            assert outcomes(name) == ["restricted", "restricted", "fired", "restricted", "fired"]
    assert set(received(shop.settings)) == {"p2@example.com", "p3@example.com", "p5@example.com"}
    for query in (
        "select distinct email from raw.list_members order by email",
        "select distinct email from raw.events where type = 'crm.task_requested' order by email",
    ):
        assert shop.warehouse.frame(query)["email"].to_list() == ["p3@example.com", "p5@example.com"]
