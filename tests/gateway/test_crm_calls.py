"""CRM webhooks: signatures as the vendors make them, and events in our words."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.crm_webhooks import HubSpotEvents, PipedriveEvents
from gateway.events import Event
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings
from gateway.webhooks import Webhooks
from senders.providers.webhooks import MemorySeenStore, WebhookError

NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
FIXTURES = Path(__file__).parents[3] / "shared/apis/fixtures"
SECRET = "yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy"
URL = "https://m.example/webhooks/hubspot"
HUBSPOT = HubSpotEvents(SecretStr(SECRET), frozenset({"closedwon", "closedlost"}))
PIPEDRIVE = PipedriveEvents("mailhouse", SecretStr("pass:word"))

CREATED = {
    "eventId": 1, "subscriptionId": 12345, "portalId": 62515, "occurredAt": 1564113600000,
    "subscriptionType": "contact.creation", "attemptNumber": 0, "objectId": 123, "changeSource": "CRM",
}  # fmt: skip


def v3(body: bytes, url: str = URL, at: datetime = NOW, secret: str = SECRET) -> dict[str, str]:
    stamp = str(int(at.timestamp() * 1000))
    digest = hmac.new(secret.encode(), b"POST" + url.encode() + body + stamp.encode(), "sha256").digest()
    return {
        "X-HubSpot-Signature-v3": base64.b64encode(digest).decode(), "X-HubSpot-Request-Timestamp": stamp,
    }  # fmt: skip


def v1(body: bytes) -> dict[str, str]:
    return {"X-HubSpot-Signature": hashlib.sha256(SECRET.encode() + body).hexdigest()}


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the vendors' vectors are not on this machine")
def test_hubspots_own_vectors() -> None:
    for vector in json.loads((FIXTURES / "hubspot/signature_vectors.json").read_text())["vectors"]:
        if vector.get("method", "POST") != "POST":
            continue
        reader = HubSpotEvents(SecretStr(vector["secret"]), frozenset())
        headers = {"X-HubSpot-Signature": vector["expect"], "X-HubSpot-Signature-Version": vector["v"]}
        body = vector["body"].encode()
        assert reader.verify_signature(body, headers, url=vector.get("uri", ""), now=NOW)
        assert not reader.verify_signature(body + b" ", headers, url=vector.get("uri", ""), now=NOW)


def test_hubspots_third_signature_covers_body_address_and_time() -> None:
    body = b"[]"
    good = v3(body)
    assert HUBSPOT.verify_signature(body, good, url=URL, now=NOW)
    assert HUBSPOT.verify_signature(
        body, v3(body, "https://m.example/a:b"), url="https://m.example/a%3Ab", now=NOW
    )
    stale = v3(body, at=NOW - timedelta(minutes=6))
    for headers, content, url in (
        (good, b"[ ]", URL), (good, body, URL + "x"), (stale, body, URL), (v3(body, secret="other"), body, URL),
        ({**good, "X-HubSpot-Request-Timestamp": "x"}, body, URL), ({}, body, URL),
        ({"X-HubSpot-Signature-v3": "", "X-HubSpot-Signature": ""}, body, URL),
    ):  # fmt: skip
        assert not HUBSPOT.verify_signature(content, headers, url=url, now=NOW)


@pytest.mark.parametrize(
    ("change", "type_"),
    [
        ({}, "contact.created"),
        ({"subscriptionType": "contact.propertyChange", "propertyName": "email"}, "contact.updated"),
        ({"subscriptionType": "contact.privacyDeletion"}, "contact.erased"),
        ({"subscriptionType": "deal.propertyChange", "propertyName": "dealstage", "propertyValue": "closedwon"},
         "deal.closed"),
        ({"subscriptionType": "deal.propertyChange", "propertyName": "dealstage", "propertyValue": "new"},
         "deal.updated"),
        ({"subscriptionType": "object.propertyChange", "objectTypeId": "0-27", "propertyName": "hs_task_status",
          "propertyValue": "COMPLETED"}, "task.completed"),
        ({"subscriptionType": "object.creation", "objectTypeId": "0-1"}, "contact.created"),
        ({"subscriptionType": "ticket.creation"}, "unknown"), ({"subscriptionType": 7}, "unknown"),
    ],
)  # fmt: skip
def test_hubspots_words(change: dict[str, Any], type_: str) -> None:
    raw = {**CREATED, **change}
    (row,) = HUBSPOT.parse_webhook(json.dumps([raw]).encode(), {}, now=NOW)
    assert (row["type"], row["source"]) == (type_, "hubspot")
    assert row["external_id"] == ("123" if type_.startswith("contact.") else "")
    assert row["occurred_at"] == datetime(2019, 7, 26, 4, tzinfo=UTC)
    assert json.loads(row["esp_event"]) == raw


@pytest.mark.parametrize(
    ("ids", "left", "merged"),
    [
        ({"primaryObjectId": 123, "mergedObjectIds": [8, 9]}, "123", "8;9"),
        ({"primaryObjectId": 123, "mergedObjectIds": [8], "newObjectId": 500}, "500", "123;8"),
        ({"mergedObjectIds": "8"}, None, None),
    ],
)
def test_a_merge_names_the_record_that_is_left(
    ids: dict[str, Any], left: str | None, merged: str | None
) -> None:
    raw = {**CREATED, "subscriptionType": "contact.merge", **ids}
    (row,) = HUBSPOT.parse_webhook(json.dumps([raw]).encode(), {}, now=NOW)
    properties = json.loads(row["properties"])
    assert (row["type"], properties["contact_id"]) == ("contact.merged", "123")
    assert (properties.get("merged_into"), properties.get("merged")) == (left, merged)


def test_hubspots_events_are_the_same_however_often_they_are_tried() -> None:
    def identity(**change: Any) -> str:
        return HUBSPOT.parse_webhook(json.dumps([{**CREATED, **change}]).encode(), {}, now=NOW)[0]["event_id"]

    assert identity() == identity(attemptNumber=3)
    assert len({identity(), identity(objectId=124), identity(occurredAt=1), identity(propertyName="x")}) == 4


def test_a_replayed_call_is_refused_and_counted(tmp_path: Path) -> None:
    settings = GatewaySettings(
        home=tmp_path, base_url="https://m.example", hubspot_webhook_secret=SecretStr(SECRET)
    )
    metrics, taken = Metrics(), list[Event]()
    webhooks = Webhooks(settings, taken.extend, metrics, seen=MemorySeenStore())
    body = json.dumps([CREATED]).encode()
    headers = v3(body, at=settings.now())
    assert webhooks.take("hubspot", body, headers, "/webhooks/hubspot") == (200, "stored")
    assert webhooks.take("hubspot", body, headers, "/webhooks/hubspot") == (200, "replayed")
    assert webhooks.take("hubspot", body, headers, "/webhooks/hubspot?a=b") == (403, "forged")
    assert webhooks.take("hubspot", b"{", v1(b"{"), "/webhooks/hubspot") == (400, "unreadable")
    assert [event.type for event in taken] == ["contact.created"]
    text = metrics.text()
    for kind in (b"replay", b"bad_signature", b"hostile_body"):
        assert b'refused_total{kind="' + kind + b'"} 1.0' in text
    assert not webhooks.knows("pipedrive"), "its password is not set"


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the vendors' payloads are not on this machine")
def test_pipedrive() -> None:
    payloads = json.loads((FIXTURES / "pipedrive/webhook_v2_payloads.json").read_text())
    found = {
        name: PIPEDRIVE.parse_webhook(json.dumps(payloads[name]).encode(), {}, now=NOW)[0]
        for name in ("deal_won", "person_created", "activity_done")
    }
    assert {name: row["type"] for name, row in found.items()} == {
        "deal_won": "deal.closed", "person_created": "contact.created", "activity_done": "task.completed",
    }  # fmt: skip
    person = found["person_created"]
    assert (person["external_id"], person["email"]) == ("12", "a@example.com")
    assert person["occurred_at"] == datetime(2026, 5, 15, 18, tzinfo=UTC)
    assert json.loads(found["deal_won"]["properties"])["previous_status"] == "open"


def test_pipedrives_password() -> None:
    def basic(pair: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}

    assert PIPEDRIVE.verify_signature(b"{}", basic("mailhouse:pass:word"))
    for headers in (basic("mailhouse:pass"), basic("x:pass:word"), basic(""), {}, {"Authorization": "Basic %%"},
                    {"Authorization": "Bearer pass:word"}):  # fmt: skip
        assert not PIPEDRIVE.verify_signature(b"{}", headers)
    for body in (b"[]", b"{}", b'{"meta": 1}', b"x"):
        with pytest.raises(WebhookError):
            PIPEDRIVE.parse_webhook(body, {}, now=NOW)
