"""SendGrid: calls that its specification allows, failures in the middle of them, and its events."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from pydantic import SecretStr
from sending import audience, plan, sender_settings, write_content
from typer.testing import CliRunner
from vendor_server import VENDORS, Answer, Request, VendorServer, openapi_checks, serve

from campaigns.identity import message_ids
from mailhouse.cli import app
from senders.attachments import Attachment
from senders.export import SETTLED_BY
from senders.ledger import Ledger
from senders.message import Address, EventType, Message, Status
from senders.pipeline import SendSummary, send
from senders.providers import get_provider
from senders.providers.base import NotSupportedError, ProviderRefusedError, ProviderUnavailableError
from senders.providers.sendgrid import SendGridProvider
from senders.retries import RetryPolicy
from senders.settings import SenderSettings
from warehouse.errors import SettingsError

CHECKS = openapi_checks("sendgrid/sendgrid_mail.json", "sendgrid/sendgrid_scheduled_sends.json")
QUICK = RetryPolicy(attempts=3, first=0.01, longest=0.02)
THING = ("campaign", "offer", "2026-06-27T09:00:00Z")
AT = datetime(2026, 6, 27, 9, tzinfo=UTC)


class FakeSendGrid:
    """Accepts mail, fills in substitutions, and refuses addresses whose domain is `refused.example`."""

    def __init__(self) -> None:
        self.mail: dict[str, dict[str, str]] = {}
        self.batches: dict[str, str] = {}
        self.server: VendorServer

    def __call__(self, request: Request) -> Answer:
        if request.headers["authorization"] != "Bearer SG.key":
            return Answer(401, {"errors": [{"message": "SG.key authorization required", "field": None}]})
        if request.path == "/v3/mail/batch":
            self.batches["batch-1"] = "made"
            return Answer(201, {"batch_id": "batch-1"})
        if request.path == "/v3/user/scheduled_sends":
            self.batches[request.json["batch_id"]] = request.json["status"]
            return Answer(201, request.json)
        payload = request.json
        emails = [entry["to"][0]["email"] for entry in payload["personalizations"]]
        assert len(emails) == len({email.lower() for email in emails}), "an address twice"
        bad = [at for at, email in enumerate(emails) if email.endswith("@refused.example")]
        if bad:
            errors = [
                {"message": "Does not contain a valid address.", "field": f"personalizations.{at}.to.0.email"}
                for at in bad
            ]
            return Answer(400, {"errors": errors})
        for entry in payload["personalizations"]:
            message_id = entry["custom_args"]["mailhouse_message_id"]
            self.server.taken[message_id] += 1
            parts = {part["type"]: part["value"] for part in payload["content"]}
            for tag, value in entry.get("substitutions", {}).items():
                parts = {kind: content.replace(tag, value) for kind, content in parts.items()}
            self.mail[message_id] = {"email": entry["to"][0]["email"], "subject": entry["subject"], **parts}
        return Answer(202, "", {"x-message-id": f"sg-{len(self.server.requests)}"})


@pytest.fixture
def fake() -> FakeSendGrid:
    return FakeSendGrid()


@pytest.fixture
def vendor(fake: FakeSendGrid) -> Iterator[VendorServer]:
    with serve(fake, CHECKS) as server:
        fake.server = server
        yield server


@pytest.fixture
def provider(vendor: VendorServer) -> Iterator[SendGridProvider]:
    with SendGridProvider(SecretStr("SG.key"), base_url=vendor.url) as made:
        yield made


@pytest.fixture
def settings(tmp_path: Path) -> SenderSettings:  # pyright: ignore[reportIncompatibleVariableOverride]
    write_content(tmp_path / "content")
    return sender_settings(tmp_path)


def message(number: int, **more: Any) -> Message:
    values: dict[str, Any] = {
        "message_id": f"id-{number}", "contact_id": number, "sender": Address("shop@example.com", "Shop"),
        "recipient": Address(f"person{number}@example.com", f"Zoë {number}"), "subject": f"For you, {number}",
        "html": f"<p>Hello Zoë {number}</p><a href=\"https://x.example/{number}\">go</a><p>Bye</p>",
        "text": f"Hello Zoë {number}\nBye", "sent_at": AT,
        "headers": (("List-Unsubscribe", f"<https://x.example/u/{number}>"),),
    }  # fmt: skip
    return Message(**{**values, **more})


def through(
    settings: SenderSettings, provider: SendGridProvider, people: int = 40, **more: Any
) -> SendSummary:
    with Ledger.open(settings) as ledger:
        return send(
            plan(), more.pop("frames", audience(people)), settings=settings, ledger=ledger, provider=provider,
            retry=QUICK, **more,
        )  # fmt: skip


def counts(settings: SenderSettings) -> Counter[str]:
    with Ledger.open(settings) as ledger:
        return ledger.counts(*THING)


def test_a_campaign_goes_in_one_call_and_everyone_gets_their_own_mail(
    settings: SenderSettings, provider: SendGridProvider, fake: FakeSendGrid, vendor: VendorServer
) -> None:
    summary = through(settings, provider)
    assert summary.sent == 40
    assert counts(settings) == {"sent": 40}
    assert len(vendor.requests) == 1
    (mail,) = [entry for entry in fake.mail.values() if entry["email"] == "person7@example.com"]
    assert mail["subject"] == "For Zoë 7"
    assert (
        "Hello Zoë 7" in mail["text/html"]
        and "Lamp 7" in mail["text/html"]
        and "Zoë 8" not in mail["text/html"]
    )
    assert (
        "Hello there"
        in next(m for m in fake.mail.values() if m["email"] == "person3@example.com")["text/plain"]
    )
    assert "1 High Street" in mail["text/plain"]
    assert through(settings, provider).already_claimed == 40, "a second run sends nothing"


def test_links_that_are_tracked_for_each_person_still_travel_together(
    settings: SenderSettings, provider: SendGridProvider, fake: FakeSendGrid, vendor: VendorServer
) -> None:
    with Ledger.open(settings) as ledger:
        summary = send(
            plan(track_clicks=True, track_opens=True), audience(40), settings=settings, ledger=ledger,
            provider=provider, retry=QUICK,
        )  # fmt: skip
    assert summary.sent == 40 and len(vendor.requests) == 1
    pages = [mail["text/html"] for mail in fake.mail.values()]
    links = [re.findall(r"/c/[A-Za-z0-9_-]{43}/", page) for page in pages]
    assert all(len(set(found)) == 1 for found in links), "each has a token of its own"
    assert len({found[0] for found in links}) == 40
    personalization = vendor.requests[0].json["personalizations"][0]
    assert personalization["headers"]["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert personalization["headers"]["List-Id"] == "<offer.example.com>"


def test_what_arrives_is_what_was_handed_over(provider: SendGridProvider, fake: FakeSendGrid) -> None:
    batch = [message(n) for n in range(5)] + [message(9, html="<p>Other</p>", text="", headers=())]
    deliveries = provider.send(batch)
    assert [d.status for d in deliveries] == [Status.SENT] * 6
    assert all(d.provider_message_id.startswith("sg-") for d in deliveries)
    for entry in batch:
        assert fake.mail[entry.message_id]["text/html"] == entry.html
        assert fake.mail[entry.message_id].get("text/plain", "") == entry.text


def test_attachments_go_once_for_all_who_get_the_same(
    provider: SendGridProvider, vendor: VendorServer
) -> None:
    files = (
        Attachment("terms.pdf", "application/pdf", bytes(range(256))),
        Attachment("sale.ics", 'text/calendar; charset="utf-8"; method=PUBLISH', b"BEGIN:VCALENDAR\r\n"),
    )
    batch = [message(n, attachments=files) for n in range(5)] + [
        message(6),
        message(7, attachments=files[:1]),
    ]
    assert {delivery.status for delivery in provider.send(batch)} == {Status.SENT}
    told = {
        len(request.json["personalizations"]): [
            (found["filename"], found["type"], base64.b64decode(found["content"]))
            for found in request.json.get("attachments", [])
        ]
        for request in vendor.requests
        if len(request.json["personalizations"]) == 5
    }
    # it takes no parameters in a type
    assert told == {
        5: [
            ("terms.pdf", "application/pdf", files[0].content),
            ("sale.ics", "text/calendar", files[1].content),
        ]
    }
    assert sorted(len(request.json.get("attachments", [])) for request in vendor.requests) == [0, 1, 2]


def test_addresses_go_as_dns_knows_them(provider: SendGridProvider, fake: FakeSendGrid) -> None:
    batch = [
        message(1, recipient=Address("zoë@bücher.example"), sender=Address("shop@bücher.example")),
        message(2, recipient=Address("ann@bücher.example"), reply_to=Address("nobody")),
        message(3, recipient=Address("ann@bücher.example")),
    ]
    assert [d.status for d in provider.send(batch)] == [Status.SENT, Status.INVALID, Status.SENT]
    assert {mail["email"] for mail in fake.mail.values()} == {
        "zoë@xn--bcher-kva.example", "ann@xn--bcher-kva.example"
    }  # fmt: skip


def test_no_call_has_more_than_a_thousand_nor_an_address_twice(
    provider: SendGridProvider, vendor: VendorServer
) -> None:
    batch = [message(n) for n in range(1500)]
    batch.append(message(2000, recipient=Address("PERSON1@example.com")))
    assert {d.status for d in provider.send(batch)} == {Status.SENT}
    sizes = sorted(len(request.json["personalizations"]) for request in vendor.requests)
    assert sizes == [1, 500, 1000]


def test_a_message_too_personal_for_substitutions_goes_alone(
    provider: SendGridProvider, fake: FakeSendGrid, vendor: VendorServer
) -> None:
    batch = [message(n, html=f"<p>{str(n) * 12_000}</p>") for n in range(3)] + [
        message(n) for n in range(3, 5)
    ]
    assert {d.status for d in provider.send(batch)} == {Status.SENT}
    assert sorted(len(r.json["personalizations"]) for r in vendor.requests) == [1, 1, 1, 2]
    assert all(fake.mail[m.message_id]["text/html"] == m.html for m in batch)


@pytest.mark.parametrize("failure", ["429", "503", "html_403", "html_503", "reset_before_connecting"])
def test_what_was_certainly_not_taken_is_sent_again(
    failure: str, settings: SenderSettings, provider: SendGridProvider, vendor: VendorServer
) -> None:
    if failure == "reset_before_connecting":
        calls = iter([True])
        request = provider._client.request  # pyright: ignore[reportPrivateUsage]

        def refuse_once(*arguments: Any, **more: Any) -> Any:
            import httpx

            if next(calls, False):
                raise httpx.ConnectError("[Errno 111] Connection refused")
            return request(*arguments, **more)

        provider._client.request = refuse_once  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    else:
        vendor.script = [failure]
    assert through(settings, provider).sent == 40
    assert counts(settings) == {"sent": 40}
    assert vendor.taken.total() == 40


@pytest.mark.parametrize("failure", ["reset_after", "html_200_after"])
def test_a_reset_after_acceptance_is_unknown_never_resent_and_settled_by_events(
    failure: str,
    settings: SenderSettings,
    provider: SendGridProvider,
    fake: FakeSendGrid,
    vendor: VendorServer,
) -> None:
    vendor.script = [failure]
    assert through(settings, provider).unknown == 40
    assert through(settings, provider).sent == 0
    assert counts(settings) == {"unknown": 40}
    assert vendor.taken.total() == 40
    events = [
        {"email": mail["email"], "event": "delivered", "timestamp": 1_780_000_000, "sg_event_id": f"e-{message_id}",
         "mailhouse_message_id": message_id}
        for message_id, mail in fake.mail.items()
    ]  # fmt: skip
    rows = provider.parse_webhook(json.dumps(events).encode(), {})
    with Ledger.open(settings) as ledger:
        settled = ledger.settle({row["message_id"]: SETTLED_BY[EventType(row["type"])] for row in rows}, AT)
    assert settled == {"sent": 40}
    assert counts(settings) == {"sent": 40}


@pytest.mark.parametrize("failure", ["reset_before", "html_500", "html_502", "html_504"])
def test_what_may_have_been_taken_stays_unknown(
    failure: str, settings: SenderSettings, provider: SendGridProvider, vendor: VendorServer
) -> None:
    vendor.script = [failure]
    assert through(settings, provider).unknown == 40
    assert through(settings, provider).sent == 0
    assert vendor.taken.total() == 0
    assert counts(settings) == {"unknown": 40}, "nothing is lost: each waits for an event"


def test_one_bad_address_holds_up_nobody_else(
    settings: SenderSettings, provider: SendGridProvider, vendor: VendorServer
) -> None:
    frame = pl.concat(list(audience(30)))
    frame = frame.with_columns(
        email=pl.when(pl.col("contact_id").is_in([3, 17]))
        .then(pl.lit("x@refused.example"))
        .otherwise("email")
    )
    # two contacts with one address are two messages, in two calls
    summary = through(settings, provider, frames=[frame])
    assert (summary.sent, summary.rejected) == (28, 2)
    assert counts(settings) == {"sent": 28, "rejected": 2}
    with Ledger.open(settings) as ledger:
        found = ledger.find(message_ids("campaign", "offer", [3], THING[2])[0])
    assert found is not None and found.reason == "invalid" and "valid address" in found.provider_reply
    assert vendor.taken.total() == 28


def test_a_refusal_that_names_nobody_is_halved_until_found(
    provider: SendGridProvider, fake: FakeSendGrid
) -> None:
    inner = fake.__call__

    def vague(request: Request) -> Answer:
        answer = inner(request)
        if answer.status == 400:
            return Answer(400, {"errors": [{"message": "something is wrong", "field": None}]})
        return answer

    with (
        serve(vague, CHECKS) as server,
        SendGridProvider(SecretStr("SG.key"), base_url=server.url) as through,
    ):
        fake.server = server
        batch = [message(n) for n in range(16)]
        batch[5] = message(5, recipient=Address("x@refused.example"))
        deliveries = through.send(batch)
        assert [d.status for d in deliveries].count(Status.SENT) == 15
        assert deliveries[5].status == Status.REJECTED


def test_a_wrong_key_stops_the_run_and_is_never_shown(settings: SenderSettings, vendor: VendorServer) -> None:
    with SendGridProvider(SecretStr("SG.wrong-secret"), base_url=vendor.url) as provider:
        with pytest.raises(ProviderRefusedError, match="MAILHOUSE_SENDGRID_KEY") as raised:
            through(settings, provider)
        assert "wrong-secret" not in str(raised.value)
        with pytest.raises(ProviderRefusedError):
            provider.send([message(1)])
    assert counts(settings) == {"claimed": 40}
    assert len(vendor.requests) == 1


def test_a_vendor_that_stays_away_leaves_everything_for_a_rerun(
    settings: SenderSettings, provider: SendGridProvider, vendor: VendorServer
) -> None:
    vendor.script = ["429"] * 3
    with pytest.raises(ProviderUnavailableError):
        through(settings, provider)
    assert counts(settings) == {"claimed": 40}
    assert through(settings, provider).sent == 40


def test_the_reset_of_the_rate_limit_is_how_long_we_wait(provider: SendGridProvider) -> None:
    import time

    import httpx

    soon = str(int(time.time()) + 30)
    assert 25 < (provider.retry_after(httpx.Response(429, headers={"x-ratelimit-reset": soon})) or 0) <= 30
    assert provider.retry_after(httpx.Response(429, headers={"retry-after": "7"})) == 7
    assert provider.retry_after(httpx.Response(429)) is None


def test_mail_that_is_held_back_has_a_batch_and_can_be_cancelled(
    provider: SendGridProvider, fake: FakeSendGrid, vendor: VendorServer
) -> None:
    due = AT + timedelta(hours=2)
    deliveries = provider.send([message(n, deliver_at=due) for n in range(3)])
    assert {d.status for d in deliveries} == {Status.QUEUED}
    assert deliveries[0].reply == "202 Accepted; batch batch-1"
    payload = vendor.requests[-1].json
    assert payload["batch_id"] == "batch-1"
    assert payload["personalizations"][0]["send_at"] == int(due.timestamp())
    assert payload["personalizations"][0]["custom_args"]["mailhouse_batch_id"] == "batch-1"
    provider.cancel("batch-1")
    assert fake.batches == {"batch-1": "cancel"}


def test_a_batch_is_cancelled_by_command(
    fake: FakeSendGrid, vendor: VendorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILHOUSE_SENDGRID_KEY", "SG.key")
    monkeypatch.setenv("MAILHOUSE_SENDGRID_URL", vendor.url)
    result = CliRunner().invoke(app, ["cancel", "batch-9", "--provider", "sendgrid"])
    assert result.output == "sendgrid has cancelled batch batch-9.\n"
    assert fake.batches == {"batch-9": "cancel"}
    refused = CliRunner().invoke(app, ["cancel", "batch-9", "--provider", "maildir"])
    assert isinstance(refused.exception, NotSupportedError)


def test_sends_from_several_threads_take_each_message_once(
    provider: SendGridProvider, vendor: VendorServer
) -> None:
    threads = [
        threading.Thread(target=provider.send, args=([message(n) for n in range(start, start + 50)],))
        for start in range(0, 200, 50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vendor.taken.total() == 200


WORDS = st.sampled_from(
    ["ok", "ok", "429", "html_403", "html_502", "reset_before", "reset_after", "html_200_after"]
)


@settings_of_hypothesis(max_examples=12)
@given(runs=st.lists(st.lists(WORDS, max_size=4), min_size=1, max_size=3), rows=st.integers(5, 30))
def test_whatever_happens_nothing_is_lost_and_nothing_goes_twice(
    runs: list[list[str]], rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("any")
    write_content(home / "content")
    ours, fake = sender_settings(home), FakeSendGrid()
    with (
        serve(fake, CHECKS) as server,
        SendGridProvider(SecretStr("SG.key"), base_url=server.url) as provider,
    ):
        fake.server = server
        for script in [*runs, []]:
            server.script = list(script)
            with contextlib.suppress(ProviderUnavailableError):
                through(ours, provider, frames=audience(30, rows=rows))
        # the last run went without trouble, so what is not sent by now is in doubt, and was tried once
        found = counts(ours)
        assert found["sent"] + found["unknown"] == found.total() == 30
        assert found["sent"] <= server.taken.total() <= 30
        attempts = Counter(
            entry["custom_args"]["mailhouse_message_id"]
            for request in server.requests
            for entry in request.json["personalizations"]
        )
        assert len(attempts) == 30


def test_worker_processes_share_the_work(settings: SenderSettings, vendor: VendorServer) -> None:
    ready = settings.model_copy(
        update={"provider": "sendgrid", "sendgrid_key": SecretStr("SG.key"), "sendgrid_url": vendor.url}
    )
    vendor.script = ["429", "ok", "reset_after"]
    with Ledger.open(ready) as ledger, get_provider(ready) as provider:
        summary = send(
            plan(),
            audience(60, rows=15),
            settings=ready,
            ledger=ledger,
            provider=provider,
            retry=QUICK,
            workers=2,
        )
    assert (summary.sent, summary.unknown) == (45, 15)
    assert vendor.taken.total() == 60
    assert counts(ready) == {"sent": 45, "unknown": 15}


# webhooks


def vector() -> dict[str, str]:
    return json.loads((VENDORS / "sendgrid/signature_vector.json").read_text())


def signed(case: dict[str, str]) -> dict[str, str]:
    return {
        "X-Twilio-Email-Event-Webhook-Signature": case["signature"],
        "X-Twilio-Email-Event-Webhook-Timestamp": case["timestamp"],
    }


def test_the_vendors_signature_vector_is_good_and_nothing_like_it() -> None:
    case = vector()
    reader = SendGridProvider(SecretStr("k"), webhook_key=case["public_key"])
    body, now = case["body"].encode(), datetime.fromtimestamp(int(case["timestamp"]), UTC)
    assert reader.verify_signature(body, signed(case), now=now)
    assert not reader.verify_signature(body.rstrip(), signed(case), now=now)
    assert not reader.verify_signature(body, {}, now=now)
    assert not reader.verify_signature(body, signed({**case, "timestamp": "1600112503"}), now=now)
    assert not reader.verify_signature(body, signed({**case, "signature": "AAAA"}), now=now)
    assert not reader.verify_signature(body, signed(case), now=now + timedelta(hours=26)), "stale"
    private = ec.generate_private_key(ec.SECP256R1())
    forged = base64.b64encode(
        private.sign(case["timestamp"].encode() + body, ec.ECDSA(hashes.SHA256()))
    ).decode()
    assert not reader.verify_signature(body, signed({**case, "signature": forged}), now=now)
    own = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    other = SendGridProvider(SecretStr("k"), webhook_key=base64.b64encode(own).decode())
    assert other.verify_signature(body, signed({**case, "signature": forged}), now=now)


def test_without_the_webhook_key_no_call_is_believed() -> None:
    with pytest.raises(SettingsError, match="MAILHOUSE_SENDGRID_WEBHOOK_KEY"):
        SendGridProvider(SecretStr("k")).verify_signature(b"[]", {})
    with pytest.raises(SettingsError, match="no public key"):
        SendGridProvider(SecretStr("k"), webhook_key="MFkw").verify_signature(
            b"[]", signed(vector()), now=datetime.fromtimestamp(1600112502, UTC)
        )


def test_events_of_engagement_and_suppression() -> None:
    events = json.loads((VENDORS / "sendgrid/events_synthetic.json").read_text())["events"]
    rows = SendGridProvider(SecretStr("k")).parse_webhook(json.dumps(events).encode(), {})
    assert [row["type"] for row in rows] == [
        "complained", "unsubscribed", "unsubscribed", "subscribed", "opened", "bounced", "deferred",
    ]  # fmt: skip
    properties = [json.loads(row["properties"]) for row in rows]
    assert properties[4]["is_machine"] is True
    assert (properties[5]["reject_reason"], properties[5]["bounce_class"]) == ("blocked", "soft")
    assert json.loads(properties[0]["metadata"]) == {"campaign_id": "c1", "contact_id": "42"}
    assert json.loads(rows[0]["esp_event"]) == events[0]
    assert len({row["event_id"] for row in rows}) == 7
