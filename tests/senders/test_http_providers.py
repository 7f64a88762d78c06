"""Every provider that speaks HTTP, through the same failures: nothing is lost, and nothing goes twice."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from sending import people, plan, sender_settings, write_content
from vendor_server import VENDORS, Answer, Request, VendorServer, form_checks, serve

from senders.attachments import Attachment
from senders.export import SETTLED_BY
from senders.ledger import Ledger
from senders.message import Address, Delivery, EventType, Message, Status
from senders.pipeline import SendSummary, send
from senders.providers import PROVIDERS, provider_class
from senders.providers.base import ProviderRefusedError, ProviderUnavailableError
from senders.providers.bombbomb import BombBombProvider
from senders.providers.fcm import FcmProvider
from senders.providers.http import HttpProvider
from senders.providers.mailchimp import MailchimpCampaign, MailchimpProvider, Member
from senders.providers.mandrill import MandrillProvider
from senders.providers.slack import SlackProvider
from senders.providers.twilio import TwilioProvider
from senders.providers.webhook import WebhookProvider
from senders.retries import RetryPolicy
from senders.settings import SenderSettings
from warehouse.buckets import Demand
from warehouse.errors import SettingsError

QUICK = RetryPolicy(attempts=3, first=0.01, longest=0.02)
THING = ("campaign", "offer", "2026-06-27T09:00:00Z")
AT = datetime(2026, 6, 27, 9, tzinfo=UTC)
PEOPLE = 12
KEY = SecretStr("the-secret-key")


@dataclass
class Case:
    """A provider, its vendor, and what the vendor's events look like.

    Attributes:
        make: address of the vendor -> provider.
        vendor: request -> message ids that it accepts, and its answer.
        checks: holds a request to what the vendor promises; raises if it does not.
        events: message id -> body, headers and address of the webhook call that says it was delivered;
            None if there is none.
        refused: the vendor's answer to a wrong key.
        setup_calls: calls before the first that hands a message over.
        says_something: whether an answer that accepts has content that could be wrong.
    """

    make: Callable[[str], HttpProvider]
    vendor: Callable[[Request], tuple[list[str], Answer]]
    checks: Callable[[Request], None] | None = None
    events: Callable[[str], tuple[bytes, dict[str, str], str]] | None = None
    refused: Answer = field(default_factory=lambda: Answer(401, {"message": "the-secret-key is wrong"}))
    setup_calls: int = 0
    says_something: bool = True


# Mandrill, by what its pages say

_MANDRILL = {
    "type": "object",
    "required": ["key", "message"],
    "additionalProperties": False,
    "properties": {
        "key": {"type": "string"},
        "async": {"type": "boolean"},
        "send_at": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$"},
        "message": {
            "type": "object",
            "additionalProperties": False,
            "required": ["to", "from_email", "subject"],
            "properties": {
                **{name: {"type": "string"} for name in ("html", "text", "subject", "from_email", "from_name")},
                **{
                    name: {"type": "boolean"}
                    for name in (
                        "track_opens", "track_clicks", "merge", "auto_text", "auto_html", "inline_css",
                        "preserve_recipients",
                    )
                },
                "attachments": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type", "name", "content"],
                        "additionalProperties": False,
                        "properties": {name: {"type": "string"} for name in ("type", "name", "content")},
                    },
                },
                "headers": {"type": "object", "additionalProperties": {"type": "string"}},
                "metadata": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
                "to": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["email"],
                        "additionalProperties": False,
                        "properties": {
                            "email": {"type": "string"},
                            "name": {"type": "string"},
                            "type": {"enum": ["to", "cc", "bcc"]},
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip


def mandrill_checks(request: Request) -> None:
    if request.path == "/messages/search.json":
        return
    assert (request.method, request.path) == ("POST", "/messages/send.json")
    Draft202012Validator(_MANDRILL).validate(request.json)
    assert len(json.dumps(request.json["message"]["metadata"])) <= 200


class Mandrill:
    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def __call__(self, request: Request) -> tuple[list[str], Answer]:
        body = request.json
        if body["key"] != "the-secret-key":
            return [], Answer(
                500, {"status": "error", "code": -1, "name": "Invalid_Key", "message": "Invalid API key"}
            )
        if request.path == "/messages/search.json":
            asked = [term.partition(":")[2] for term in body["query"].split(" OR ")]
            found = [
                {"_id": self.known[one], "state": "sent", "metadata": {"mailhouse_message_id": one}}
                for one in asked
                if one in self.known
            ]
            return [], Answer(200, found)
        message = body["message"]
        email = message["to"][0]["email"]
        answer = {"email": email, "status": "sent", "_id": f"md-{len(self.known)}", "reject_reason": None}
        if email.startswith("refused"):
            return [], Answer(200, [{**answer, "status": "rejected", "reject_reason": "hard-bounce"}])
        if email.startswith("invalid"):
            return [], Answer(200, [{**answer, "status": "invalid"}])
        message_id = message["metadata"]["mailhouse_message_id"]
        self.known[message_id] = answer["_id"]
        return [message_id], Answer(200, [answer])


def mandrill_case() -> Case:
    return Case(
        make=lambda url: MandrillProvider(KEY, base_url=url),
        vendor=Mandrill(),
        checks=mandrill_checks,
        refused=Answer(
            500, {"status": "error", "name": "Invalid_Key", "message": "the-secret-key is no key"}
        ),
    )


# Mailchimp, by what its pages say


class Mailchimp:
    """Keeps members and campaigns; a journey takes members only."""

    def __init__(self) -> None:
        self.members: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, list[Any]] = {}
        self.campaigns: dict[str, dict[str, Any]] = {}
        self.sends: Counter[str] = Counter()
        self.batches: dict[str, list[dict[str, Any]]] = {}
        self.url = ""
        self.polls = 0

    def __call__(self, request: Request) -> tuple[list[str], Answer]:
        if (
            request.headers.get("authorization")
            != "Basic " + base64.b64encode(b"mailhouse:the-secret-key").decode()
        ):
            return [], Answer(401, {"title": "API Key Invalid", "status": 401})
        return self.route(request.method, request.path, request)

    def route(self, method: str, path: str, request: Request) -> tuple[list[str], Answer]:
        parts = path.strip("/").split("/")
        match (method, *parts):
            case ("PUT", "lists", "aud", "members", key):
                return [], self.put_member(key, request.json)
            case ("POST", "lists", "aud", "members", key, "tags"):
                self.tags[key] = request.json["tags"]
                return [], Answer(204)
            case ("POST", "customer-journeys", "journeys", "7", "steps", "9", "actions", "trigger"):
                email = request.json["email_address"]
                if email not in {member["email_address"] for member in self.members.values()}:
                    return [], Answer(404, {"title": "Resource Not Found", "status": 404})
                return [email], Answer(204)
            case ("POST", "batches"):
                return [], self.take_batch(request.json["operations"])
            case ("GET", "batches", batch):
                self.polls += 1
                failed = sum(int(result["status_code"]) >= 400 for result in self.batches[batch])
                return [], Answer(200, {
                    "id": batch, "status": "finished" if self.polls % 2 == 0 else "started",
                    "errored_operations": failed, "response_body_url": f"{self.url}/results/{batch}",
                })  # fmt: skip
            case ("GET", "campaigns"):
                return [], Answer(200, {"campaigns": list(self.campaigns.values())})
            case ("POST", "campaigns"):
                made = {"id": f"c{len(self.campaigns)}", "status": "save", **request.json}
                self.campaigns[made["id"]] = made
                return [], Answer(200, made)
            case ("PATCH", "campaigns", name):
                return [], Answer(200, self.campaigns[name])
            case ("PUT", "campaigns", name, "content"):
                self.campaigns[name]["content"] = request.json
                return [], Answer(200, {})
            case ("POST", "campaigns", name, "actions", "send"):
                self.campaigns[name]["status"] = "sending"
                self.sends[name] += 1
                return [], Answer(204)
            case ("GET", "campaigns", name):
                return [], Answer(200, {"status": self.campaigns[name]["status"]})
        raise AssertionError(f"Mailchimp has no {method} {path}")

    def put_member(self, key: str, body: dict[str, Any]) -> Answer:
        email = body["email_address"]
        assert key == hashlib.md5(email.lower().encode()).hexdigest()
        assert body["status_if_new"] in ("subscribed", "unsubscribed", "pending", "cleaned", "transactional")
        assert body.keys() <= {"email_address", "status_if_new", "merge_fields"}
        if email.startswith("left"):
            return Answer(400, {"title": "Member In Compliance State", "status": 400, "detail": "has left"})
        self.members[key] = body
        return Answer(200, body)

    def take_batch(self, operations: list[dict[str, Any]]) -> Answer:
        assert len(operations) <= 500
        results = []
        for operation in operations:
            inner = Request(operation["method"], operation["path"], {}, {}, operation["body"].encode())
            _, answer = self.route(inner.method, inner.path, inner)
            results.append(
                {"status_code": answer.status, "operation_id": operation["operation_id"],
                 "response": json.dumps(answer.body)}
            )  # fmt: skip
        name = f"b{len(self.batches)}"
        self.batches[name] = results
        return Answer(200, {"id": name, "status": "pending"})


def mailchimp_case() -> Case:
    return Case(
        make=lambda url: MailchimpProvider(
            KEY, audience="aud", journey=7, step=9, base_url=url, connections=1, sleep=lambda _: None
        ),
        vendor=Mailchimp(),
        refused=Answer(401, {"title": "API Key Invalid", "detail": "the-secret-key"}),
        setup_calls=1,
    )


# BombBomb, by its Swagger file


class BombBomb:
    def __init__(self) -> None:
        self.number = 0

    def __call__(self, request: Request) -> tuple[list[str], Answer]:
        if request.headers.get("authorization") not in ("Bearer the-secret-key", "Bearer fresh"):
            return [], Answer(401, '"Unauthorized, please provide credentials"')
        assert request.path == "/v2/emails/quicksend"
        form = request.form
        if form["emailAddresses"].startswith("refused"):
            return [], Answer(200, {"status": "failure", "info": "suppressed"})
        self.number += 1
        return [form["emailAddresses"]], Answer(200, {"emailId": f"bb-{self.number}"})


_BOMBBOMB = json.loads((VENDORS / "bombbomb/bombbomb.json").read_text())


def bombbomb_case() -> Case:
    return Case(
        make=lambda url: BombBombProvider(KEY, video="video-1", template="t-1", base_url=f"{url}/v2"),
        vendor=BombBomb(),
        checks=lambda request: form_checks(_BOMBBOMB, request),
        refused=Answer(401, '"the-secret-key: please provide credentials"'),
    )


# Twilio, by what its pages say


class Twilio:
    """Remembers by which callback each message reports."""

    def __init__(self) -> None:
        self.callbacks: dict[str, str] = {}

    def __call__(self, request: Request) -> tuple[list[str], Answer]:
        secret = base64.b64encode(b"AC1:the-secret-key").decode()
        if request.headers.get("authorization") != f"Basic {secret}":
            return [], Answer(401, {"code": 20003, "message": "Authenticate", "status": 401})
        form = request.form
        if form["To"].endswith("99"):
            return [], Answer(400, {"code": 21610, "message": "unsubscribed recipient", "status": 400})
        message_id = form["StatusCallback"].partition("mailhouse_message_id=")[2]
        self.callbacks[message_id] = form["StatusCallback"]
        return [message_id], Answer(
            201, {"sid": f"SM{len(self.callbacks)}", "status": "queued", "error_code": None}
        )


def twilio_checks(request: Request) -> None:
    assert (request.method, request.path) == ("POST", "/2010-04-01/Accounts/AC1/Messages.json")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    form = request.form
    assert form.keys() <= {"To", "From", "MessagingServiceSid", "Body", "StatusCallback"}
    assert ("From" in form) != ("MessagingServiceSid" in form)
    assert 0 < len(form["Body"]) <= 1600
    assert re.fullmatch(r"\+[1-9]\d{6,14}", form["To"])


def twilio_case() -> Case:
    vendor = Twilio()
    return Case(
        make=lambda url: TwilioProvider(
            "AC1", KEY, sender="MG1", callback="https://m.example/webhooks/twilio", base_url=url
        ),
        vendor=vendor,
        checks=twilio_checks,
        events=lambda message_id: (
            b"MessageSid=SM1&MessageStatus=delivered",
            {},
            vendor.callbacks[message_id],
        ),
        refused=Answer(401, {"code": 20003, "message": "the-secret-key"}),
    )


# FCM, by Google's discovery document


@functools.cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def fcm_account(token_url: str) -> dict[str, str]:
    pem = rsa_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "project_id": "shop", "client_email": "push@shop.example", "token_uri": token_url,
        "private_key": pem.decode(), "private_key_id": "k1",
    }  # fmt: skip


class Fcm:
    """Gives tokens that are good for `uses` calls."""

    def __init__(self, uses: int = 1000) -> None:
        self.tokens: dict[str, int] = {}
        self.uses = uses
        self.number = 0

    def __call__(self, request: Request) -> tuple[list[str], Answer]:
        if request.path == "/token":
            assert request.form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
            head, claims, signature = request.form["assertion"].split(".")
            padded = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
            rsa_key().public_key().verify(
                padded, f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256()
            )
            said = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
            assert said["iss"] == "push@shop.example" and said["exp"] - said["iat"] == 3600
            token = f"token-{len(self.tokens)}"
            self.tokens[token] = self.uses
            return [], Answer(200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"})
        token = request.headers["authorization"].removeprefix("Bearer ")
        if self.tokens.get(token, 0) <= 0:
            return [], google_error(401, "UNAUTHENTICATED")
        self.tokens[token] -= 1
        message = request.json["message"]
        if message["token"].endswith("99"):
            return [], google_error(404, "NOT_FOUND", "UNREGISTERED")
        self.number += 1
        return [message["data"]["mailhouse_message_id"]], Answer(
            200, {"name": f"projects/shop/messages/{self.number}"}
        )


def google_error(status: int, word: str, particular: str = "") -> Answer:
    details = [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": particular}]
    error = {"code": status, "status": word, "message": word, **({"details": details} if particular else {})}
    return Answer(status, {"error": error})


def _discovered(schema: Any) -> Any:
    """A schema of a discovery document as JSON Schema, objects closed."""
    if isinstance(schema, list):
        return [_discovered(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        name: _discovered(value)
        for name, value in schema.items()
        if name not in ("id", "format", "deprecated")
    }
    if isinstance(made.get("$ref"), str):
        made["$ref"] = f"#/$defs/{made['$ref']}"
    if isinstance(schema.get("properties"), dict):
        made["additionalProperties"] = False
    return made


_FCM = json.loads((VENDORS / "fcm/fcm.v1.discovery.json").read_text())
_FCM_BODY = Draft202012Validator(
    {
        "$ref": "#/$defs/SendMessageRequest",
        "$defs": {name: _discovered(schema) for name, schema in _FCM["schemas"].items()},
    }
)


def fcm_checks(request: Request) -> None:
    if request.path == "/token":
        return
    assert (request.method, request.path) == ("POST", "/v1/projects/shop/messages:send")
    _FCM_BODY.validate(request.json)
    targets = [name for name in ("token", "topic", "condition", "fid") if name in request.json["message"]]
    assert len(targets) == 1


def fcm_case() -> Case:
    return Case(
        make=lambda url: FcmProvider(fcm_account(f"{url}/token"), base_url=url),
        vendor=Fcm(),
        checks=fcm_checks,
        refused=google_error(401, "UNAUTHENTICATED"),
        setup_calls=1,
    )


# Slack and any other system


class Slack:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, request: Request) -> tuple[list[str], Answer]:
        assert request.path == "/services/T1/the-secret-key"
        assert request.json.keys() == {"text"}
        self.texts.append(request.json["text"])
        return [f"{len(self.texts)}"], Answer(200, "ok")


class Free:
    """No pace to keep."""

    def reserve(self, demands: Sequence[Demand]) -> float:
        del demands
        return 0.0


def slack_case() -> Case:
    return Case(
        make=lambda url: SlackProvider(SecretStr(f"{url}/services/T1/the-secret-key"), buckets=Free()),
        vendor=Slack(),
        refused=Answer(404, "no_service"),
    )


WEBHOOK_SECRET = SecretStr("whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode())


def webhook_checks(request: Request) -> None:
    assert request.path == "/mail/in"
    content = (
        f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    )
    digest = hmac.new(b"0123456789abcdef0123456789abcdef", content, "sha256").digest()
    assert request.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert request.json["data"]["message_id"] == request.headers["webhook-id"]


def webhook_case() -> Case:
    return Case(
        make=lambda url: WebhookProvider(f"{url}/mail/in", WEBHOOK_SECRET),
        vendor=lambda request: ([request.headers["webhook-id"]], Answer(200, "")),
        checks=webhook_checks,
        events=lambda message_id: (
            json.dumps({"type": "delivered", "message_id": message_id}).encode(), {"webhook-id": "call-1"}, "",
        ),
        refused=Answer(410, "gone"),
        says_something=False,
    )  # fmt: skip


CASES: dict[str, Callable[[], Case]] = {
    "mandrill": mandrill_case,
    "mailchimp": mailchimp_case,
    "bombbomb": bombbomb_case,
    "twilio": twilio_case,
    "fcm": fcm_case,
    "slack": slack_case,
    "webhook": webhook_case,
}


# what they share


@dataclass
class Bench:
    """One provider with its vendor running."""

    case: Case
    server: VendorServer
    provider: HttpProvider
    settings: SenderSettings

    def run(self, frames: list[pl.DataFrame] | None = None, **more: Any) -> SendSummary:
        capabilities = self.provider.capabilities
        category = "marketing" if capabilities.channel in ("email", "journey") else "transactional"
        with Ledger.open(self.settings) as ledger:
            return send(
                plan(channel=capabilities.channel, category=category, **more), frames or [people(PEOPLE)],
                settings=self.settings, ledger=ledger, provider=self.provider, retry=QUICK,
            )  # fmt: skip

    def counts(self) -> Counter[str]:
        with Ledger.open(self.settings) as ledger:
            return ledger.counts(*THING)


@pytest.fixture(params=CASES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    case = CASES[request.param]()

    def vendor(call: Request) -> Answer:
        taken, answer = case.vendor(call)
        server.taken.update(taken)
        return answer

    write_content(tmp_path / "content")
    with serve(vendor, case.checks) as server, case.make(server.url) as provider:
        yield Bench(case, server, provider, sender_settings(tmp_path))


def message(number: int, **more: Any) -> Message:
    values: dict[str, Any] = {
        "message_id": f"id-{number}", "contact_id": number, "sender": Address("shop@example.com", "Shop"),
        "recipient": Address(f"person{number}@example.com", f"Zoë {number}"), "subject": "For you",
        "html": f"<p>Hello Zoë {number}</p>", "text": f"Hello Zoë {number}", "sent_at": AT,
        "address": f"+447700900{number:03}",
    }  # fmt: skip
    return Message(**{**values, **more})


def test_everyone_gets_one_message_and_a_second_run_sends_nothing(bench: Bench) -> None:
    assert bench.run().sent == PEOPLE
    assert bench.run().already_claimed == PEOPLE
    assert sum(bench.counts().values()) == PEOPLE
    assert bench.server.taken.total() == PEOPLE


@pytest.mark.parametrize("failure", ["429", "html_503", "html_403"])
def test_too_much_then_accepted(bench: Bench, failure: str) -> None:
    bench.server.script = ["ok", failure, failure]
    assert bench.run().sent == PEOPLE
    assert bench.server.taken.total() == PEOPLE
    assert bench.counts() == {"sent": PEOPLE}


@pytest.mark.parametrize("failure", ["reset_after", "html_200_after"])
def test_reset_after_acceptance_is_unknown_never_resent_and_settled(bench: Bench, failure: str) -> None:
    first = bench.case.setup_calls
    bench.server.script = ["ok"] * first + [failure]
    summary = bench.run()
    if failure == "html_200_after" and not bench.case.says_something:
        assert (summary.unknown, summary.sent) == (0, PEOPLE)
        return
    assert (summary.unknown, summary.sent) == (1, PEOPLE - 1)
    assert bench.server.taken.total() == PEOPLE
    with Ledger.open(bench.settings) as ledger:
        (unknown,) = ledger.unknown_message_ids()
    rerun = bench.run()
    assert rerun.sent == 0 and bench.server.taken.total() == PEOPLE
    if bench.provider.capabilities.can_look_up:
        assert rerun.settled == {"sent": 1}
    elif bench.case.events is not None:
        body, headers, url = bench.case.events(unknown)
        rows = bench.provider.parse_webhook(body, headers, url=url)
        assert [row["message_id"] for row in rows] == [unknown]
        with Ledger.open(bench.settings) as ledger:
            assert ledger.settle({unknown: SETTLED_BY[EventType(rows[0]["type"])]}, AT) == {"sent": 1}
    else:
        assert bench.counts()["unknown"] == 1


@pytest.mark.parametrize("failure", ["html_502", "reset_before"])
def test_a_gateways_page_or_a_reset_is_never_taken_for_a_no(bench: Bench, failure: str) -> None:
    bench.server.script = ["ok"] * bench.case.setup_calls + [failure]
    summary = bench.run()
    assert summary.sent + summary.unknown == PEOPLE and summary.unknown <= 1
    assert bench.server.taken.total() == summary.sent
    assert sum(bench.counts().values()) == PEOPLE


def test_a_wrong_key_stops_everything_at_once_and_is_not_shown(bench: Bench) -> None:
    inner = bench.case.vendor
    bench.case.vendor = lambda request: ([], bench.case.refused)
    with pytest.raises(ProviderRefusedError) as raised:
        bench.run()
    assert "the-secret-key" not in str(raised.value)
    assert bench.counts() == {"claimed": PEOPLE}
    bench.case.vendor = inner
    with pytest.raises(ProviderRefusedError):
        bench.run()


def test_its_settings_are_asked_for_by_name(bench: Bench) -> None:
    name = bench.provider.name
    assert provider_class(name) is type(bench.provider)
    with pytest.raises(SettingsError, match=f"MAILHOUSE_{name.upper()}_"):
        provider_class(name).from_settings(SenderSettings(_env_file=None))  # pyright: ignore[reportCallIssue]


def test_every_provider_that_speaks_http_is_among_the_cases() -> None:
    speaking = {name for name in PROVIDERS if issubclass(provider_class(name), HttpProvider)}
    assert speaking - {"sendgrid"} == set(CASES), "SendGrid has a file of its own"


# each its own


def test_bombbomb_says_failure_with_200_and_holds_back() -> None:
    deliveries, requests = one(
        bombbomb_case(),
        message(1, deliver_at=AT),
        message(2, recipient=Address("refused@example.com")),
        message(3, recipient=Address("a@example.com;b@example.com")),
    )
    assert [d.status for d in deliveries] == [Status.SENT, Status.REJECTED, Status.INVALID]
    form = next(r.form for r in requests if r.form["emailAddresses"] == "person1@example.com")
    assert form["scheduledSendTimestamp"] == str(int(AT.timestamp()))
    assert form["message"] == "<p>Hello Zoë 1</p>" and form["videoId"] == "video-1"


def test_bombbombs_tokens_are_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def token(url: str, *, json: Any, timeout: float) -> httpx.Response:
        asked.append(json)
        return httpx.Response(200, json={"access_token": "fresh", "expires_in": 3600})

    monkeypatch.setattr(httpx, "post", token)
    case = bombbomb_case()
    case.make = lambda url: BombBombProvider(
        KEY, video="v", client_id="c1", client_secret=SecretStr("cs"), base_url=f"{url}/v2"
    )
    deliveries, _ = one(case, message(1), message(2))
    assert {d.status for d in deliveries} == {Status.SENT}
    assert asked == [
        {
            "grant_type": "refresh_token",
            "refresh_token": "the-secret-key",
            "client_id": "c1",
            "client_secret": "cs",
        }
    ]


def test_twilio_knows_numbers_lengths_and_who_said_stop() -> None:
    deliveries, requests = one(
        twilio_case(),
        message(1),
        message(2, address="07700 900123"),
        message(3, text="x" * 1601),
        message(99),
        message(4, text="  "),
    )
    assert [(d.status, d.reason) for d in deliveries] == [
        (Status.SENT, ""), (Status.INVALID, "invalid"), (Status.INVALID, "invalid"), (Status.REJECTED, "unsubscribed"),
        (Status.INVALID, "invalid"),
    ]  # fmt: skip
    assert deliveries[0].provider_message_id == "SM1"
    callbacks = {request.form["StatusCallback"] for request in requests}
    assert "https://m.example/webhooks/twilio?mailhouse_message_id=id-1" in callbacks


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(429, {"code": 20429, "message": "too many"}), "later"),
        (Answer(400, {"code": 21611, "message": "queue full"}), "later"),
        (Answer(400, {"code": 21606, "message": "not your number"}), "refused"),
        (Answer(500, {"code": 20500, "message": "internal"}), "unknown"),
        (Answer(400, {"code": 99999, "message": "new"}), "bad"),
    ],
)
def test_twilios_codes(answer: Answer, verdict: str) -> None:
    response = httpx.Response(answer.status, json=answer.body)
    assert TwilioProvider("AC1", KEY, sender="+15005550006").judge(response).value == verdict


def test_a_token_that_expired_early_is_replaced_within_the_call() -> None:
    case = fcm_case()
    case.vendor = vendor = Fcm(uses=2)
    case.make = lambda url: FcmProvider(fcm_account(f"{url}/token"), base_url=url, connections=1)
    deliveries, _ = one(
        case, *[message(n, address=f"device-{n}x") for n in range(7)], message(99, address="device-99")
    )
    assert [d.status for d in deliveries] == [Status.SENT] * 7 + [Status.REJECTED]
    assert deliveries[7].reason == "bounced", "the app is gone from the device"
    assert vendor.number == 7 and len(vendor.tokens) >= 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(400, {"error": "invalid_grant"}), ProviderRefusedError),
        (Answer(503, "<html>"), ProviderUnavailableError),
        (Answer(200, "<html>"), ProviderUnavailableError),
    ],
)
def test_without_a_token_nothing_is_sent(answer: Answer, error: type[Exception]) -> None:
    case = fcm_case()
    case.vendor = lambda request: ([], answer)
    with pytest.raises(error):
        one(case, message(1), message(2))


def test_a_quota_that_is_used_up_is_left_alone_for_a_minute() -> None:
    provider = FcmProvider(fcm_account("https://oauth.example/token"))
    assert provider.retry_after(httpx.Response(429)) == 60
    assert provider.retry_after(httpx.Response(429, headers={"retry-after": "5"})) == 5
    with pytest.raises(SettingsError, match="no project_id"):
        FcmProvider({})
    with pytest.raises(SettingsError, match="private key"):
        FcmProvider({**fcm_account("https://oauth.example/token"), "private_key": "nonsense"})


def test_slack_gets_its_own_three_characters_escaped() -> None:
    case = slack_case()
    one(case, message(1, subject="A < B", text="x & <!channel> y"))
    assert isinstance(case.vendor, Slack)
    assert case.vendor.texts == ["*A &lt; B*\nx &amp; &lt;!channel&gt; y"]


def test_slack_keeps_its_pace() -> None:
    taken: list[Demand] = []

    class Counting(Free):
        def reserve(self, demands: Sequence[Demand]) -> float:
            taken.extend(demands)
            return 0.0

    case = slack_case()
    case.make = lambda url: SlackProvider(SecretStr(f"{url}/services/T1/the-secret-key"), buckets=Counting())
    one(case, message(1), message(2), message(3))
    assert [(demand.rate, demand.tokens) for demand in taken] == [(1.0, 1)] * 3


@pytest.mark.parametrize("url", ["http://hooks.example.com/x", "ftp://x", "nonsense"])
def test_secrets_are_not_sent_in_the_clear(url: str) -> None:
    with pytest.raises(SettingsError, match="https"):
        WebhookProvider(url, WEBHOOK_SECRET)
    with pytest.raises(SettingsError, match="https"):
        SlackProvider(SecretStr(url))
    with pytest.raises(SettingsError, match="16 bytes"):
        WebhookProvider("https://hooks.example.com", SecretStr("whsec_c2hvcnQ="))


@pytest.fixture
def mailchimp(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mailchimp, VendorServer, MailchimpProvider]]:
    case = mailchimp_case()
    fake = case.vendor
    assert isinstance(fake, Mailchimp)

    def results(url: str, **_: Any) -> httpx.Response:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            content = json.dumps(fake.batches[url.rpartition("/")[2]]).encode()
            entry = tarfile.TarInfo("results/0.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return httpx.Response(200, content=buffer.getvalue(), request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", results)
    with serve(lambda request: fake(request)[1]) as server, case.make(server.url) as provider:
        assert isinstance(provider, MailchimpProvider)
        fake.url = server.url
        yield fake, server, provider


def test_mailchimp_keeps_an_audience_in_step(
    mailchimp: tuple[Mailchimp, VendorServer, MailchimpProvider],
) -> None:
    fake, server, provider = mailchimp
    members = [
        Member(f"Person{n}@example.com", merge_fields={"FNAME": f"Zoë {n}"}, tags={"champions": n % 2 == 0})
        for n in range(600)
    ]
    members.insert(300, Member("left@example.com"))
    result = provider.sync_members(members)
    assert result.synced == 600
    assert result.failed.keys() == {"left@example.com"} and "Compliance" in result.failed["left@example.com"]
    assert len(fake.members) == 600 and len(fake.batches) == 3
    assert fake.tags[members[1].hash] == [{"name": "champions", "status": "inactive"}]
    server.script = ["html_502"]
    with pytest.raises(ProviderUnavailableError):
        provider.upsert_member(members[0])
    provider.upsert_member(Member("person0@EXAMPLE.com", tags={"vip": True}))
    assert len(fake.members) == 600, "the same person whatever the case"


@pytest.mark.parametrize("failure", ["", "reset_after", "html_504", "html_200_after"])
def test_mailchimp_sends_a_campaign_once(
    failure: str, mailchimp: tuple[Mailchimp, VendorServer, MailchimpProvider]
) -> None:
    fake, server, provider = mailchimp
    campaign = MailchimpCampaign(
        "offer:2026-06-27", "For you", "Shop", "shop@example.com", "<p>*|UNSUB|*</p>"
    )
    # list, make, content, send
    server.script = ["ok"] * 3 + [failure or "ok"]
    if failure == "html_504":
        with pytest.raises(ProviderUnavailableError):
            provider.send_campaign(campaign)
    else:
        assert provider.send_campaign(campaign) == "c0"
    assert provider.send_campaign(campaign) == "c0"
    assert fake.sends == {"c0": 1}
    assert len(fake.campaigns) == 1
    assert fake.campaigns["c0"]["content"] == {"html": "<p>*|UNSUB|*</p>"}


def test_mailchimp_says_who_has_left() -> None:
    (delivery,), requests = one(mailchimp_case(), message(1, recipient=Address("left@example.com")))
    assert (delivery.status, delivery.reason) == (Status.REJECTED, "unsubscribed")
    assert len(requests) == 1, "the journey was not triggered"


def one(case: Case, *batch: Message) -> tuple[list[Delivery], list[Request]]:
    with (
        serve(lambda request: case.vendor(request)[1], case.checks) as server,
        case.make(server.url) as provider,
    ):
        return provider.send(batch), server.requests


def test_mandrill_takes_attachments() -> None:
    files = (
        Attachment("terms.pdf", "application/pdf", bytes(range(256))),
        Attachment("sale.ics", 'text/calendar; charset="utf-8"; method=PUBLISH', b"BEGIN:VCALENDAR\r\n"),
    )
    deliveries, requests = one(mandrill_case(), message(1, attachments=files), message(2))
    assert [delivery.status for delivery in deliveries] == [Status.SENT] * 2
    # calls are under way at once, in any order
    by_id = {
        request.json["message"]["metadata"]["mailhouse_message_id"]: request.json["message"]
        for request in requests
    }
    told = {
        found["name"]: (found["type"], base64.b64decode(found["content"]))
        for found in by_id["id-1"]["attachments"]
    }
    assert told == {
        "terms.pdf": ("application/pdf", files[0].content),
        "sale.ics": ("text/calendar", files[1].content),
    }
    assert "attachments" not in by_id["id-2"]


def test_mandrill_tells_for_each_recipient() -> None:
    deliveries, requests = one(
        mandrill_case(),
        message(
            1, headers=(("List-Unsubscribe", "<https://x.example/u>"),), reply_to=Address("help@example.com")
        ),
        message(2, recipient=Address("refused@example.com")),
        message(3, recipient=Address("invalid@example.com")),
        message(4, deliver_at=AT + timedelta(hours=1)),
        message(5, recipient=Address("not an address")),
    )
    assert [(d.status, d.reason) for d in deliveries] == [
        (Status.SENT, ""), (Status.REJECTED, "bounced"), (Status.INVALID, "invalid"), (Status.SENT, ""),
        (Status.INVALID, "invalid"),
    ]  # fmt: skip
    bodies = {
        request.json["message"]["metadata"]["mailhouse_message_id"]: request.json for request in requests
    }
    assert bodies["id-1"]["message"]["headers"] == {
        "List-Unsubscribe": "<https://x.example/u>", "Reply-To": "help@example.com",
    }  # fmt: skip
    assert bodies["id-4"]["send_at"] == "2026-06-27 10:00:00"
