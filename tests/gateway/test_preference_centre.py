"""The preference centre: no login, no script, nobody else's data, and a row of proof for every change."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from campaigns.identity import message_id
from deliverability.screenshots import BROWSERS, VIEWS, ChromiumScreenshots
from gateway import consuming
from gateway.__main__ import gateway
from gateway.app import Gateway
from gateway.pages import done_page, preferences_page
from gateway.preferences import Choice, Preferences
from gateway.settings import GatewaySettings
from gateway.unsubscribes import Recipient
from senders.ledger import PLAN_COLUMNS, Claim, Ledger
from senders.unsubscribe import make_token
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.loads import load_consents
from warehouse.settings import PROJECT_ROOT, MailhouseSettings

ANN = Recipient("m", "ann@example.com", 7)
EMAILS = {7: "Ann@Example.com", 8: "bob@example.net"}
SPEC = """
purposes:
  marketing: {title: Offers and news, description: Twice a week at most., channels: [email, sms]}
  surveys: {title: "Surveys <b>", description: Now and then we ask what you think.}
"""


class Page(HTMLParser):
    """What a browser would make of the form."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.boxes: dict[str, bool] = {}
        self.buttons: list[str] = []
        self.tags: list[str] = []
        self.inside_label = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag == "label":
            self.inside_label = True
        if tag == "input":
            assert self.inside_label, "a box without a label"
            self.boxes[str(given["value"])] = "checked" in given
        if tag == "button":
            self.buttons.append(str(given["value"]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self.inside_label = False


class Person:
    """Who holds a link."""

    def __init__(self, app: Gateway, settings: GatewaySettings, contact: int) -> None:
        self.app = app
        identifier = message_id("campaign", "offer", contact, "o")
        self.path = f"/preferences/{make_token(settings.signing_key(), identifier, 'preferences')}"

    def ask(self, method: str = "GET", fields: list[tuple[str, str]] | None = None) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=("203.0.113.9", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                body = httpx.QueryParams(fields or []).__str__().encode()
                kind = {"content-type": "application/x-www-form-urlencoded"}
                return await client.request(method, self.path, content=body, headers=kind)

        return asyncio.run(ask())

    def page(self) -> Page:
        answer = self.ask()
        assert answer.status_code == 200
        return Page(answer.text)

    def choose(self, do: str, *wanted: str) -> Page:
        answer = self.ask("POST", [("do", do), *(("want", pair) for pair in wanted)])
        assert answer.status_code == 200, answer.text
        assert 'role="status"' in answer.text
        return Page(answer.text)


@pytest.fixture(scope="module")
def running(
    warehouse_server: MailhouseSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, GatewaySettings]]:
    home = tmp_path_factory.mktemp("preferences")
    (home / "content").mkdir()
    (home / "content/preferences.yaml").write_text(SPEC)
    settings = GatewaySettings(
        home=home, content_dir=home / "content", warehouse_port=warehouse_server.warehouse_port, company_name="A & B"
    )  # fmt: skip
    with Ledger.open(settings) as ledger:
        run = ledger.begin_run("campaign", "offer", "o", settings.now())
        ids = [message_id("campaign", "offer", contact, "o") for contact in EMAILS]
        claim = Claim(
            dict.fromkeys(PLAN_COLUMNS, "x"), ids, list(EMAILS), list(EMAILS.values()), ["", ""], ["{}"] * 2
        )
        ledger.claim(run, claim, settings.now())
        ledger.end_run(run, "finished", settings.now())
    with pytest.MonkeyPatch.context() as patch:
        # a test waits until the stream is empty, so that nothing of it comes into the next one's tables
        patch.setattr(consuming, "_PACE", 0.02)
        patch.setattr(consuming, "_PACES", ((0, 0.02),))
        with gateway(settings) as app:
            yield app, settings


@pytest.fixture
def ann(running: tuple[Gateway, GatewaySettings], warehouse: Warehouse) -> Iterator[Person]:
    """Ann, who consented to marketing by email."""
    app, settings = running
    warehouse.execute("drop database if exists marts")
    row = {
        "consent_id": "form-1", "source": "shop", "email": "ann@example.com", "channel": "email",
        "purpose": "marketing", "is_granted": True, "basis": "opt_in", "occurred_at": settings.now(),
    }  # fmt: skip
    load_consents(warehouse, pl.DataFrame([row], schema_overrides={"occurred_at": pl.Datetime("ms", "UTC")}))
    yield Person(app, settings, 7)
    until = time.monotonic() + 5
    while app.stream.depth() and time.monotonic() < until:
        time.sleep(0.01)


def consents(warehouse: Warehouse) -> list[dict[str, Any]]:
    return warehouse.frame(
        "select purpose, channel, is_granted, basis, ip, email, text_version, toJSONString(properties) as said"
        " from raw.consents where source = 'gateway' order by occurred_at, purpose, channel"
    ).to_dicts()


def kinds(warehouse: Warehouse) -> list[str]:
    return warehouse.frame("select type from raw.events order by occurred_at, type")["type"].to_list()


def test_the_page_shows_ones_own_choices_and_nobody_elses(ann: Person, warehouse: Warehouse) -> None:
    answer = ann.ask()
    page = Page(answer.text)
    assert page.boxes == {"marketing:email": True, "marketing:sms": False, "surveys:email": False}
    assert page.buttons == ["save", "pause", "stop"]
    assert "script" not in page.tags and page.tags.count("h1") == 1
    assert page.tags.count("fieldset") == page.tags.count("legend") == 2
    assert "A•••@Example.com" in answer.text and "A &amp; B" in answer.text
    assert "Ann@" not in answer.text and "bob" not in answer.text and "<b>" not in answer.text
    assert "set-cookie" not in answer.headers
    assert ann.ask("HEAD").text == ""
    assert consents(warehouse) == [] and kinds(warehouse) == []


def test_each_change_is_a_row_of_proof(ann: Person, warehouse: Warehouse) -> None:
    assert ann.choose("save", "marketing:sms", "surveys:email").boxes == {
        "marketing:email": False, "marketing:sms": True, "surveys:email": True,
    }  # fmt: skip
    rows = consents(warehouse)
    assert {(row["purpose"], row["channel"], row["is_granted"], row["basis"]) for row in rows} == {
        ("marketing", "email", False, "withdrawal"), ("marketing", "sms", True, "consent"),
        ("surveys", "email", True, "consent"),
    }  # fmt: skip
    assert {(row["ip"], row["email"]) for row in rows} == {("203.0.113.9", "Ann@Example.com")}
    assert all(row["text_version"].startswith("preferences-1-") for row in rows)
    said = json.loads(next(row["said"] for row in rows if row["channel"] == "sms"))
    assert (said["title"], said["description"]) == ("Offers and news", "Twice a week at most.")
    # the same again changes nothing
    ann.choose("save", "marketing:sms", "surveys:email")
    assert len(consents(warehouse)) == 3
    # there and back, as often as one likes
    for wanted in (["marketing:email"], [], ["marketing:email"], []):
        page = ann.choose("save", *wanted)
        assert [pair for pair, is_on in page.boxes.items() if is_on] == wanted
    # nothing of it suppresses the address
    assert kinds(warehouse) == []


def test_unsubscribe_from_all_and_come_back(ann: Person, warehouse: Warehouse) -> None:
    ann.choose("save", "marketing:email", "marketing:sms")
    page = ann.choose("stop")
    assert not any(page.boxes.values())
    assert page.buttons == ["save"] and "unsubscribed from everything" in page.text
    assert kinds(warehouse) == ["unsubscribed"]
    # only what is chosen comes back
    page = ann.choose("save", "marketing:sms")
    assert page.boxes == {"marketing:email": False, "marketing:sms": True, "surveys:email": False}
    assert kinds(warehouse) == ["unsubscribed", "subscribed"]
    page = ann.choose("stop")
    assert not any(page.boxes.values())
    assert kinds(warehouse) == ["unsubscribed", "subscribed", "unsubscribed"]
    assert "Unsubscribe from all" not in ann.page().text


def test_a_pause(ann: Person, warehouse: Warehouse, running: tuple[Gateway, GatewaySettings]) -> None:
    page = ann.choose("pause")
    assert not any(page.boxes.values())
    assert "Paused until" in page.text and "pause" not in page.buttons
    (row,) = consents(warehouse)
    assert (row["basis"], row["is_granted"], row["purpose"], row["channel"]) == (
        "pause",
        False,
        "marketing",
        "email",
    )
    assert json.loads(row["said"])["paused_until"] > running[1].now().strftime("%Y-%m-%d")
    ann.choose("pause")
    assert len(consents(warehouse)) == 1
    # a choice ends it, a no as well as a yes
    page = ann.choose("save")
    assert not any(page.boxes.values()) and "Paused" not in page.text
    assert ann.choose("save", "marketing:email").boxes["marketing:email"]
    assert len(consents(warehouse)) == 3


def test_after_a_complaint_no_mail_can_be_chosen(ann: Person, warehouse: Warehouse) -> None:
    warehouse.execute(
        "insert into raw.events (event_id, type, email, occurred_at, properties)"
        " values ('c', 'complained', 'ann@example.com', now64(3), '{}')"
    )
    page = ann.page()
    assert not any(page.boxes.values()) and page.buttons == ["save"]
    assert "reported as unwanted" in page.text and page.text.count(" disabled>") == 2
    page = ann.choose("save", "marketing:email", "marketing:sms")
    assert page.boxes == {"marketing:email": False, "marketing:sms": True, "surveys:email": False}
    assert kinds(warehouse) == ["complained"]


def test_who_unsubscribes_by_a_link_keeps_text_messages(
    ann: Person, warehouse: Warehouse, running: tuple[Gateway, GatewaySettings]
) -> None:
    ann.choose("save", "marketing:email", "marketing:sms")
    centre = running[0].preferences
    ann_herself = Recipient(message_id("campaign", "offer", 7, "o"), EMAILS[7], 7)
    centre.unsubscribes.unsubscribe(ann_herself, "one_click")
    page = ann.page()
    assert page.boxes == {"marketing:email": False, "marketing:sms": True, "surveys:email": False}
    assert page.buttons == ["save", "pause", "stop"]
    # that text messages go on, is no word about mail
    page = ann.choose("save", "marketing:sms")
    assert page.boxes["marketing:sms"] and kinds(warehouse) == ["unsubscribed"]
    # the link of the same message stops everything all the same
    page = ann.choose("stop")
    assert not any(page.boxes.values()) and kinds(warehouse) == ["unsubscribed", "unsubscribed"]
    said = warehouse.frame("select properties.channel::String from raw.events order by occurred_at, event_id")
    assert sorted(said.to_series().to_list()) == ["all", "email"]


def test_the_link_of_a_text_message_stops_the_number(
    ann: Person, warehouse: Warehouse, running: tuple[Gateway, GatewaySettings]
) -> None:
    ann.choose("save", "marketing:email", "marketing:sms")
    centre = running[0].preferences
    centre.unsubscribes.unsubscribe(Recipient("m1", EMAILS[7], 7, "+447700900123"), "form")
    (event,) = warehouse.frame(
        "select email, type::String as type, properties.phone::String as phone from raw.events"
    ).to_dicts()
    assert event == {"email": "", "type": "unsubscribed", "phone": "+447700900123"}
    assert ann.page().boxes["marketing:email"]


def test_what_is_not_offered_cannot_be_chosen_and_odd_forms_change_nothing(
    ann: Person, warehouse: Warehouse
) -> None:
    page = ann.choose("save", "marketing:email", "admin:root", "marketing", ":", "x" * 200)
    assert set(page.boxes) == {"marketing:email", "marketing:sms", "surveys:email"}
    for fields in ([], [("do", "explode")], [("want", "marketing:email")], [("do", "save")] * 300):
        assert ann.ask("POST", fields).status_code == 400
    assert ann.ask("POST", [("do", "x" * 20_000)]).status_code == 413
    assert ann.ask("PUT").status_code == 405
    assert consents(warehouse) == []


def test_a_file_that_says_nonsense_names_the_line(tmp_path: Path) -> None:
    from gateway.preferences import PreferencesSpec

    (tmp_path / "preferences.yaml").write_text("purposes:\n  marketing: {titel: x}\n")
    with pytest.raises(InputError, match=r"preferences\.yaml:2"):
        PreferencesSpec.load(tmp_path)


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.skipif(
    not any(shutil.which(name) for name in BROWSERS), reason="Chromium is not here: apt-get install chromium"
)
def test_pictures_of_the_page() -> None:
    """On a phone and on a desk, light and dark; kept in .mailhouse/pictures, or where MAILHOUSE_TEST_PICTURES says."""
    choices = (
        Choice(("marketing", "email"), "Offers and news", "Twice a week at most.", "Email", is_granted=True),
        Choice(("marketing", "sms"), "Offers and news", "Twice a week at most.", "Text messages", is_granted=False),
        Choice(("surveys", "email"), "Surveys", "Now and then we ask what you think.", "Email", is_granted=True),
    )  # fmt: skip
    folder = Path(os.environ.get("MAILHOUSE_TEST_PICTURES") or PROJECT_ROOT / ".mailhouse" / "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "preferences": preferences_page(ANN, "Example Shop", Preferences(choices)),
        "saved": preferences_page(ANN, "Example Shop", Preferences(choices), "Your choices are saved."),
        "unsubscribed": preferences_page(ANN, "", Preferences(choices[1:2], "unsubscribed")),
        "done": done_page(ANN, "Example Shop"),
    }
    for name, page in pages.items():
        taken = ChromiumScreenshots().take(page.decode(), VIEWS)
        assert set(taken) == {view.name for view in VIEWS}
        for view in VIEWS:
            picture = taken[view.name]
            # as wide as the screen: nothing makes it scroll sideways
            assert int.from_bytes(picture[16:20]) == view.width * (2 if view.is_phone else 1)
            (folder / f"{name}-{view.name}.png").write_bytes(picture)
        assert len({bytes(picture) for picture in taken.values()}) == len(VIEWS)
