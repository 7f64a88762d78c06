"""Double opt-in: what is asked for, what is told to whom, and that nothing holds before its link was used."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from mailbox import Maildir
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from trigger_world import TEMPLATE, build, drop, received

from campaigns.purposes import PreferencesSpec
from campaigns.siphash import contact_of
from crm.addresses import AddressJudge
from gateway.__main__ import gateway
from gateway.app import Gateway
from gateway.events import Event, EventError, frame_of, parse_event
from gateway.keys import make_key
from gateway.preferences import Caller, PreferenceCentre
from gateway.segment import parse_message
from gateway.settings import ApiKey, GatewaySettings
from gateway.subscriptions import (
    MOST_A_DAY,
    NotSetUpError,
    Subscriptions,
    Wish,
    clean_address,
    confirmation_problem,
    parse_wish,
)
from gateway.unsubscribes import NotStoredError, Unsubscribes
from senders.ledger import PLAN_COLUMNS, Claim, Ledger
from senders.unsubscribe import make_token
from warehouse.addresses import SPACES
from warehouse.client import Warehouse
from warehouse.loads import load_events
from warehouse.settings import PROJECT_ROOT, MailhouseSettings

KEY, HASH = make_key()
SPEC = """
version: 2026-06
purposes:
  newsletter: {title: Our newsletter, description: Twice a month.}
  offers: {title: Offers, agreement: "Yes, send me offers <now>."}
  surveys: {title: Surveys, double_opt_in: false, has_form: false}
  flash: {title: Flash sales, channels: [sms]}
"""
CONFIRM = """<mjml><mj-body><mj-section><mj-column><mj-text>{{ company_name }} asks {{ contact.email }}:
<a href="{{ confirm_url }}">confirm</a></mj-text></mj-column></mj-section></mj-body></mjml>
"""
TRIGGER = """trigger: confirm_subscription
event: consent.requested
cooldown: 1h
send: {template: confirm, category: transactional, subject: Please confirm}
"""


def write(content: Path) -> Path:
    (content / "templates").mkdir(parents=True, exist_ok=True)
    (content / "triggers").mkdir(exist_ok=True)
    (content / "preferences.yaml").write_text(SPEC)
    (content / "templates/confirm.mjml").write_text(CONFIRM)
    (content / "templates/reminder.mjml").write_text(TEMPLATE)
    (content / "triggers/confirm_subscription.yaml").write_text(TRIGGER)
    return content


# what is asked for


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        (" Ann@Example.COM ", "ann@example.com"),
        ("o'neil+news@sub.example.co.uk", "o'neil+news@sub.example.co.uk"),
        ("ann@münchen.example", "ann@xn--mnchen-3ya.example"),
        ("ann@example.com.", "ann@example.com"),
        # letters that the rules of 2003 took for others
        ("ann@straße.example", "ann@xn--strae-oqa.example"),
        ("\u200bann@example.com\u00a0", "ann@example.com"),
    ],
)  # fmt: skip
def test_an_address_is_taken_as_it_is_stored(given_: str, kept: str) -> None:
    assert clean_address(given_) == kept


@pytest.mark.parametrize(
    "wrong",
    ["", "ann", "ann@", "@example.com", "ann@localhost", "a..n@example.com", ".ann@example.com", "ann.@example.com",
     "ann@exa mple.com", "ann@-example.com", f"{'a' * 65}@example.com", f"ann@{'a' * 64}.com", "ann@b.com\nBcc: b",
     "ann<b@example.com>", "ann@[127.0.0.1]", f"a@{'b.' * 130}com", '"a b"@example.com', "ann@ex_ample.com",
     "ann@xn--a.com", "ann@example.c0m"],
)  # fmt: skip
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no mail address"):
        clean_address(wrong)


@given(st.text(max_size=80))
def test_no_text_breaks_the_check_of_addresses(text: str) -> None:
    try:
        address = clean_address(text)
    except ValueError:
        return
    assert clean_address(address) == address
    assert address.isascii() and address == address.lower() and len(address) <= 254


_LABELS = st.one_of(
    st.text("abz09-_ß", min_size=1, max_size=4), st.sampled_from(["xn--mnchen-3ya", "xn--", "日本"])
)


@given(
    st.lists(
        st.builds(
            lambda local, labels, top: f"{local}@{'.'.join(labels)}.{top}",
            st.text("aZ0.-+'@ \u00a0", min_size=1, max_size=4),
            st.lists(_LABELS, min_size=1, max_size=3),
            st.sampled_from(["com", "de", "c", "c0m", "xn--p1ai", "рф", ""]),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_a_form_takes_what_an_import_takes(texts: list[str]) -> None:
    judge = AddressJudge(role_accounts="keep", disposable="keep")
    for text, row in zip(texts, judge.judge(pl.Series(texts)).iter_rows(named=True), strict=True):
        if row["code"] in ("typo", "unattended"):
            continue
        try:
            taken = clean_address(text)
        except ValueError:
            taken = None
        # a form takes a dot that ends a domain, which is one that DNS knows
        if not text.rstrip(SPACES).endswith("."):
            assert taken == row["email"], text


def test_a_request_names_its_fields() -> None:
    caller = Caller("203.0.113.5", "Agent")
    wish = parse_wish(
        {"email": "Ann@example.com", "purposes": ["offers", "offers"]},
        "website",
        caller,
        ["newsletter", "offers"],
    )
    assert (wish.email, wish.purposes, wish.ip, wish.user_agent, wish.source) == (
        "ann@example.com", ("offers",), "203.0.113.5", "Agent", "website",
    )  # fmt: skip
    assert parse_wish({"email": "a@example.com"}, "website", caller, ["one"]).purposes == ("one",)
    for body, place in (
        ([], ""), ({"email": 3}, "email"), ({"email": "x"}, "email"), ({}, "email"),
        ({"email": "a@example.com"}, "purposes"), ({"email": "a@example.com", "purposes": []}, "purposes"),
        ({"email": "a@example.com", "purposes": ["flash"]}, "purposes"),
        ({"email": "a@example.com", "purposes": "offers"}, "purposes"),
        ({"email": "a@example.com", "ip": "here"}, "ip"), ({"email": "a@example.com", "mail": ""}, "mail"),
        ({"email": "a@example.com", "purposes": ["offers"], "request_id": "a\nb"}, "request_id"),
    ):  # fmt: skip
        with pytest.raises(EventError) as caught:
            parse_wish(body, "website", caller, ["newsletter", "offers"])
        assert caught.value.field == place


def test_nobody_posts_the_event_that_sends_a_confirmation() -> None:
    now = datetime.now(UTC)
    with pytest.raises(EventError, match="/v1/subscribe"):
        parse_event({"type": "consent.requested", "email": "ann@example.com"}, "web", now)
    for name in ("consent.requested", "Consent Requested"):
        message = {"event": name, "userId": "ann@example.com"}
        try:
            event = parse_message(message, "track", "web", None, now)
        except EventError as error:
            assert "/v1/subscribe" in str(error)
        else:
            assert event.type != "consent.requested"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    content = write(tmp_path)
    spec = PreferencesSpec.load(content)
    assert confirmation_problem(content, spec) == ""
    assert (
        confirmation_problem(PROJECT_ROOT / "content", PreferencesSpec.load(PROJECT_ROOT / "content")) == ""
    )
    trigger = content / "triggers/confirm_subscription.yaml"
    trigger.write_text(TRIGGER.replace("transactional", "marketing"))
    assert "is marketing" in confirmation_problem(content, spec)
    trigger.write_text(TRIGGER.replace("template: confirm", "template: reminder"))
    assert "confirm_url" in confirmation_problem(content, spec)
    trigger.write_text(TRIGGER.replace("template: confirm", "template: none"))
    assert "none" in confirmation_problem(content, spec)
    trigger.unlink()
    assert "no trigger" in confirmation_problem(content, spec)


# requests and confirmations on a real warehouse and ledger, the stream and the trigger played by the test


@dataclass
class Shop:
    """Subscriptions with a clock of the test's own; `mail` sends what the trigger would."""

    warehouse: Warehouse
    settings: GatewaySettings
    ledger: Ledger
    at: list[datetime]
    events: list[Event] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        object.__setattr__(self.settings, "now", lambda: self.at[0])
        unsubscribes = Unsubscribes(self.settings, self.ledger, self.warehouse, lambda _: None)
        self.centre = PreferenceCentre(self.settings, self.warehouse, unsubscribes)
        self.subscriptions = Subscriptions(self.settings, self.centre, self._append)
        self.run = self.ledger.begin_run("trigger", "confirm_subscription", "", self.at[0])

    def _append(self, events: Any) -> None:
        self.events += events
        load_events(self.warehouse, frame_of(events))

    def ask(self, email: str, *purposes: str, **more: Any) -> str:
        """The token of the message that goes out; empty if none does."""
        before = len(self.events)
        self.subscriptions.request(
            Wish(
                email,
                purposes,
                page="https://shop.example/footer",
                ip="198.51.100.7",
                user_agent="Asker",
                **more,
            )
        )
        return self.mail(self.events[-1]) if len(self.events) > before else ""

    def mail(self, event: Event) -> str:
        number = f"{next(self.numbers):032x}"
        identifier = f"{number[:8]}-{number[8:12]}-5000-8000-{number[20:]}"
        plan = {str(name): "x" for name in PLAN_COLUMNS}
        claim = Claim(
            plan,
            [identifier],
            [contact_of(event.email)],
            [event.email],
            [""],
            ["{}"],
            occurrences=[event.event_id],
        )
        self.ledger.claim(self.run, claim, self.at[0])
        return make_token(self.settings.signing_key(), identifier, "confirm")

    def confirm(self, token: str) -> str:
        seen = self.subscriptions.look(token)
        assert seen is not None
        found = self.subscriptions.confirm(token, seen.requests, Caller("192.0.2.4", "Confirmer"))
        assert found is not None
        return found.state

    def rows(self) -> list[dict[str, Any]]:
        return self.warehouse.frame(
            "select * except (properties, loaded_at), toJSONString(properties) as said from raw.consents"
            " order by occurred_at, consent_id"
        ).to_dicts()

    def granted(self, email: str) -> set[str]:
        from gateway.unsubscribes import Recipient

        return {one.pair[0] for one in self.centre.read(Recipient("", email, contact_of(email))).granted}

    def later(self, **much: float) -> None:
        self.at[0] += timedelta(**much)


@pytest.fixture
def shop(warehouse: Warehouse, warehouse_server: MailhouseSettings, tmp_path: Path) -> Iterator[Shop]:
    warehouse.execute("drop database if exists marts")
    warehouse.execute("drop database if exists intermediate")
    settings = GatewaySettings(
        home=tmp_path, content_dir=write(tmp_path / "content"), warehouse_port=warehouse_server.warehouse_port,
        company_name="Shop Ltd",
    )  # fmt: skip
    with Ledger.open(settings) as ledger:
        yield Shop(warehouse, settings, ledger, [datetime(2026, 6, 1, 12, tzinfo=UTC)])


def test_nothing_holds_before_the_link_was_used_and_the_row_proves_it(shop: Shop) -> None:
    token = shop.ask("ann@example.com", "newsletter", "offers")
    assert shop.rows() == [] and shop.granted("ann@example.com") == set()
    asked_at = shop.at[0]
    shop.later(minutes=5)
    # a scanner looks, more than once
    for _ in range(2):
        seen = shop.subscriptions.look(token)
        assert seen is not None and seen.state == "open" and seen.titles == ("Our newsletter", "Offers")
    assert shop.rows() == []

    assert shop.confirm(token) == "done"
    rows = shop.rows()
    assert {row["purpose"] for row in rows} == {"newsletter", "offers"} == shop.granted("ann@example.com")
    for row in rows:
        assert (row["basis"], row["is_granted"], row["channel"]) == ("double_opt_in", True, "email")
        assert (row["requested_at"], row["requested_ip"]) == (asked_at, "198.51.100.7")
        assert (row["confirmed_at"], row["ip"], row["user_agent"]) == (shop.at[0], "192.0.2.4", "Confirmer")
        assert (row["page"], row["recorded_by"]) == ("https://shop.example/footer", "form")
        words = shop.warehouse.value(
            "select any(content) from raw.consent_texts where text_digest = {digest:String}",
            {"digest": row["text_digest"]},
        )
        text = PreferencesSpec.load(shop.settings.content_dir).subscription_text(row["purpose"], "Shop Ltd")
        assert words == text.content and row["text_version"] == text.version
        assert row["text_version"].startswith("subscribe-2026-06-")
    kept = shop.warehouse.frame("select content from raw.consent_texts")["content"]
    assert any("Yes, send me offers <now>." in text.split("\n") for text in kept)


def test_a_link_that_was_used_is_no_second_yes(shop: Shop) -> None:
    token = shop.ask("ann@example.com", "newsletter")
    assert shop.confirm(token) == "done"
    before = shop.rows()
    shop.later(days=2)
    assert shop.confirm(token) == "done" and shop.rows() == before
    seen = shop.subscriptions.look(token)
    assert seen is not None and seen.confirmed_at == datetime(2026, 6, 1, 12, tzinfo=UTC)
    # unsubscribed meanwhile: the old link brings nothing back
    who = seen.recipient
    shop.centre.unsubscribes.unsubscribe(who, "one_click")
    assert shop.granted("ann@example.com") == set()
    shop.later(minutes=1)
    assert shop.confirm(token) == "done" and shop.granted("ann@example.com") == set()
    # and long afterwards it is still known
    shop.later(days=400)
    assert shop.confirm(token) == "done" and shop.rows() == before


def test_a_link_gets_too_old(shop: Shop) -> None:
    token = shop.ask("ann@example.com", "newsletter")
    shop.later(days=6, hours=23)
    seen = shop.subscriptions.look(token)
    assert seen is not None and seen.state == "open"
    shop.later(hours=2)
    assert shop.confirm(token) == "expired" and shop.rows() == []


def test_forged_links_and_links_of_other_messages_lead_nowhere(shop: Shop) -> None:
    token = shop.ask("ann@example.com", "newsletter")
    assert shop.subscriptions.look(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
    assert shop.subscriptions.look("A" * 43) is None
    # a token of the same message for another purpose
    other = make_token(shop.settings.signing_key(), "00000000-0000-5000-8000-000000000001", "preferences")
    assert shop.subscriptions.look(other) is None
    # a message that confirms nothing
    stray = shop.mail(shop.events[-1]._replace(event_id="cart-7", email="bob@example.com"))
    found = shop.subscriptions.look(stray)
    assert found is not None and found.state == "expired"
    # the message is out and the request has not reached the warehouse: come again in a minute
    early = shop.mail(shop.events[-1]._replace(event_id="gateway:subscribe:early", email="eve@example.com"))
    with pytest.raises(NotStoredError):
        shop.subscriptions.look(early)
    assert shop.rows() == []


@pytest.mark.slow
def test_one_link_confirms_what_was_asked_for_meanwhile_and_no_other_address(shop: Shop) -> None:
    token = shop.ask("ann@example.com", "newsletter")
    shop.later(minutes=1)
    shop.subscriptions.request(Wish("ann@example.com", ("offers",)))  # within the cooldown: no message
    shop.ask("bob@example.com", "offers")
    seen = shop.subscriptions.look(token)
    assert seen is not None and seen.titles == ("Our newsletter", "Offers") and len(seen.requests) == 2
    # only what the page showed
    found = shop.subscriptions.confirm(token, [*seen.requests[:1], "gateway:subscribe:other"], Caller())
    assert found is not None and found.state == "done"
    assert {(row["email"], row["purpose"]) for row in shop.rows()} == {("ann@example.com", "newsletter")}


@pytest.mark.slow
def test_who_has_unsubscribed_comes_back_with_what_they_confirm_alone(shop: Shop) -> None:
    assert shop.confirm(shop.ask("ann@example.com", "newsletter", "offers")) == "done"
    shop.later(days=1)
    seen = shop.subscriptions.look(
        make_token(shop.settings.signing_key(), f"{'0' * 8}-0000-5000-8000-{1:012x}", "confirm")
    )
    assert seen is not None
    shop.centre.stop(seen.recipient)
    assert shop.granted("ann@example.com") == set()
    shop.later(days=1)
    token = shop.ask("ann@example.com", "newsletter")
    assert shop.granted("ann@example.com") == set()
    shop.later(minutes=1)
    assert shop.confirm(token) == "done"
    assert shop.granted("ann@example.com") == {"newsletter"}
    # of all channels: what a device allows does not come back with it
    assert ("marketing", "push", False) in {
        (row["purpose"], row["channel"], row["is_granted"]) for row in shop.rows()
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", ["complained", "asked too often", "bounced"])
def test_no_message_goes_where_none_may_and_nobody_is_told(shop: Shop, how: str) -> None:
    if how == "asked too often":
        for _ in range(MOST_A_DAY):
            assert shop.ask("ann@example.com", "newsletter")
            shop.later(hours=2)
        assert shop.ask("ann@example.com", "newsletter") == ""
        assert shop.ask("bob@example.com", "newsletter")
        shop.later(days=1)
        assert shop.ask("ann@example.com", "newsletter")
        return
    if how == "bounced":
        shop.warehouse.execute("create database marts")
        shop.warehouse.execute(
            "create view marts.suppressions as select 'ann@example.com' as email, 'bounced' as reason,"
            " false as is_global, '' as phone"
        )
    else:
        event = Event("c1", "complained", 0, 0, "x", "ann@example.com")
        load_events(shop.warehouse, frame_of([event]))
    assert shop.ask("ann@example.com", "newsletter") == ""
    shop.warehouse.execute("drop database if exists marts")


@pytest.mark.slow
def test_a_purpose_that_needs_no_confirmation_holds_at_once_unless_they_had_said_no(shop: Shop) -> None:
    assert shop.ask("ann@example.com", "surveys", request_id="r1", source="shop") == ""
    [row] = shop.rows()
    assert (row["basis"], row["purpose"], row["ip"], row["source"]) == (
        "consent",
        "surveys",
        "198.51.100.7",
        "shop",
    )
    # the same request again is the same row
    shop.ask("ann@example.com", "surveys", request_id="r1", source="shop")
    assert len(shop.rows()) == 1
    who = shop.subscriptions.look(shop.ask("ann@example.com", "newsletter"))
    assert who is not None
    shop.later(minutes=1)
    shop.centre.save(who.recipient, [])
    shop.later(minutes=1)
    token = shop.ask("ann@example.com", "surveys")
    assert token and shop.granted("ann@example.com") == set()
    assert shop.confirm(token) == "done" and "surveys" in shop.granted("ann@example.com")


@pytest.mark.slow
def test_without_a_message_nobody_is_promised_one(shop: Shop) -> None:
    (shop.settings.content_dir / "triggers/confirm_subscription.yaml").unlink()
    with pytest.raises(NotSetUpError, match="no trigger"):
        shop.ask("ann@example.com", "newsletter")
    assert shop.events == []


def test_callers_are_held_back(shop: Shop) -> None:
    waits = [shop.subscriptions.wait("198.51.100.7") for _ in range(7)]
    assert waits[:5] == [0.0] * 5 and all(wait > 0 for wait in waits[5:])
    assert shop.subscriptions.wait("198.51.100.8") == 0.0


# whatever people do, in whatever order

PEOPLE = ("ann@example.com", "bob@example.com")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(PEOPLE), st.sampled_from(["newsletter", "offers", "surveys"])),
        st.tuples(st.just("look"), st.integers(0, 7), st.none()),
        st.tuples(st.just("confirm"), st.integers(0, 7), st.none()),
        st.tuples(st.just("stop"), st.sampled_from(PEOPLE), st.none()),
        st.tuples(st.just("withdraw"), st.sampled_from(PEOPLE), st.none()),
        st.tuples(st.just("wait"), st.sampled_from([0.01, 3.0, 8.0]), st.none()),
    ),
    max_size=14,
)  # fmt: skip
_examples = itertools.count()


@pytest.mark.slow
@hypothesis_settings(max_examples=25)
@given(STEPS)
def test_what_holds_is_what_was_confirmed_last_and_no_row_ever_changes(shop: Shop, steps: list[Any]) -> None:
    """Against a model of three lines: a confirmation in time adds, a stop or withdrawal takes all away."""
    for table in ("raw.consents", "raw.events"):
        shop.warehouse.execute(f"truncate table {table}")
    # addresses of this example alone: the ledger remembers those before
    example = next(_examples)
    shop.subscriptions._buckets = type(shop.subscriptions._buckets)()
    tokens: list[tuple[str, str, str, datetime]] = []
    used: set[str] = set()
    holds: dict[str, set[str]] = {one: set() for one in PEOPLE}
    said_no: set[tuple[str, str]] = set()
    is_stopped = dict.fromkeys(PEOPLE, False)
    seen_rows: list[dict[str, Any]] = []
    for kind, first, second in steps:
        shop.later(seconds=1)
        if kind == "ask":
            email = f"{example}.{first}"
            token = shop.ask(email, second)
            direct = second == "surveys" and not is_stopped[first] and (first, second) not in said_no
            if direct:
                holds[first].add(second)
            if token:
                assert not direct
                tokens.append((token, first, second, shop.at[0]))
        elif kind == "wait":
            shop.later(days=first)
        elif kind in ("look", "confirm") and tokens:
            token, email, _, at = tokens[first % len(tokens)]
            before = shop.rows()
            found = shop.subscriptions.look(token)
            assert found is not None and shop.rows() == before
            is_late = shop.at[0] - at >= timedelta(days=7)
            assert found.state == ("done" if token in used else "expired" if is_late else "open")
            if kind == "confirm":
                shop.confirm(token)
                if found.state == "open":
                    mine = [one for one in tokens if one[1] == email and one[0] not in used]
                    fresh = {one for one in mine if shop.at[0] - one[3] < timedelta(days=7)}
                    if is_stopped[email]:
                        said_no |= {(email, one) for one in ("newsletter", "offers", "surveys")}
                    is_stopped[email] = False
                    holds[email] |= {one[2] for one in fresh}
                    said_no -= {(email, one[2]) for one in fresh}
                    used |= {one[0] for one in fresh}
        elif kind in ("stop", "withdraw"):
            from gateway.unsubscribes import Recipient

            number = f"{example:08x}-0000-5000-8000-{PEOPLE.index(first):012x}"
            address = f"{example}.{first}"
            who = Recipient(number, address, contact_of(address))
            said_no |= {(first, one) for one in holds[first]}
            if kind == "stop":
                shop.centre.stop(who)
                is_stopped[first] = True
            else:
                shop.centre.save(who, [])
            holds[first] = set()
        rows = shop.rows()
        kept = {row["consent_id"]: row for row in rows}
        assert all(kept[row["consent_id"]] == row for row in seen_rows), "a row of the log has changed"
        assert len(kept) == len(rows)
        seen_rows = rows
    for email in PEOPLE:
        assert shop.granted(f"{example}.{email}") == holds[email]


# the whole way: form, stream, trigger, message, link


class Visitor:
    """Somebody at a browser."""

    def __init__(self, app: Gateway, ip: str) -> None:
        self.app, self.ip = app, ip

    def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(self.ip, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())

    def post(self, path: str, fields: list[tuple[str, str]]) -> httpx.Response:
        body = urlencode(fields).encode()
        return self("POST", path, content=body, headers={"content-type": "application/x-www-form-urlencoded"})


@pytest.fixture
def running(
    warehouse: Warehouse, warehouse_server: MailhouseSettings, tmp_path: Path
) -> Iterator[tuple[Gateway, GatewaySettings]]:
    build(warehouse)
    # as the models read them
    warehouse.execute("drop table marts.suppressions")
    warehouse.execute(
        """
        create view marts.suppressions as
        select lower(email) as email, 'unsubscribed' as reason, false as is_bounced, false as is_global, '' as phone,
            argMax(event_id, occurred_at) as event_id
        from raw.events where type in ('subscribed', 'unsubscribed') group by email
        having argMax(type = 'unsubscribed', occurred_at)
        """
    )
    warehouse.execute(
        """
        create view marts.consents as
        select toInt64(bitShiftRight(sipHash64(lower(email)), 1)) as contact_id, purpose, channel,
            argMax(consent_id, told.occurred_at) as consent_id, argMax(is_granted, told.occurred_at) as is_granted,
            max(told.occurred_at) as occurred_at
        from raw.consents as told group by contact_id, purpose, channel
        """
    )
    warehouse.execute(
        "alter table intermediate.int_contacts__identified add column identifier String, add column source String"
    )
    warehouse.execute("alter table marts.contact_profiles add column phone Nullable(String)")
    content = write(tmp_path / "content")
    (content / "triggers/hello.yaml").write_text(
        "trigger: hello\nevent: subscribed\nsend: {template: reminder, category: marketing, purpose: newsletter,"
        " subject: Welcome}\n"
    )
    (content / "triggers/sales.yaml").write_text(
        "trigger: sales\nevent: subscribed\nsend: {template: reminder, category: marketing, purpose: offers,"
        " subject: Sale}\n"
    )
    settings = GatewaySettings(
        home=tmp_path, content_dir=content, warehouse_port=warehouse_server.warehouse_port,
        from_email="shop@example.com", company_name="Shop Ltd", postal_address="1 High Street, York",
        gateway_keys={"shop": ApiKey(hash=HASH)},
    )  # fmt: skip
    with gateway(settings) as app:
        yield app, settings
    drop(warehouse)


def _until(condition: Any) -> None:
    import time

    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")


@pytest.mark.slow
def test_from_the_form_to_the_welcome(running: tuple[Gateway, GatewaySettings], warehouse: Warehouse) -> None:
    app, settings = running
    visitor = Visitor(app, "198.51.100.7")
    form = visitor("GET", "/subscribe")
    assert form.status_code == 200 and "script" not in form.text.lower()
    assert "default-src 'none'" in form.headers["content-security-policy"]
    assert (
        form.text.count('type="checkbox"') == 2 and " checked" not in form.text and "Surveys" not in form.text
    )
    assert "&lt;now&gt;" in form.text
    single = visitor("GET", "/subscribe?purpose=newsletter")
    assert 'type="hidden" name="purpose" value="newsletter"' in single.text

    wrong = visitor.post("/subscribe", [("email", 'x"><script>'), ("purpose", "flash")])
    assert wrong.status_code == 400 and 'role="alert"' in wrong.text and "<script>" not in wrong.text
    assert 'aria-invalid="true"' in wrong.text
    trapped = visitor.post(
        "/subscribe", [("email", "bot@example.com"), ("purpose", "offers"), ("website", "x")]
    )
    asked = visitor.post("/subscribe", [("email", "ann@example.com"), ("purpose", "newsletter")])
    again = visitor.post("/subscribe", [("email", "ann@example.com"), ("purpose", "newsletter")])
    assert asked.status_code == again.status_code == trapped.status_code == 200
    assert asked.text == again.text == trapped.text, "the answer tells whether an address is known"

    _until(lambda: received(settings)["ann@example.com"] == 1)
    # both requests are in, and the cooldown let one message go
    _until(
        lambda: (
            warehouse.value("select uniqExact(event_id) from raw.events where type = 'consent.requested'")
            == 2
        )
    )
    assert warehouse.value("select count() from raw.consents") == 0
    [message] = Maildir(settings.maildir, create=False)
    body = next(part for part in message.walk() if part.get_content_type() == "text/html")
    text = body.get_payload(decode=True)
    assert isinstance(text, bytes)
    found = re.search(r"/confirm/[A-Za-z0-9_-]{43}", text.decode())
    assert found is not None and "List-Unsubscribe" not in message
    link = found[0]

    page = visitor("GET", link)
    assert (
        page.status_code == 200
        and "Our newsletter" in page.text
        and warehouse.value("select count() from raw.consents") == 0
    )
    assert "ann@example.com" not in page.text, "the link may be in somebody else's hands"
    assert visitor("HEAD", link).status_code == 200
    assert visitor.post(link, [("request", "x")]).status_code == 400
    fields = [
        ("confirm", "yes"),
        *(("request", one) for one in re.findall(r'name="request" value="([^"]+)"', page.text)),
    ]
    clicker = Visitor(app, "192.0.2.4")
    done = clicker.post(link, fields)
    assert done.status_code == 200 and "You are subscribed" in done.text
    preferences = re.search(r'href="(/preferences/[^"]+)"', done.text)
    assert preferences is not None and visitor("GET", preferences[1]).status_code == 200
    repeated = clicker.post(link, fields)
    assert repeated.status_code == 200 and "already" in repeated.text
    rows = warehouse.frame("select distinct purpose, ip, requested_ip, basis from raw.consents").to_dicts()
    assert rows == [
        {"purpose": "newsletter", "ip": "192.0.2.4", "requested_ip": "198.51.100.7", "basis": "double_opt_in"}
    ]
    # real time heeds purposes: the welcome is of the newsletter, the sale is not
    _until(lambda: received(settings)["ann@example.com"] == 2)
    subjects = sorted(str(one["Subject"]) for one in Maildir(settings.maildir, create=False))
    assert subjects == ["Please confirm", "Welcome"]
    _until(
        lambda: (
            warehouse.value(
                "select count() from campaigns.trigger_decisions where trigger = 'sales' and outcome = 'no_consent'"
            )
            == 1
        )
    )
    assert visitor("GET", "/confirm/" + "A" * 43).status_code == 404

    # the API: the same, with a key
    def post(body: dict[str, Any], key: str = KEY) -> httpx.Response:
        return Visitor(app, "203.0.113.1")(
            "POST", "/v1/subscribe", json=body, headers={"authorization": f"Bearer {key}"}
        )

    assert post({"email": "carl@example.com", "purposes": ["offers"]}, "mh_no").status_code == 401
    refused = post({"email": "carl", "purposes": ["offers"]})
    assert refused.status_code == 400 and refused.json()["error"]["field"] == "email"
    taken = post({"email": "carl@example.com", "purposes": ["offers"], "ip": "198.51.100.9"})
    known = post({"email": "ann@example.com", "purposes": ["newsletter"], "ip": "198.51.100.9"})
    assert (taken.status_code, taken.content) == (202, known.content)
    _until(lambda: received(settings)["carl@example.com"] == 1)
    answers = {
        post({"email": f"p{n}@example.com", "purposes": ["offers"], "ip": "198.51.100.9"}).status_code
        for n in range(6)
    }
    assert answers == {202, 429}
