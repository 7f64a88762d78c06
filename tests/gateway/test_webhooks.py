"""Providers' calls at the gateway as it runs: stored once, refused if forged, never lost when we fail."""

from __future__ import annotations

import base64
import hmac
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from gateway.events import Event
from gateway.metrics import Metrics
from gateway.seen import LedgerSeenStore
from gateway.settings import GatewaySettings
from gateway.streams import StreamError
from gateway.webhooks import Webhooks
from senders.ledger import Ledger
from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
TWILIO_TOKEN = "12345"


@pytest.fixture(scope="module")
def served(warehouse_server: MailhouseSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = {
        **os.environ, "MAILHOUSE_HOME": str(tmp_path_factory.mktemp("gateway")),
        "MAILHOUSE_WAREHOUSE_PORT": str(warehouse_server.warehouse_port),
        "MAILHOUSE_WEBHOOK_URL": "https://hooks.example.com/in", "MAILHOUSE_WEBHOOK_SECRET": SECRET,
        "MAILHOUSE_WEBHOOK_URL_SECRET": "s3cret", "MAILHOUSE_BASE_URL": "https://m.example",
        "MAILHOUSE_TWILIO_TOKEN": TWILIO_TOKEN, "MAILHOUSE_TWILIO_ACCOUNT": "AC1", "MAILHOUSE_TWILIO_FROM": "MG1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    yield process.stdout.readline().strip().rpartition(" ")[2]
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert "Traceback" not in errors
    assert "s3cret" not in errors and SECRET not in errors, "secrets in the log"


@pytest.fixture
def gateway(served: str, warehouse: Warehouse) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served, timeout=20) as client:
        yield client


def signed(body: bytes, identifier: str, *, at: int | None = None) -> dict[str, str]:
    stamp = str(at or int(time.time()))
    digest = hmac.new(KEY, f"{identifier}.{stamp}.".encode() + body, "sha256").digest()
    return {
        "webhook-id": identifier, "webhook-timestamp": stamp,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }  # fmt: skip


def stored(warehouse: Warehouse, at_least: int = 0, *, source: str = "") -> list[dict[str, object]]:
    """What is stored, of one source if that is said; it goes through the stream, so it is there a moment later, and
    what another test sent may come then.
    """
    until = time.monotonic() + 20
    while True:
        rows = warehouse.frame(
            "select event_id, type, source, email, message_id, esp_event, toJSONString(properties) as properties"
            " from raw.events where source = {source:String} or {source:String} = '' order by event_id",
            {"source": source},
        ).to_dicts()
        if len(rows) >= at_least or time.monotonic() > until:
            return rows
        time.sleep(0.02)


REPORT = {
    "type": "bounced", "event_id": "e-1", "message_id": "id-1", "email": "ann@example.com", "bounce_class": "hard",
    "reject_reason": "bounced", "occurred_at": "2026-06-27T09:00:00Z",
}  # fmt: skip


def test_a_report_is_stored_once_however_often_it_comes(gateway: httpx.Client, warehouse: Warehouse) -> None:
    body = json.dumps(REPORT).encode()
    headers = signed(body, "call-1")
    answer = gateway.post("/webhooks/webhook", content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"result": "stored"})
    again = gateway.post("/webhooks/webhook", content=body, headers=headers)
    assert (again.status_code, again.json()) == (200, {"result": "replayed"})
    # signed anew, so it is another call: the event is the same
    assert gateway.post("/webhooks/webhook", content=body, headers=signed(body, "call-2")).status_code == 200
    (event,) = stored(warehouse, 1)
    assert (event["event_id"], event["type"], event["source"]) == ("webhook:e-1", "bounced", "webhook")
    assert (event["email"], event["message_id"]) == ("ann@example.com", "id-1")
    assert json.loads(str(event["esp_event"])) == REPORT
    assert json.loads(str(event["properties"]))["bounce_class"] == "hard"


def test_what_is_forged_stale_or_unreadable_is_refused(gateway: httpx.Client, warehouse: Warehouse) -> None:
    body = json.dumps({**REPORT, "event_id": "e-2"}).encode()
    good = signed(body, "call-3")
    for headers, content in (
        ({}, body),
        (good, body + b" "),
        ({**good, "webhook-id": "call-4"}, body),
        (signed(body, "call-3", at=int(time.time()) - 400), body),
    ):
        assert gateway.post("/webhooks/webhook", content=content, headers=headers).status_code == 403
    bad = b"[1, 2]"
    assert gateway.post("/webhooks/webhook", content=bad, headers=signed(bad, "call-5")).status_code == 400
    # what another test sent may still be on its way
    assert not any(one["event_id"] == "webhook:e-2" for one in stored(warehouse))


def test_the_address_is_part_of_what_twilio_signs(gateway: httpx.Client, warehouse: Warehouse) -> None:
    target = "/webhooks/twilio?mailhouse_message_id=id-9"
    content = f"https://m.example{target}MessageSidSM1MessageStatusdelivered".encode()
    signature = base64.b64encode(hmac.new(TWILIO_TOKEN.encode(), content, "sha1").digest()).decode()
    form = {"MessageSid": "SM1", "MessageStatus": "delivered"}
    headers = {"X-Twilio-Signature": signature}
    assert gateway.post(target.replace("id-9", "id-8"), data=form, headers=headers).status_code == 403
    assert gateway.post(target, data=form, headers=headers).status_code == 200
    (event,) = stored(warehouse, 1, source="twilio")
    assert (event["type"], event["message_id"]) == ("delivered", "id-9")


def test_the_secret_in_the_address_and_the_check_of_the_address(
    gateway: httpx.Client, warehouse: Warehouse
) -> None:
    event = {
        "RecordType": "Delivery",
        "MessageID": "p-1",
        "Recipient": "bo@example.com",
        "DeliveredAt": "2026-06-27T09:00:00Z",
    }
    assert gateway.get("/webhooks/postmark").status_code == 200
    assert gateway.head("/webhooks/postmark").status_code == 200
    assert gateway.put("/webhooks/postmark").status_code == 405
    assert gateway.post("/webhooks/postmark", json=event).status_code == 403
    assert gateway.post("/webhooks/postmark?secret=s3cret", json=event).status_code == 200
    assert [row["email"] for row in stored(warehouse, 1, source="postmark")] == ["bo@example.com"]


@pytest.mark.parametrize("name", ["maildir", "nonsense", "mandrill", "smtp"])
def test_providers_that_are_not_set_up_are_not_there(gateway: httpx.Client, name: str) -> None:
    assert gateway.post(f"/webhooks/{name}", content=b"[]").status_code == 404
    assert gateway.get(f"/webhooks/{name}").status_code == 404


def test_a_call_that_is_too_long_is_refused(gateway: httpx.Client) -> None:
    assert gateway.post("/webhooks/webhook", content=b" " * (17 << 20)).status_code == 413


def test_when_the_stream_is_away_the_provider_shall_call_again(tmp_path: Path) -> None:
    settings = GatewaySettings(
        home=tmp_path, webhook_url="https://hooks.example.com", webhook_secret=SecretStr(SECRET)
    )
    taken: list[str] = []

    def fail(_: object) -> None:
        raise StreamError("The disk is full.")

    def take(events: Sequence[Event]) -> None:
        taken.extend(event.event_id for event in events)

    body = json.dumps({**REPORT, "event_id": "e-7"}).encode()
    call = ("webhook", body, signed(body, "call-7"), "/webhooks/webhook")
    with Ledger.open(settings) as ledger:
        seen = LedgerSeenStore(ledger)
        assert Webhooks(settings, fail, Metrics(), seen=seen).take(*call) == (503, "not stored")
        assert Webhooks(settings, take, Metrics(), seen=seen).take(*call) == (200, "stored")
        # another gateway on the same ledger
        metrics = Metrics()
        assert Webhooks(settings, take, metrics, seen=LedgerSeenStore(ledger)).take(*call) == (
            200,
            "replayed",
        )
        assert b'refused_total{kind="replay"} 1.0' in metrics.text()
    assert taken == ["webhook:e-7"]
