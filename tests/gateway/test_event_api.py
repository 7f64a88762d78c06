"""The event API, from request to stream: what is taken is on disk, what is not is said, logged and counted."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from gateway.api import LONGEST_BODY, EventApi
from gateway.app import Gateway
from gateway.appending import Appender
from gateway.clicks import Clicks
from gateway.events import Event
from gateway.keys import make_key
from gateway.metrics import Metrics
from gateway.preferences import PreferenceCentre
from gateway.seen import LedgerSeenStore
from gateway.settings import GatewaySettings
from gateway.streams import SqliteStream
from gateway.unsubscribes import Unsubscribes
from gateway.webhooks import Webhooks
from senders.ledger import Ledger
from warehouse.client import Warehouse
from warehouse.errors import SettingsError

KEY, HASH = make_key()
SLOW_KEY, SLOW_HASH = make_key()
EVENT = {"type": "cart.updated", "email": "ann@example.com", "properties": {"cart_value": 60}}


class Moves:
    """What would move contacts."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], str]] = []

    def move(
        self, journey: str, action: Literal["enter", "leave"], contact: dict[str, str], request_id: str, cause: str,
        now: datetime,
    ) -> Literal["accepted", "unknown_journey", "unknown_contact"]:  # fmt: skip
        if journey == "none":
            return "unknown_journey"
        self.asked.append((journey, action, contact, request_id))
        return "accepted"


class Edge:
    """The whole application in this process, without a warehouse."""

    def __init__(self, stack: ExitStack, folder: Path, **settings: Any) -> None:
        self.settings = GatewaySettings(
            home=folder,
            gateway_keys={"website": HASH, "slow": {"hash": SLOW_HASH, "per_second": 0.1, "burst": 3}},
            gateway_origins="https://shop.example",
            **{"gateway_stream_limit": 2_000, **settings},
        )
        self.moves, self.metrics = Moves(), Metrics()
        ledger = stack.enter_context(Ledger.open(self.settings))
        self.stream = SqliteStream(folder / "stream.db")
        stack.callback(self.stream.close)
        appender = Appender(self.stream, self.metrics, limit=self.settings.gateway_stream_limit)
        appender.start()
        stack.callback(appender.stop)
        warehouse = Warehouse(self.settings.warehouse)
        unsubscribes = Unsubscribes(self.settings, ledger, warehouse, appender.append_now)
        self.app = Gateway(
            EventApi(self.settings, appender, self.metrics, journeys=self.moves),
            unsubscribes,
            PreferenceCentre(self.settings, warehouse, unsubscribes),
            Clicks(self.settings, ledger),
            Webhooks(self.settings, appender.append_now, self.metrics, seen=LedgerSeenStore(ledger)),
            self.stream,
            appender,
            self.metrics,
        )

    def call(
        self, method: str, path: str, *, key: str | None = KEY, headers: Mapping[str, str] | None = None, **more: Any
    ) -> httpx.Response:  # fmt: skip
        given = {"authorization": f"Bearer {key}"} if key is not None else {}

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                return await client.request(method, path, headers={**given, **(headers or {})}, **more)

        return asyncio.run(ask())

    def post(self, path: str = "/v1/events", **more: Any) -> httpx.Response:
        return self.call("POST", path, **more)

    def stored(self) -> list[Event]:
        self.stream.restart()
        batch = self.stream.read(5_000, 0)
        return [Event.decode(payload) for payload in batch.payloads] if batch else []

    def counted(self, kind: str) -> float:
        line = f'mailhouse_gateway_refused_total{{kind="{kind}"}} '
        return float(self.metrics.text().decode().partition(line)[2].split("\n")[0])


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with ExitStack() as stack:
        yield Edge(stack, tmp_path)


def test_one_event(edge: Edge) -> None:
    answer = edge.post(json={**EVENT, "event_id": "e-1"})
    assert answer.status_code == 202
    assert answer.json() == {"accepted": 1, "event_ids": ["e-1"], "refused": []}
    (event,) = edge.stored()
    assert (event.event_id, event.type, event.source, event.email) == (
        "e-1", "cart.updated", "website", "ann@example.com",
    )  # fmt: skip


@pytest.mark.parametrize("wrap", [lambda events: events, lambda events: {"events": events}])
def test_a_batch_says_what_was_taken_and_what_not(
    edge: Edge, wrap: Any, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = {**EVENT, "event_id": "e-1"}, {**EVENT, "email": "private-nobody"}
    with caplog.at_level(logging.INFO):
        answer = edge.post(json=wrap([bad, good, 7, {**good, "event_id": "e-2"}]))
    assert answer.status_code == 202
    said = answer.json()
    assert (said["accepted"], said["event_ids"]) == (2, [None, "e-1", None, "e-2"])
    assert [(one["index"], one["field"]) for one in said["refused"]] == [(0, "email"), (2, "")]
    assert said["refused"][0]["message"] == 'email: "private-nobody" is not an email address.'
    assert [event.event_id for event in edge.stored()] == ["e-1", "e-2"]
    assert edge.counted("invalid") == 2
    assert "2 of 4 events were refused" in caplog.text
    assert "private-nobody" not in caplog.text and KEY not in caplog.text


def test_a_batch_of_which_nothing_is_good(edge: Edge) -> None:
    answer = edge.post(json=[{"type": "x"}])
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "No event was taken.")
    assert edge.post(json={"type": "x"}).json()["error"]["field"] == "type"
    for body in ([], {"events": []}, {"events": 1}, {"events": [EVENT], "more": 1}, "text", None):
        assert edge.post(json=body).status_code == 400, body
    assert edge.post(json=[EVENT] * 1_001).status_code == 413
    assert edge.stored() == []


def test_keys(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    basic = "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()
    assert edge.post(json=EVENT, key=None, headers={"X-API-Key": KEY}).status_code == 202
    assert edge.post(json=EVENT, key=None, headers={"Authorization": basic}).status_code == 202
    other, _ = make_key()
    bad: list[dict[str, str]] = [
        {}, {"Authorization": f"Bearer {other}"}, {"Authorization": "Bearer "}, {"Authorization": HASH},
        {"Authorization": f"Bearer {HASH}"}, {"Authorization": "Basic !!"}, {"X-API-Key": KEY + "x"},
        {"X-API-Key": "x" * 5_000},
    ]  # fmt: skip
    for headers in bad:
        answer = edge.post(json=EVENT, key=None, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "bad_key"), headers
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert edge.counted("bad_key") == len(bad)
    assert len(edge.stored()) == 2
    assert other not in caplog.text
    with pytest.raises(SettingsError, match="MAILHOUSE_GATEWAY_KEYS"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAILHOUSE_GATEWAY_KEYS", '{"website": "secret-in-the-clear"}')
        try:
            GatewaySettings.load()
        except SettingsError as error:
            assert "secret-in-the-clear" not in str(error)
            raise


HOSTILE = {
    "deep": (b"[" * 200_000, {}, 400), "deep objects": (b'{"a":' * 100_000, {}, 400),
    "duplicate keys": (b'{"type":"a.b","type":"c.d","email":"a@b.c"}', {}, 400),
    "huge number": (b'{"type":"a.b","email":"a@b.c","properties":{"a":' + b"9" * 100_000 + b"}}", {}, 400),
    "infinite": (b'{"type":"a.b","email":"a@b.c","properties":{"a":1e999}}', {}, 400),
    "not a number": (b'{"type":"a.b","email":"a@b.c","properties":{"a":NaN}}', {}, 400),
    "NUL": (b'{"type":"a.b","email":"a@b.c","properties":{"a":"\\u0000"}}', {}, 400),
    "half a pair": (b'{"type":"a.b","email":"a@b.c","properties":{"a":"\\ud800"}}', {}, 400),
    "bad UTF-8": (b'{"type":"a.b","email":"a@b.c","properties":{"a":"\xff"}}', {}, 400),
    "zip bomb": (gzip.compress(b" " * 100_000_000, 9), {"content-encoding": "gzip"}, 413),
    "bomb in a bomb": (zlib.compress(zlib.compress(b" " * 50_000_000, 9), 9), {"content-encoding": "deflate"}, 400),
    "no gzip": (b"not packed", {"content-encoding": "gzip"}, 415),
    "cut gzip": (gzip.compress(json.dumps(EVENT).encode())[:-9], {"content-encoding": "gzip"}, 415),
    "two in one": (gzip.compress(b"{}") + gzip.compress(b"{}"), {"content-encoding": "gzip"}, 415),
    "unknown packing": (b"x", {"content-encoding": "br"}, 415),
    "packed twice": (b"x", {"content-encoding": "gzip, gzip"}, 415),
    "too long": (b" " * (LONGEST_BODY + 1), {}, 413),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_logged_and_counted(
    edge: Edge, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    body, headers, status = HOSTILE[name]
    with caplog.at_level(logging.WARNING):
        answer = edge.post(content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert len(answer.content) < 1_000
    assert edge.counted("hostile_body") + edge.counted("too_large") == 1
    assert "refused" in caplog.text
    assert edge.stored() == []


def test_a_packed_body(edge: Edge) -> None:
    for packed, encoding in ((gzip.compress, "gzip"), (zlib.compress, "deflate")):
        body = packed(json.dumps(EVENT).encode())
        assert edge.post(content=body, headers={"content-encoding": encoding}).status_code == 202
    assert len(edge.stored()) == 2


def test_a_key_may_post_so_many(edge: Edge) -> None:
    codes = [edge.post(json=EVENT, key=SLOW_KEY).status_code for _ in range(5)]
    assert codes == [202, 202, 202, 429, 429]
    answer = edge.post(json=[EVENT] * 2, key=SLOW_KEY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert edge.post(json=EVENT).status_code == 202, "other keys have their own"
    assert edge.counted("rate_limited") == 3


def test_when_the_stream_is_full_nothing_is_lost(edge: Edge) -> None:
    batch = [EVENT] * 900
    codes = [edge.post(json=batch).status_code for _ in range(3)]
    assert codes == [202, 202, 429]
    answer = edge.post(json=batch)
    assert (answer.headers["retry-after"], answer.json()["error"]["code"]) == ("2", "stream_full")
    assert len(edge.stored()) == 1_800
    assert edge.counted("stream_full") == 2


def test_segment_in_all_its_ways(edge: Edge) -> None:
    message = {
        "userId": "7",
        "event": "Product Viewed",
        "messageId": "m",
        "timestamp": "2026-01-01T00:00:00Z",
    }
    basic = {"Authorization": "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()}
    for path, body, headers in (
        ("/v1/track", message, basic),
        ("/v1/identify", {"userId": "7", "traits": {"email": "ann@example.com"}}, basic),
        ("/v1/page", {"anonymousId": "v"}, basic), ("/v1/group", {"userId": "7", "groupId": "g"}, basic),
        ("/v1/alias", {"userId": "7", "previousId": "v"}, basic), ("/v1/screen", {"userId": "7"}, basic),
        ("/v1/batch", {"batch": [{**message, "type": "track"}, {"type": "page", "userId": "7"}]}, basic),
        ("/v1/import", {"batch": [{**message, "type": "track"}]}, basic),
        # a script in a page sends its key in the message, and no headers
        ("/v1/t", {**message, "writeKey": KEY}, {"content-type": "text/plain"}),
        ("/v1/b", {"batch": [{**message, "type": "track"}], "writeKey": KEY}, {}),
        ("/v1/m", {"series": []}, {}),
    ):  # fmt: skip
        answer = edge.post(path, json=body, key=None, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"success": True}), path
    kinds = [event.type for event in edge.stored()]
    assert kinds.count("product.viewed") == 5
    assert "contact.identified" in kinds
    answer = edge.post("/v1/track", json={**message, "writeKey": "bad"}, key=None)
    assert answer.status_code == 401
    answer = edge.post("/v1/track", json={**message, "writeKey": KEY}, key="bad")
    assert answer.status_code == 401, "who sends a header is judged by it"


def test_a_part_of_a_batch_of_segment(edge: Edge) -> None:
    answer = edge.post("/v1/batch", json={"batch": [{"type": "page", "userId": "7"}, {"type": "odd"}]})
    assert answer.status_code == 200
    assert answer.json()["refused"][0]["index"] == 1
    assert edge.post("/v1/batch", json={"batch": [{"type": "odd"}]}).json()["success"] is False
    assert edge.post("/v1/batch", json={"messages": []}).status_code == 400
    assert len(edge.stored()) == 1


def test_journeys(edge: Edge) -> None:
    path = "/v1/journeys/welcome/entries"
    entry = {"email": "ann@example.com", "request_id": "r-1"}
    answer = edge.post(path, json=entry)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "request_id": "r-1"})
    out = {"external_id": "7", "source": "shop", "action": "leave", "request_id": "r-2"}
    assert edge.post(path, json=out).status_code == 202
    assert edge.moves.asked == [
        ("welcome", "enter", {"email": "ann@example.com"}, "r-1"),
        ("welcome", "leave", {"external_id": "7", "source": "shop"}, "r-2"),
    ]
    assert edge.post("/v1/journeys/none/entries", json=entry).json()["error"]["code"] == "unknown_journey"
    for bad in ({}, [], {"email": "ann@example.com"}, {**entry, "action": "jump"}, {**entry, "type": "a.b"},
                {"request_id": "r"}):  # fmt: skip
        assert edge.post(path, json=bad).status_code == 400, bad
    assert edge.post(path, json=entry, key=None).status_code == 401
    assert len(edge.moves.asked) == 2


def test_pages_of_the_shop_may_post_and_others_may_not(edge: Edge) -> None:
    answer = edge.call("OPTIONS", "/v1/events", key=None, headers={"origin": "https://shop.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
        204,
        "https://shop.example",
    )
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert edge.post(json=EVENT, headers={"origin": "https://shop.example"}).headers["vary"] == "origin"
    answer = edge.call("OPTIONS", "/v1/events", key=None, headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_addresses_and_methods(edge: Edge) -> None:
    assert edge.call("GET", "/v1/events").status_code == 405
    assert edge.call("GET", "/v1/events").headers["allow"] == "POST, OPTIONS"
    for path in ("/v1/", "/v1/x", "/v1/events/x", "/v1/journeys/A/entries", "/v1"):
        assert edge.post(path, json=EVENT).status_code == 404, path
    answer = edge.call("GET", "/openapi.json", key=None)
    assert (answer.status_code, answer.json()["openapi"]) == (200, "3.1.0")
    assert edge.call("GET", "/healthz", key=None).json() == {"gateway": "ok"}
    counted = edge.call("GET", "/metrics", key=None)
    assert counted.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'mailhouse_gateway_requests_total{area="api",status="405"} 2.0' in counted.text


def test_sql_in_a_property_stays_a_text(edge: Edge) -> None:
    evil = "'); drop table raw.events; --"
    answer = edge.post(json={**EVENT, "properties": {evil: evil}, "external_id": evil})
    assert answer.status_code == 202
    assert json.loads(edge.stored()[0].properties) == {evil: evil}


def test_forged_links_are_counted(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    paths = ["/unsubscribe/" + "A" * 43, "/preferences/" + "A" * 43, "/c/" + "A" * 43 + "/1/AAAA",
             "/o/" + "A" * 43 + ".gif", "/c/x", "/unsubscribe/%00"]  # fmt: skip
    for path in paths:
        assert edge.call("GET", path, key=None).status_code == 404
    assert edge.counted("forged_token") == len(paths)
    assert "did not make" in caplog.text
