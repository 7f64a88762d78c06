"""Webhook calls of all providers: what they mean, and which of them are refused."""

from __future__ import annotations

import base64
import functools
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from vendor_server import VENDORS

from senders.message import EventType
from senders.providers import PROVIDERS, WEBHOOK_READERS, get_capabilities, get_webhook_reader
from senders.providers.amazon_ses import AmazonSesEvents
from senders.providers.base import NotSupportedError, WebhookReader
from senders.providers.bombbomb import BombBombProvider
from senders.providers.mailchimp import MailchimpProvider
from senders.providers.mandrill import MandrillProvider
from senders.providers.postmark import PostmarkEvents
from senders.providers.sendgrid import SendGridProvider
from senders.providers.slack import SlackProvider
from senders.providers.twilio import TwilioProvider
from senders.providers.webhook import WebhookProvider
from senders.providers.webhooks import (
    MemorySeenStore,
    SeenCalls,
    WebhookError,
    form_content,
    hmac_base64,
    hmac_hex,
    receive,
)
from senders.settings import SenderSettings
from warehouse.errors import SettingsError
from warehouse.loads import EVENT_COLUMNS, MAIL_EVENT_TYPES

NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
TOPIC = "arn:aws:sns:us-east-1:1234567890:SES_Events"
CASES = json.loads((VENDORS / "esp_webhook_cases.json").read_text())
READERS: dict[str, WebhookReader] = {
    "sendgrid": SendGridProvider(SecretStr("k")),
    "amazon_ses": AmazonSesEvents(TOPIC),
    "postmark": PostmarkEvents(SecretStr("s")),
}


def call_of(case: dict[str, Any]) -> bytes:
    payload = case["payload"]
    value = payload.get("raw_sns_message") or payload.get("raw_event") or payload.get("raw_events")
    # the cases' authors put their own id into custom_args under their own name
    return json.dumps(value).replace('"anymail_id"', '"mailhouse_message_id"').encode()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['esp']}-{case['test'].rpartition('.')[2]}")
def test_every_case_means_what_is_expected(case: dict[str, Any]) -> None:
    expected = case["expected"]
    rows = READERS[case["esp"]].parse_webhook(call_of(case), {}, now=NOW)
    row = next(row for row in rows if row["email"] == expected.get("recipient", row["email"]))
    properties = json.loads(row["properties"])
    assert row.keys() <= EVENT_COLUMNS.keys() and row["type"] in MAIL_EVENT_TYPES
    found = {
        "event_type": row["type"],
        "timestamp": row["occurred_at"].isoformat(),
        "event_id": row["event_id"].split(":")[1],
        "recipient": row["email"],
        "tags": properties.get("tags", []),
        "metadata": json.loads(json.loads(properties.get("metadata", "{}")).get("x-metadata", "{}"))
        or json.loads(properties.get("metadata", "{}")),
        "description": properties.get("description", ""),
        "mta_response": properties.get("mta_response"),
        "user_agent": properties.get("user_agent"),
        "reject_reason": properties.get("reject_reason"),
        "click_url": properties.get("url"),
    }
    for name, value in expected.items():
        if name == "message_id":
            ids = {row["message_id"], properties.get("provider_message_id"), properties.get("smtp_id")}
            assert value in ids
        else:
            assert found[name] == value, name
    assert json.loads(row["esp_event"])


def test_a_message_id_that_we_wrote_comes_back_from_the_header() -> None:
    own = "0f2b3c4d-1111-5222-8333-444455556666"
    (row,) = READERS["sendgrid"].parse_webhook(
        json.dumps([{"event": "delivered", "smtp-id": f"<{own}@example.com>"}]).encode(), {}
    )
    assert row["message_id"] == own
    event = {
        "eventType": "Send",
        "mail": {"headers": [{"name": "Message-ID", "value": f"<{own}@example.com>"}]},
    }
    (row,) = READERS["amazon_ses"].parse_webhook(json.dumps({"Message": json.dumps(event)}).encode(), {})
    assert row["message_id"] == own


# signatures, age, repetition


def sns_call(key: rsa.RSAPrivateKey, at: datetime, **more: str) -> bytes:
    message = {
        "Type": "Notification", "MessageId": "m-1", "TopicArn": TOPIC, "Message": '{"eventType":"Send"}',
        "Timestamp": at.strftime("%Y-%m-%dT%H:%M:%S.000Z"), "SignatureVersion": "2",
        "SigningCertURL": "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-1.pem", **more,
    }  # fmt: skip
    signed = "".join(
        f"{name}\n{message[name]}\n" for name in ("Message", "MessageId", "Timestamp", "TopicArn", "Type")
    )
    algorithm = hashes.SHA1() if message["SignatureVersion"] == "1" else hashes.SHA256()
    message["Signature"] = base64.b64encode(key.sign(signed.encode(), padding.PKCS1v15(), algorithm)).decode()
    return json.dumps(message).encode()


def certificate(key: rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=9))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_sns_messages_are_believed_only_of_our_topic_under_amazons_certificate() -> None:
    key = rsa.generate_private_key(65537, 2048)
    fetched: list[str] = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return certificate(key)

    reader = AmazonSesEvents(TOPIC, fetch=fetch)
    good = sns_call(key, NOW)
    assert reader.verify_signature(good, {}, now=NOW)
    assert reader.verify_signature(sns_call(key, NOW, SignatureVersion="1"), {}, now=NOW)
    assert fetched == ["https://sns.us-east-1.amazonaws.com/SimpleNotificationService-1.pem"], "kept"
    assert not reader.verify_signature(good.replace(b"Send", b"Open"), {}, now=NOW)
    assert not reader.verify_signature(good, {}, now=NOW + timedelta(hours=26)), "stale"
    assert not reader.verify_signature(sns_call(key, NOW, TopicArn="arn:aws:sns:eu:666:x"), {}, now=NOW)
    for place in (
        "https://sns.us-east-1.amazonaws.com.evil.example/x.pem",
        "http://sns.us-east-1.amazonaws.com/x.pem",
        "https://evil.example/sns.us-east-1.amazonaws.com/x.pem",
        "https://sns.us-east-1.amazonaws.com@evil.example/x.pem",
    ):
        assert not reader.verify_signature(sns_call(key, NOW, SigningCertURL=place), {}, now=NOW)
    assert len(fetched) == 1, "nothing was fetched from elsewhere"
    assert not reader.verify_signature(b"no json", {}, now=NOW)
    with pytest.raises(SettingsError, match="MAILHOUSE_AMAZON_SES_TOPIC"):
        AmazonSesEvents("").verify_signature(good, {})


def mandrill_call(events: Any, key: str = "hook", url: str = "https://m.example/webhooks/mandrill") -> Any:
    content = json.dumps(events)
    signature = hmac_base64(key.encode(), form_content(url, [("mandrill_events", content)]), "sha1")
    return urlencode({"mandrill_events": content}).encode(), {"X-Mandrill-Signature": signature}, url


def test_mandrills_signature_covers_address_and_fields() -> None:
    reader = MandrillProvider(SecretStr("k"), webhook_key=SecretStr("hook"))
    body, headers, url = mandrill_call([{"event": "open"}])
    assert reader.verify_signature(body, headers, url=url)
    assert not reader.verify_signature(body, headers, url=url + "/")
    assert not reader.verify_signature(body.replace(b"open", b"spam"), headers, url=url)
    assert not reader.verify_signature(body, {}, url=url)
    empty, headers, _ = mandrill_call([], key="test-webhook")
    assert reader.verify_signature(empty, headers, url=url), "the call by which Mandrill tries the address"
    body, headers, _ = mandrill_call([{"event": "open"}], key="test-webhook")
    assert not reader.verify_signature(body, headers, url=url), "which has no events"


def test_mandrills_events() -> None:
    events = json.loads((VENDORS / "mandrill/events_synthetic.json").read_text())["events"]
    rows = MandrillProvider(SecretStr("k")).parse_webhook(mandrill_call(events)[0], {})
    assert [row["type"] for row in rows] == [
        "deferred", "bounced", "opened", "complained", "unsubscribed", "rejected"
    ]  # fmt: skip
    bounce = json.loads(rows[1]["properties"])
    assert (bounce["bounce_class"], bounce["mta_response"]) == ("soft", "smtp;552 5.2.2 Over Quota")
    assert rows[0]["email"] == "example.webhook@mandrillapp.com"
    assert len({row["event_id"] for row in rows}) == 6
    again = MandrillProvider(SecretStr("k")).parse_webhook(mandrill_call(events)[0], {})
    assert [row["event_id"] for row in rows] == [row["event_id"] for row in again], (
        "the same events, the same ids"
    )


def test_a_secret_in_the_address_stands_in_for_a_signature() -> None:
    reader = PostmarkEvents(SecretStr("s3cret"))
    assert reader.verify_signature(b"{}", {}, url="https://m.example/webhooks/postmark?secret=s3cret")
    assert not reader.verify_signature(b"{}", {}, url="https://m.example/webhooks/postmark?secret=other")
    assert not reader.verify_signature(b"{}", {}, url="https://m.example/webhooks/postmark")
    with pytest.raises(SettingsError, match="MAILHOUSE_WEBHOOK_URL_SECRET"):
        PostmarkEvents(None).verify_signature(b"{}", {}, url="?secret=")


def test_mailchimps_calls() -> None:
    payloads = json.loads((VENDORS / "mailchimp/webhook_payloads.json").read_text())
    reader = MailchimpProvider(
        SecretStr("k-us1"),
        audience="a",
        url_secret=SecretStr("s"),
        webhook_secret=SecretStr("mc-test-secret"),
    )
    rows = {word: reader.parse_webhook(payloads[word].encode(), {})[0] for word in payloads["events"]}
    assert {word: row["type"] for word, row in rows.items()} == {
        "subscribe": "subscribed", "unsubscribe": "unsubscribed", "profile": "unknown", "cleaned": "bounced",
        "upemail": "unknown", "campaign": "unknown",
    }  # fmt: skip
    assert rows["unsubscribe"]["email"] == "api+unsub@mailchimp.com"
    assert rows["unsubscribe"]["occurred_at"] == datetime(2009, 3, 26, 21, 40, 57, tzinfo=UTC)
    abuse = payloads["cleaned"].replace("hard", "abuse").encode()
    assert reader.parse_webhook(abuse, {})[0]["type"] == "complained"

    url, body = "https://m.example/webhooks/mailchimp?secret=s", payloads["unsubscribe"].encode()
    stamp = str(int(NOW.timestamp()))
    header = {
        "X-Mailchimp-Signature": f"t={stamp},v1={hmac_hex(b'mc-test-secret', stamp.encode() + b'.' + body)}"
    }
    assert reader.verify_signature(body, header, url=url, now=NOW)
    assert not reader.verify_signature(body, header, url=url.replace("=s", "=t"), now=NOW)
    assert not reader.verify_signature(body, {}, url=url, now=NOW)
    assert not reader.verify_signature(body + b"&x=1", header, url=url, now=NOW)
    assert not reader.verify_signature(body, header, url=url, now=NOW + timedelta(minutes=6)), "stale"
    unsigned = MailchimpProvider(SecretStr("k-us1"), audience="a", url_secret=SecretStr("s"))
    assert unsigned.verify_signature(body, {}, url=url)


def test_twilios_vector_and_callbacks() -> None:
    case = json.loads((VENDORS / "twilio/signature_vector.json").read_text())
    reader = TwilioProvider("AC1", SecretStr(case["auth_token"]), sender="MG1")
    body, headers = urlencode(case["params"]).encode(), {"x-twilio-signature": case["X-Twilio-Signature"]}
    assert reader.verify_signature(body, headers, url=case["url"])
    assert not reader.verify_signature(body, headers, url=case["url"] + "&baz=3")
    assert not reader.verify_signature(body + b"&Digits=5", headers, url=case["url"])
    assert not reader.verify_signature(body, {}, url=case["url"])

    def row(url: str = "", **fields: str) -> dict[str, Any]:
        return reader.parse_webhook(
            urlencode({"MessageSid": "SM1", **fields}).encode(), {}, url=url, now=NOW
        )[0]

    url = "https://m.example/webhooks/twilio?mailhouse_message_id=id-1"
    found = row(url, MessageStatus="undelivered", ErrorCode="30005", To="+447700900123")
    properties = json.loads(found["properties"])
    assert (found["type"], found["message_id"], found["occurred_at"]) == ("bounced", "id-1", NOW)
    assert (properties["reject_reason"], properties["bounce_class"]) == ("invalid", "hard")
    assert properties["phone"] == "+447700900123"
    assert row(MessageStatus="partially_delivered")["type"] == "unknown"
    stop = row(SmsStatus="received", OptOutType="STOP", From="+447700900123", To="+15005550006")
    assert stop["type"] == "unsubscribed" and json.loads(stop["properties"])["phone"] == "+447700900123"
    for body, kind in (
        ("Stop ", "unsubscribed"),
        ("unstop", "subscribed"),
        ("please stop", "inbound"),
        ("", "inbound"),
    ):
        reply = row(SmsStatus="received", Body=body, From="+447700900123", To="+15005550006")
        assert reply["type"] == kind and json.loads(reply["properties"])["phone"] == "+447700900123"
    helped = row(SmsStatus="received", OptOutType="HELP", Body="STOP", From="+447700900123")
    assert helped["type"] == "inbound"
    # Twilio did not send it since the number opted out: that is of the number, too
    body = urlencode(
        {"MessageSid": "SM1", "MessageStatus": "undelivered", "ErrorCode": "21610", "To": "+447700900123"}
    ).encode()
    bounced, opted_out = reader.parse_webhook(body, {}, url=url, now=NOW)
    assert (bounced["type"], bounced["message_id"]) == ("bounced", "id-1")
    assert json.loads(bounced["properties"])["bounce_class"] == "soft"
    assert (opted_out["type"], opted_out["message_id"], opted_out["email"]) == ("unsubscribed", "", "")
    assert json.loads(opted_out["properties"])["phone"] == "+447700900123"
    assert opted_out["event_id"] != bounced["event_id"]
    ids = {row(MessageStatus=word)["event_id"] for word in ("sent", "delivered")}
    assert ids == {"twilio:SM1:sent:", "twilio:SM1:delivered:"}


def test_slacks_vector() -> None:
    case = json.loads((VENDORS / "slack/signature_vector.json").read_text())
    reader = SlackProvider(
        SecretStr("https://hooks.slack.example/x"), signing_secret=SecretStr(case["secret"])
    )
    headers = {name: value for name, value in case.items() if name.startswith("X-Slack")}
    body, then = case["body"].encode(), datetime.fromtimestamp(int(case["X-Slack-Request-Timestamp"]), UTC)
    assert reader.verify_signature(body, headers, now=then)
    assert not reader.verify_signature(body, headers, now=then + timedelta(seconds=301)), "stale"
    assert not reader.verify_signature(body + b"x", headers, now=then)
    assert not reader.verify_signature(body, {**headers, "X-Slack-Request-Timestamp": "1531420619"}, now=then)
    (row,) = reader.parse_webhook(body, headers)
    assert (row["type"], row["occurred_at"]) == ("unknown", then)
    assert json.loads(row["properties"])["command"] == "/webhook-collect"
    assert "xyzz0WbapA4vBCDEFasx0q6G" not in row["esp_event"], "Slack's token is a secret"


def test_the_vector_of_standard_webhooks() -> None:
    case = json.loads((VENDORS / "webhook/signature_vector.json").read_text())
    reader = WebhookProvider("https://hooks.example.com", SecretStr(case["secret"]))
    headers = {name: value for name, value in case.items() if name.startswith("webhook-")}
    body, then = case["body"].encode(), datetime.fromtimestamp(int(case["webhook-timestamp"]), UTC)
    assert reader.verify_signature(body, headers, now=then)
    several = {**headers, "webhook-signature": f"v1,AAAA v2,xx {headers['webhook-signature']}"}
    assert reader.verify_signature(body, several, now=then)
    assert not reader.verify_signature(body, headers, now=then + timedelta(seconds=301)), "stale"
    assert not reader.verify_signature(body, headers, now=then - timedelta(seconds=301)), "from the future"
    assert not reader.verify_signature(body, {**headers, "webhook-id": "msg_2"}, now=then)
    assert not reader.verify_signature(body + b" ", headers, now=then)
    report = {
        "type": "bounced", "message_id": "id-1", "email": "a@b.example", "bounce_class": "hard",
        "reject_reason": "bounced", "occurred_at": "2026-06-27T10:00:00+01:00",
    }  # fmt: skip
    rows = reader.parse_webhook(json.dumps([report, {"type": "order.placed"}]).encode(), headers)
    assert [row["type"] for row in rows] == ["bounced", "unknown"]
    assert rows[0]["occurred_at"] == NOW and rows[0]["message_id"] == "id-1"
    assert json.loads(rows[0]["properties"])["bounce_class"] == "hard"
    assert rows[0]["event_id"] != rows[1]["event_id"]


def test_bombbombs_calls() -> None:
    payloads = json.loads((VENDORS / "bombbomb/webhook_payloads.json").read_text())
    reader = BombBombProvider(SecretStr("k"), video="v", url_secret=SecretStr("s"))
    types: dict[str, str] = {}
    for name, payload in payloads.items():
        if isinstance(payload, dict):
            (row,) = reader.parse_webhook(json.dumps(payload).encode(), {}, now=NOW)
            types[name] = row["type"]
            assert row["occurred_at"].year == 2015
    assert types == {
        "TestWebhook": "unknown", "ContactAddedToList": "unknown", "ContactSuppressed": "unsubscribed",
        "ContactUnsubscribed": "unsubscribed", "ContactUpdated": "unknown", "EmailSent": "sent",
    }  # fmt: skip
    assert reader.verify_signature(b"{}", {}, url="https://m.example/webhooks/bombbomb?secret=s")
    assert not reader.verify_signature(b"{}", {}, url="https://m.example/webhooks/bombbomb")


def test_a_call_is_taken_once_and_again_only_if_it_was_not_stored() -> None:
    reader = MandrillProvider(SecretStr("k"), webhook_key=SecretStr("hook"))
    seen = SeenCalls(MemorySeenStore(), remembered=timedelta(days=1))
    body, headers, url = mandrill_call([{"event": "open", "ts": 1_780_000_000}])
    first = receive(reader, body, headers, seen=seen, now=NOW, url=url)
    assert first.rows[0]["received_at"] == NOW
    # the warehouse was down: Mandrill calls again, and is heard
    second = receive(reader, body, headers, seen=seen, now=NOW, url=url)
    assert second == first
    seen.note(second.key, NOW)
    with pytest.raises(WebhookError) as replayed:
        receive(reader, body, headers, seen=seen, now=NOW + timedelta(hours=1), url=url)
    assert replayed.value.reason == "replayed"
    assert receive(reader, body, headers, seen=seen, now=NOW + timedelta(days=2), url=url).rows
    with pytest.raises(WebhookError) as forged:
        receive(reader, body, {"X-Mandrill-Signature": "AAAA"}, seen=seen, now=NOW, url=url)
    assert forged.value.reason == "forged"
    bad, headers, _ = mandrill_call({"not": "a list"})
    with pytest.raises(WebhookError) as unreadable:
        receive(reader, bad, headers, seen=seen, now=NOW, url=url)
    assert unreadable.value.reason == "unreadable"


def test_a_repeated_call_cannot_be_dressed_up_as_another() -> None:
    case = json.loads((VENDORS / "sendgrid/signature_vector.json").read_text())
    reader = SendGridProvider(SecretStr("k"), webhook_key=case["public_key"])
    body, then = case["body"].encode(), datetime.fromtimestamp(int(case["timestamp"]), UTC)
    headers = {
        "X-Twilio-Email-Event-Webhook-Signature": case["signature"],
        "X-Twilio-Email-Event-Webhook-Timestamp": case["timestamp"],
    }
    seen = SeenCalls(MemorySeenStore())
    seen.note(receive(reader, body, headers, seen=seen, now=then).key, then)
    # with (r, s) the pair (r, n - s) is a good signature of the same bytes
    r, s = decode_dss_signature(base64.b64decode(case["signature"]))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = base64.b64encode(encode_dss_signature(r, order - s)).decode()
    for changed in (
        headers,
        {**headers, "X-Other-Signature": "1", "X-Other-Timestamp": "2"},
        {name.lower(): value for name, value in headers.items()},
        {**headers, "X-Twilio-Email-Event-Webhook-Signature": other},
    ):
        assert reader.verify_signature(body, changed, now=then)
        with pytest.raises(WebhookError) as repeated:
            receive(reader, body, changed, seen=seen, now=then)
        assert repeated.value.reason == "replayed"


def test_the_memory_of_calls_has_a_bound() -> None:
    store = MemorySeenStore(most=3)
    for number in range(5):
        store.add(str(number), NOW + timedelta(hours=1))
    assert [store.has(str(number), NOW) for number in range(5)] == [False, False, True, True, True]
    assert not store.has("4", NOW + timedelta(hours=2))


@functools.cache
def all_readers() -> list[WebhookReader]:
    ends = ("_key", "_secret", "_token")
    values = {name: "x-1" for name in SenderSettings.model_fields if name.endswith(ends)} | EXTRA
    settings = SenderSettings(**values)  # pyright: ignore[reportArgumentType]
    names = [name for name in PROVIDERS if get_capabilities(name).has_webhooks]
    return [get_webhook_reader(settings, name) for name in (*names, *WEBHOOK_READERS)]


EXTRA: dict[str, Any] = {
    "mailchimp_key": "x-us1", "mailchimp_audience": "a", "bombbomb_video": "v", "twilio_account": "AC1",
    "twilio_from": "MG1", "slack_url": "https://hooks.slack.example/x", "webhook_url": "https://hooks.example.com",
    "webhook_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["event", "type", "msg", "mail", "headers", "bounce", "timestamp", "ts", "reason", "Message", "metadata",
             "RecordType", "data", "payload", "contacts", "email", "tags", "eventName", "category", "bouncedRecipients"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON | st.lists(JSON, max_size=3), st.booleans())
def test_whatever_comes_gives_rows_or_one_kind_of_error(value: Any, as_form: bool) -> None:
    content = json.dumps(value)
    body = (
        urlencode({"mandrill_events": content, "type": content, "data[email]": content})
        if as_form
        else content
    )
    for reader in all_readers():
        try:
            rows = reader.parse_webhook(body.encode(), {"webhook-id": "m"}, now=NOW)
        except WebhookError:
            continue
        for row in rows:
            assert row["type"] in set(EventType) and row["event_id"].startswith(reader.name + ":")
            assert isinstance(row["occurred_at"], datetime)
            assert isinstance(json.loads(row["properties"]), dict)


@given(st.binary(max_size=60))
def test_bytes_that_are_nothing_are_refused(body: bytes) -> None:
    for reader in all_readers():
        try:
            reader.parse_webhook(body, {}, now=NOW)
        except WebhookError:
            continue


def test_a_provider_without_webhooks_says_so() -> None:
    with pytest.raises(NotSupportedError, match="maildir"):
        get_webhook_reader(SenderSettings(), "maildir")
    with pytest.raises(SettingsError, match="Did you mean sendgrid"):
        get_webhook_reader(SenderSettings(), "sendgird")
