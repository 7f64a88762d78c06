"""What Salesforce reports: outbound messages and change events, forged, repeated, reordered, hostile."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from pydantic import SecretStr

from gateway.app import Gateway
from gateway.crm_webhooks import SalesforceEvents
from gateway.events import Event
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings
from gateway.webhooks import Webhooks
from senders.providers.webhooks import MemorySeenStore, WebhookError
from warehouse.errors import SettingsError

NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
FIXTURES = Path(__file__).parents[3] / "shared/apis/fixtures/salesforce"
SECRET = "secret-in-the-address"
PATH = f"/webhooks/salesforce?secret={SECRET}"
URL = f"https://m.example{PATH}"
ORGANIZATION = "00D000000000001EAA"
CONTACT, DEAL, TASK = "003RM0000068xVCYAY", "006RM000003TtQWYA0", "00TRM000001AbCdYAK"
READER = SalesforceEvents(SecretStr(SECRET), ORGANIZATION, frozenset({"Closed Won", "Closed Lost"}))
XML = {"content-type": "text/xml; charset=utf-8"}


def message(
    *notifications: tuple[str, str, Mapping[str, str]], organization: str = ORGANIZATION, session: str = ""
) -> bytes:
    """An outbound message: (notification's id, object, fields)."""
    inner = "".join(
        f'<Notification><Id>{number}</Id><sObject xsi:type="sf:{kind}"'
        ' xmlns:sf="urn:sobject.enterprise.soap.sforce.com">'
        + "".join(f"<sf:{name}>{escape(value)}</sf:{name}>" for name, value in values.items())
        + "</sObject></Notification>"
        for number, kind, values in notifications
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>'
        '<notifications xmlns="http://soap.sforce.com/2005/09/outbound">'
        f"<OrganizationId>{organization}</OrganizationId><ActionId>04k000000000001AAA</ActionId>"
        f'<SessionId xsi:nil="{"false" if session else "true"}">{session}</SessionId>{inner}</notifications>'
        "</soapenv:Body></soapenv:Envelope>"
    ).encode()


def change(
    entity: str = "Contact", type_: str = "UPDATE", ids: Any = (CONTACT,), fields: Any = (), **payload: Any
) -> dict[str, Any]:
    """A change event."""
    header = {
        "entityName": entity, "recordIds": list(ids), "changeType": type_, "changeOrigin": "",
        "transactionKey": "00051f6b-1111", "sequenceNumber": 1, "commitTimestamp": 1782550800000,
        "changedFields": list(fields),
    }  # fmt: skip
    header |= payload.pop("header", {})
    return {"schema": "x", "payload": {"ChangeEventHeader": header, **payload}, "event": {"replayId": 7}}


def read(body: bytes | dict[str, Any] | list[Any]) -> list[dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert READER.verify_signature(content, {}, url=URL)
    return READER.parse_webhook(content, {}, url=URL, now=NOW)


def test_only_who_knows_the_secret_and_is_the_organisation_is_heard() -> None:
    good = message(("04l1", "Contact", {"Id": CONTACT}))
    for url in ("", "https://m.example/webhooks/salesforce", URL + "x", URL.replace("secret=", "SECRET=")):
        assert not READER.verify_signature(good, {}, url=url)
        assert not READER.verify_signature(b"{}", {}, url=url)
    assert READER.verify_signature(good, {}, url=URL)
    # the id with and without its checksum
    assert READER.verify_signature(message(("1", "Contact", {}), organization=ORGANIZATION[:15]), {}, url=URL)
    for other in ("00D000000000002EAA", "", "00d000000000001EAA"):
        assert not READER.verify_signature(message(("1", "Contact", {}), organization=other), {}, url=URL)
    anyone = SalesforceEvents(SecretStr(SECRET), "", frozenset())
    assert anyone.verify_signature(message(("1", "Contact", {}), organization="00D2"), {}, url=URL)


@pytest.mark.parametrize(
    ("kind", "values", "type_", "external_id"),
    [
        ("Contact", {"Id": CONTACT, "Email": "a@example.com"}, "contact.updated", CONTACT),
        ("Contact", {"Id": CONTACT, "CreatedDate": "2026-06-27T09:00:00.000Z",
                     "LastModifiedDate": "2026-06-27T09:00:00.000Z"}, "contact.created", CONTACT),
        ("Contact", {"Id": CONTACT, "CreatedDate": "2026-06-27T09:00:00.000Z",
                     "LastModifiedDate": "2026-06-27T09:00:01.000Z"}, "contact.updated", CONTACT),
        ("Account", {"Id": "001000000000001AAA"}, "company.updated", ""),
        ("Opportunity", {"Id": DEAL, "StageName": "Prospecting", "ContactId": CONTACT}, "deal.updated", CONTACT),
        ("Opportunity", {"Id": DEAL, "StageName": "Closed Lost"}, "deal.closed", ""),
        ("Opportunity", {"Id": DEAL, "StageName": "Fertig", "IsClosed": "true"}, "deal.closed", ""),
        ("Opportunity", {"Id": DEAL, "StageName": "Closed Won", "IsClosed": "false"}, "deal.updated", ""),
        ("Task", {"Id": TASK, "Status": "Completed", "WhoId": CONTACT}, "task.completed", CONTACT),
        ("Task", {"Id": TASK, "Status": "Not Started", "WhoId": "00Q000000000001AAA"}, "task.updated", ""),
        ("Lead", {"Id": "00Q000000000001AAA", "Email": "a@example.com"}, "unknown", ""),
    ],
)  # fmt: skip
def test_words_of_messages(kind: str, values: dict[str, str], type_: str, external_id: str) -> None:
    (row,) = read(message(("04l000000000001AAA", kind, values)))
    assert (row["type"], row["source"], row["external_id"]) == (type_, "salesforce", external_id)
    assert row["email"] == (values.get("Email", "") if kind == "Contact" else "")
    assert json.loads(row["esp_event"])["sObject"] == values
    Event.of_row({**row, "received_at": NOW})


def test_a_message_is_read_whole_and_its_session_is_not_kept() -> None:
    values = {"Id": CONTACT, "LastName": "Ö & <b>\U0001f600", "SystemModstamp": "2026-06-27T08:59:00.000Z"}
    rows = read(
        message(*((f"04l{number:012d}AAA", "Contact", values) for number in range(100)), session="00D!key")
    )
    assert len({row["event_id"] for row in rows}) == 100
    assert rows[0]["occurred_at"] == datetime(2026, 6, 27, 8, 59, tzinfo=UTC)
    assert json.loads(rows[0]["esp_event"])["sObject"]["LastName"] == values["LastName"]
    assert "00D!key" not in str(rows)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b"<a/>", b"<", message(), message(("1", "Contact", {}))[:-5], b"\xff\xfe", b'<?xml version="9"?>',
        message(("1", "Contact", {})).replace(b"2005/09/outbound", b"2006/09/outbound"),
        message(*((str(number), "Contact", {}) for number in range(1_001))),
        message(("1", "Contact", {})).replace(b"UTF-8", b"EBCDIC-XY"),
        b"<a>" * 60 + b"</a>" * 60, b"{}", b"[]x", b"[1]", b'{"payload": {}}', b'{"payload": 7}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_call_of_salesforce_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookError):
        READER.parse_webhook(body, {}, url=URL, now=NOW)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_no_document_type_and_no_entity_is_read(encoding: str) -> None:
    text = message(("1", "Contact", {"Id": CONTACT})).decode().replace("UTF-8", encoding)
    for declared in (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE x SYSTEM "file:///etc/passwd">',
        "<!DOCTYPE x>",
    ):
        head, _, rest = text.partition("?>")
        body = f"{head}?>{declared}{rest}".encode(encoding)
        with pytest.raises(WebhookError, match="document type"):
            READER.parse_webhook(body, {}, url=URL, now=NOW)
    assert READER.parse_webhook(text.encode(encoding), {}, url=URL, now=NOW)


@pytest.mark.parametrize(
    ("event", "types"),
    [
        (change(type_="CREATE", Email="a@example.com"), ["contact.created"]),
        (change(fields=["Email"], Email="a@example.com"), ["contact.updated"]),
        (change(type_="DELETE"), ["contact.deleted"]), (change(type_="UNDELETE"), ["contact.restored"]),
        (change(type_="GAP_UPDATE"), ["contact.updated"]), (change(type_="GAP_CREATE"), ["contact.created"]),
        (change(type_="GAP_OVERFLOW", ids=["000000000000000AAA"]), ["unknown"]),
        (change(ids=["003*"]), ["unknown"]), (change("Lead"), ["unknown"]),
        (change(ids=()), ["unknown"]),
        (change("Opportunity", ids=[DEAL], fields=["StageName"], StageName="Closed Won"), ["deal.closed"]),
        (change("Opportunity", ids=[DEAL], fields=["StageName", "IsClosed"], StageName="X", IsClosed=True),
         ["deal.closed"]),
        (change("Opportunity", ids=[DEAL], fields=["StageName"], StageName="Proposal"), ["deal.updated"]),
        # closed before, and what changed is something else
        (change("Opportunity", ids=[DEAL], fields=["Amount"], Amount=7, IsClosed=True), ["deal.updated"]),
        (change("Opportunity", "CREATE", [DEAL], StageName="Closed Won", IsClosed=True),
         ["deal.created", "deal.closed"]),
        (change("Opportunity", "GAP_UPDATE", [DEAL]), ["deal.updated"]),
        (change("Task", ids=[TASK], fields=["Status", "IsClosed"], Status="Done", IsClosed=True), ["task.completed"]),
        (change("Task", ids=[TASK], fields=["Status"], Status="Completed"), ["task.completed"]),
        (change("Task", "CREATE", [TASK], Status="Completed", IsClosed=True), ["task.created", "task.completed"]),
        # as the other event bus has it: a bitmap, and null for what has not changed
        (change("Opportunity", ids=[DEAL], fields=["0x1C"], StageName="Closed Won", IsClosed=True, Amount=None),
         ["deal.closed"]),
        (change("Opportunity", ids=[DEAL], fields=["0x02"], StageName=None, IsClosed=None, Amount=7),
         ["deal.updated"]),
    ],
)  # fmt: skip
def test_words_of_change_events(event: dict[str, Any], types: list[str]) -> None:
    for form in (event, {"channel": "/data/ContactChangeEvent", "data": event}, event["payload"], [event]):
        rows = read(form)
        assert [row["type"] for row in rows] == types
        assert len({row["event_id"] for row in rows}) == len(types)
        for row in rows:
            Event.of_row({**row, "received_at": NOW})
            assert row["occurred_at"] == datetime(2026, 6, 27, 9, tzinfo=UTC)
    if event["payload"]["ChangeEventHeader"]["changeType"].startswith("GAP_"):
        assert json.loads(rows[0]["properties"])["gap"] == "true"


def test_a_change_of_many_records_is_an_event_of_each() -> None:
    ids = [f"003{number:012d}AAA" for number in range(50)]
    rows = read(change(ids=ids, fields=["MailingCity"], MailingCity="Graz"))
    assert [row["external_id"] for row in rows] == ids
    assert len({row["event_id"] for row in rows}) == 50


def test_our_own_writing_is_no_event() -> None:
    header = {"changeOrigin": "com/salesforce/api/rest/63.0;client=mailhouse"}
    assert read(change(header=header)) == []
    header["changeOrigin"] = "com/salesforce/api/rest/63.0;client=other"
    assert len(read(change(header=header))) == 1


def test_events_are_the_same_however_they_come() -> None:
    first, second = change(fields=["Email"]), change(fields=["Email"], header={"sequenceNumber": 2})
    ids = [read(one)[0]["event_id"] for one in (first, second)]
    assert len(set(ids)) == 2
    # replayed from the bus, the same event has another place in it
    assert read([{**second, "event": {"replayId": 99}}, first])[0]["event_id"] == ids[1]
    notification = ("04l000000000001AAA", "Contact", {"Id": CONTACT, "LastName": "A"})
    again = ("04l000000000001AAA", "Contact", {"Id": CONTACT, "LastName": "B"})
    other = ("04l000000000002AAA", "Contact", {"Id": CONTACT, "LastName": "A"})
    (a,), (b,), (c,) = (read(message(one)) for one in (notification, again, other))
    # tried again, a message has the latest data
    assert a["event_id"] == b["event_id"] != c["event_id"]


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the collected payloads are not on this machine")
def test_the_collected_payloads() -> None:
    (row,) = read((FIXTURES / "outbound_message.xml").read_bytes())
    assert (row["type"], row["external_id"], row["email"]) == ("contact.updated", CONTACT, "a@example.com")
    found = {
        name: read(event)[0]
        for name, event in json.loads((FIXTURES / "cdc_events.json").read_text()).items()
        if name != "src"
    }
    assert {name: row["type"] for name, row in found.items()} == {
        "contact_create": "contact.created", "opportunity_closed": "deal.closed", "gap_event": "contact.updated",
    }  # fmt: skip
    assert found["contact_create"]["email"] == "a@example.com"
    assert found["contact_create"]["occurred_at"] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert json.loads(found["opportunity_closed"]["properties"])["deal_id"] == DEAL
    expected = (FIXTURES / "outbound_ack.xml").read_bytes().replace(b"\n", b"")
    answer = READER.acknowledgement(b"<x/>")
    assert answer is not None and answer[0] == expected


def test_calls_at_the_gateway(tmp_path: Path) -> None:
    settings = GatewaySettings(
        home=tmp_path, base_url="https://m.example", salesforce_webhook_secret=SecretStr(SECRET),
        salesforce_organization_id=ORGANIZATION,
    )  # fmt: skip
    metrics, taken = Metrics(), list[Event]()
    webhooks = Webhooks(settings, taken.extend, metrics, seen=MemorySeenStore())
    gateway = Gateway.__new__(Gateway)
    gateway.webhooks, gateway.metrics = webhooks, metrics

    def post(body: bytes, target: str = PATH) -> tuple[int, bytes, str]:
        path, _, query = target.partition("?")
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(part: Any) -> None:
            sent.append(part)

        scope = {
            "type": "http", "method": "POST", "path": path, "query_string": query.encode(), "headers": [],
            "raw_path": path.encode(),
        }  # fmt: skip
        asyncio.run(gateway(scope, receive, send))
        headers = dict(sent[0]["headers"])
        return sent[0]["status"], sent[1]["body"], headers[b"content-type"].decode()

    body = message(("04l000000000001AAA", "Contact", {"Id": CONTACT}))
    status, answer, type_ = post(body)
    assert (status, type_) == (200, "text/xml; charset=utf-8")
    assert b"<Ack>true</Ack>" in answer
    # one that did not hear the answer asks for it again
    assert post(body) == (status, answer, type_)
    assert post(json.dumps(change()).encode()) == (200, b'{"result": "stored"}', "application/json")
    assert [event.type for event in taken] == ["contact.updated", "contact.updated"]
    for forged, target in (
        (body, "/webhooks/salesforce"),
        (message(("1", "Contact", {}), organization="00D000000000002EAA"), PATH),
    ):
        status, answer, _ = post(forged, target)
        assert status == 403 and b"Ack" not in answer
    assert post(b"<x/>")[0] == 400
    assert len(taken) == 2


def test_order_and_repetition_make_no_difference() -> None:
    calls: list[Any] = [
        change(type_="CREATE", header={"transactionKey": "a"}),
        change(fields=["Email"], header={"transactionKey": "b"}),
        change(
            "Opportunity",
            ids=[DEAL],
            fields=["StageName"],
            StageName="Closed Won",
            header={"transactionKey": "c"},
        ),
        message(("04l000000000001AAA", "Task", {"Id": TASK, "Status": "Completed"})),
        message(
            ("04l000000000001AAA", "Task", {"Id": TASK, "Status": "Completed"}),
            ("04l000000000002AAA", "Contact", {"Id": CONTACT}),
        ),
    ]
    order = random.Random(7)
    results = set()
    for shuffled in itertools.islice(itertools.permutations(calls), 0, 120, 7):
        repeated = [*shuffled, *order.sample(calls, 3)]
        stored = {row["event_id"]: row["type"] for call in repeated for row in read(call)}
        results.add(tuple(sorted(stored.items())))
    assert len(results) == 1
    assert sorted(type_ for _, type_ in results.pop()) == [
        "contact.created", "contact.updated", "contact.updated", "deal.closed", "task.completed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"salesforce_webhook_secret": SecretStr("x"), "salesforce_organization_id": "001000000000001AAA"}],
)
def test_settings_that_are_missing_or_wrong_are_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="MAILHOUSE_SALESFORCE_"):
        SalesforceEvents.from_settings(GatewaySettings(home=tmp_path, **changes))
