"""The gateway as it runs: a real server on loopback, a real warehouse, and callers good and bad."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import polars as pl
import pytest

from campaigns.identity import message_id
from senders.ledger import PLAN_COLUMNS, Claim, Ledger
from senders.links import Links
from senders.settings import SenderSettings
from senders.unsubscribe import make_token
from warehouse.client import Warehouse
from warehouse.loads import load_consents
from warehouse.settings import MailhouseSettings

FIXTURE = Path(__file__).parents[3] / "shared/apis/fixtures/unsubscribe/one_click_request.http"
ID = message_id("campaign", "offer", 7, "o")
EMAIL = "Ann@Example.com"


@pytest.fixture(scope="module")
def sender(warehouse_server: MailhouseSettings, tmp_path_factory: pytest.TempPathFactory) -> SenderSettings:
    """Settings whose ledger knows one message."""
    home = tmp_path_factory.mktemp("gateway")
    made = SenderSettings(home=home, warehouse_port=warehouse_server.warehouse_port, company_name="Shop & Co")
    with Ledger.open(made) as ledger:
        run = ledger.begin_run("campaign", "offer", "o", made.now())
        ledger.claim(
            run, Claim(dict.fromkeys(PLAN_COLUMNS, "x"), [ID], [7], [EMAIL], [""], ["{}"]), made.now()
        )
        ledger.end_run(run, "finished", made.now())
    return made


def serve(sender: SenderSettings, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    environment = {
        **os.environ, "MAILHOUSE_HOME": str(sender.home), "MAILHOUSE_WAREHOUSE_PORT": str(sender.warehouse_port),
        "MAILHOUSE_COMPANY_NAME": sender.company_name,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "--port", str(port)], env=environment, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip().rpartition(" ")[2]


@pytest.fixture(scope="module")
def served(sender: SenderSettings) -> Iterator[str]:
    process, url = serve(sender)
    yield url
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode in (0, -15)
    assert "Traceback" not in errors


@pytest.fixture
def quiet(served: str) -> None:
    """What tests before have appended is loaded, so that it does not come into a warehouse that was emptied since."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        lines = (line.split() for line in httpx.get(f"{served}/metrics").text.splitlines() if line[0] != "#")
        said = {name.removeprefix("mailhouse_gateway_events_"): value for name, value in lines}
        appended, *gone = (
            float(said[f"{name}_total"]) for name in ("appended", "loaded", "duplicate", "quarantined")
        )
        if appended <= sum(gone):
            return
        time.sleep(0.02)


@pytest.fixture
def gateway(served: str, quiet: None, warehouse: Warehouse) -> Iterator[httpx.Client]:
    """A client of the running gateway; the warehouse is empty."""
    del quiet
    with httpx.Client(base_url=served, timeout=20) as client:
        yield client


@pytest.fixture
def link(sender: SenderSettings) -> str:
    return f"/unsubscribe/{make_token(sender.signing_key(), ID)}"


def events(warehouse: Warehouse, at_least: int = 0) -> list[dict[str, object]]:
    """What is stored; clicks and opens go through the stream, so they are there a moment later."""
    until = time.monotonic() + 20
    while True:
        rows = warehouse.frame(
            "select event_id, type, source, email, message_id, toJSONString(properties) as properties from raw.events"
        ).to_dicts()
        if len(rows) >= at_least or time.monotonic() > until:
            return rows
        time.sleep(0.02)


def test_looking_changes_nothing(gateway: httpx.Client, link: str, warehouse: Warehouse) -> None:
    for method in ("GET", "HEAD", "GET"):
        answer = gateway.request(method, link)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "set-cookie" not in answer.headers
    assert events(warehouse) == []
    assert gateway.request("HEAD", link).text == ""


class Page(HTMLParser):
    """What a screen reader goes by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def attributes(self, tag: str) -> dict[str, str | None]:
        return next(attributes for name, attributes in self.found if name == tag)


def test_the_page_asks_and_names_nobody_in_full(gateway: httpx.Client, link: str) -> None:
    text = gateway.get(link).text
    page = Page(text)
    assert page.attributes("html")["lang"] == "en"
    assert page.attributes("form")["method"] == "post"
    assert page.attributes("button")["type"] == "submit"
    assert [name for name, _ in page.found if name in ("h1", "main", "title")] == ["title", "main", "h1"]
    assert "script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "Shop &amp; Co" in text
    assert "A•••@Example.com" in text
    assert EMAIL not in text


def test_the_form_unsubscribes(gateway: httpx.Client, link: str, warehouse: Warehouse) -> None:
    page = Page(gateway.get(link).text)
    hidden = page.attributes("input")
    answer = gateway.post(link, data={str(hidden["name"]): str(hidden["value"])})
    assert answer.status_code == 200
    assert "You are unsubscribed" in answer.text
    (stored,) = events(warehouse)
    assert (stored["type"], stored["source"], stored["email"], stored["message_id"]) == (
        "unsubscribed", "gateway", EMAIL, ID,
    )  # fmt: skip
    assert '"method":"form"' in str(stored["properties"])


def test_one_click_is_idempotent_in_both_encodings(
    gateway: httpx.Client, link: str, warehouse: Warehouse
) -> None:
    answers = [
        gateway.post(link, data={"List-Unsubscribe": "One-Click"}),
        gateway.post(link, files={"List-Unsubscribe": (None, "One-Click")}),
        gateway.post(link + "/", data={"List-Unsubscribe": "One-Click"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert all(not answer.history for answer in answers)
    assert len(events(warehouse)) == 1


def test_clicks_at_once_are_one_event(gateway: httpx.Client, link: str, warehouse: Warehouse) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: codes.append(
                gateway.post(link, data={"List-Unsubscribe": "One-Click"}).status_code
            )
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 8
    assert len(events(warehouse)) == 1


@pytest.mark.skipif(not FIXTURE.is_file(), reason="shared/apis/fixtures is not on this machine")
def test_the_request_of_rfc_8058_as_it_is_on_the_wire(
    gateway: httpx.Client, link: str, warehouse: Warehouse
) -> None:
    raw = FIXTURE.read_bytes().replace(b"\r\n", b"\n").rstrip(b"\n").replace(b"\n", b"\r\n")
    raw = re.sub(rb"POST \S+", b"POST " + link.encode(), raw)
    url = gateway.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(raw)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert len(events(warehouse)) == 1


def test_an_old_link_works_again_after_a_new_consent(
    gateway: httpx.Client, link: str, warehouse: Warehouse, sender: SenderSettings
) -> None:
    gateway.post(link, data={"List-Unsubscribe": "One-Click"})
    load_consents(
        warehouse,
        pl.DataFrame(
            {
                "consent_id": ["again"], "email": ["ann@example.com"], "channel": ["email"], "purpose": ["marketing"],
                "is_granted": [True], "basis": ["consent"], "occurred_at": [sender.now()],
            },
            schema_overrides={"occurred_at": pl.Datetime("ms", "UTC")},
        ),
    )  # fmt: skip
    for _ in range(2):
        gateway.post(link, data={"List-Unsubscribe": "One-Click"})
    assert len(events(warehouse)) == 2


def test_forged_and_foreign_links(
    gateway: httpx.Client, link: str, sender: SenderSettings, warehouse: Warehouse
) -> None:
    key = sender.signing_key()
    token = link.rpartition("/")[2]
    other = make_token(key, message_id("campaign", "offer", 8, "o"))
    bad = [
        "/unsubscribe/" + ("A" if token[0] != "A" else "B") + token[1:], "/unsubscribe/" + token[:-1], "/unsubscribe/x",
        "/unsubscribe/" + make_token(b"another key of some length", ID), "/preferences/" + token, "/unsubscribe/",
        "/unsubscribe/" + other[:22] + token[22:], "/unsubscribe/" + "A" * 5000, "/", "/unsubscribe/%00",
        "/../etc/passwd",
    ]  # fmt: skip
    bodies: set[str] = set()
    for path in bad:
        for answer in (gateway.get(path), gateway.post(path, data={"List-Unsubscribe": "One-Click"})):
            assert answer.status_code == 404, path
            bodies.add(answer.text)
    assert len(bodies) == 1
    assert events(warehouse) == []
    # our signature on a message that nobody knows: no success may be claimed
    assert gateway.post("/unsubscribe/" + other, data={"List-Unsubscribe": "One-Click"}).status_code == 503


def test_requests_that_say_nothing_or_too_much(
    gateway: httpx.Client, link: str, warehouse: Warehouse
) -> None:
    assert gateway.post(link).status_code == 400
    assert gateway.post(link, data={"List-Unsubscribe": "No"}).status_code == 400
    assert gateway.post(link, content=b"x" * 100_000).status_code == 413
    assert (
        gateway.post(link, content=b"\xff\xfe", headers={"content-type": "multipart/form-data"}).status_code
        == 400
    )
    assert gateway.put(link).status_code == 405
    assert gateway.delete("/healthz").status_code == 405
    assert events(warehouse) == []


def test_a_message_that_only_the_warehouse_remembers(
    gateway: httpx.Client, sender: SenderSettings, warehouse: Warehouse
) -> None:
    old = message_id("campaign", "offer", 9, "o")
    warehouse.execute(
        "insert into raw.messages (message_id, sequence, contact_id, email, changed_at) values "
        "({id:String}, 1, 9, 'bob@example.com', now64(3))",
        {"id": old},
    )
    path = f"/unsubscribe/{make_token(sender.signing_key(), old)}"
    assert gateway.post(path, data={"List-Unsubscribe": "One-Click"}).status_code == 200
    assert [row["email"] for row in events(warehouse)] == ["bob@example.com"]


def test_clicks_lead_on_and_are_stored(
    gateway: httpx.Client, sender: SenderSettings, warehouse: Warehouse
) -> None:
    links = Links(sender.signing_key(), "")
    start, pixel = links.tracked(ID)
    path = start + links.target(3, "https://shop.example/é?a=1&b=%20#x")
    answer = gateway.get(path, headers={"user-agent": "Firefox"})
    assert (answer.status_code, answer.headers["location"]) == (
        302,
        "https://shop.example/%C3%A9?a=1&b=%20#x",
    )
    assert answer.headers["cache-control"] == "no-store"
    assert gateway.head(path).status_code == 302
    answer = gateway.get(str(pixel))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/gif")
    assert answer.content.startswith(b"GIF89a")
    rows = sorted(events(warehouse, 3), key=lambda row: (str(row["type"]), "HEAD" in str(row)))
    assert [row["type"] for row in rows] == ["clicked", "clicked", "opened"]
    assert {(row["email"], row["message_id"], row["source"]) for row in rows} == {(EMAIL, ID, "gateway")}
    said = [json.loads(str(row["properties"])) for row in rows]
    assert {(one.get("url"), str(one.get("position"))) for one in said[:2]} == {
        ("https://shop.example/é?a=1&b=%20#x", "3")
    }
    assert sorted(str(one["is_machine"]) for one in said) == ["False", "False", "True"]
    assert "Firefox" in {one["user_agent"] for one in said}


def test_nobody_is_led_where_we_did_not_point(
    gateway: httpx.Client, sender: SenderSettings, warehouse: Warehouse
) -> None:
    links = Links(sender.signing_key(), "")
    start, pixel = links.tracked(ID)
    good = links.target(3, "https://shop.example/")
    foreign = Links(b"another key of some length", "")
    bad = [
        start + foreign.target(3, "https://evil.example/"), foreign.tracked(ID)[0] + good, start + "4" + good[1:],
        start + good[:-3] + "AAA", start + "3/" + "A" * 60, start + links.target(1, "javascript:alert(1)"),
        start, start + "3/", foreign.tracked(ID)[1], pixel.replace(".gif", ""), "/c/x/1/y", start + "03" + good[1:],
        f"/c/{make_token(sender.signing_key(), ID)}/{good}",
    ]  # fmt: skip
    for path in bad:
        answer = gateway.get(str(path))
        assert (answer.status_code, answer.headers.get("location")) == (404, None), path
    assert gateway.post(start + good).status_code == 405
    assert events(warehouse) == []


def test_health(gateway: httpx.Client) -> None:
    assert gateway.get("/healthz").json() == {"gateway": "ok"}
    answer = gateway.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"warehouse": "ok", "ledger": "ok", "stream": "ok"})
    assert gateway.head("/readyz").text == ""


def test_no_answer_of_success_while_the_warehouse_is_away(sender: SenderSettings, link: str) -> None:
    process, url = serve(sender.model_copy(update={"warehouse_port": 9}))
    try:
        answer = httpx.post(url + link, data={"List-Unsubscribe": "One-Click"}, timeout=20)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "60"
        assert "<strong>not</strong> unsubscribed" in answer.text
        assert httpx.get(url + link, timeout=20).status_code == 200
        links = Links(sender.signing_key(), url)
        clicked = httpx.get(links.tracked(ID)[0] + links.target(1, "https://shop.example/"), timeout=20)
        assert (clicked.status_code, clicked.headers["location"]) == (302, "https://shop.example/")
        ready = httpx.get(url + "/readyz", timeout=20)
        assert (ready.status_code, ready.json()["warehouse"]) == (503, "does not answer")
        # what needs no warehouse goes on: it is in the stream
        assert httpx.get(url + "/healthz", timeout=20).status_code == 200
        assert "mailhouse_gateway_events_appended_total 1.0" in httpx.get(url + "/metrics", timeout=20).text
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_a_port_in_use_is_said_in_one_sentence(sender: SenderSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process, _ = serve(sender, port)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in errors
    assert "Traceback" not in errors
