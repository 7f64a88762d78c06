"""Every provider that speaks HTTP, through the same failures: nothing is lost, and nothing goes twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from sending import audience, plan, sender_settings, write_content
from vendor_server import Answer, Request, VendorServer, serve

from senders.export import SETTLED_BY
from senders.ledger import Ledger
from senders.message import Address, Delivery, EventType, Message, Status
from senders.pipeline import SendSummary, send
from senders.providers import PROVIDERS, provider_class
from senders.providers.base import ProviderRefusedError
from senders.providers.http import HttpProvider
from senders.providers.mandrill import MandrillProvider
from senders.retries import RetryPolicy
from senders.settings import SenderSettings
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
        events: message id -> body and headers of the webhook call that says it was delivered; None if there is none.
        refused: the vendor's answer to a wrong key.
        is_unsure: whether a gateway's 502 leaves the outcome open.
    """

    make: Callable[[str], HttpProvider]
    vendor: Callable[[Request], tuple[list[str], Answer]]
    checks: Callable[[Request], None] | None = None
    events: Callable[[str], tuple[bytes, dict[str, str]]] | None = None
    refused: Answer = field(default_factory=lambda: Answer(401, {"message": "the-secret-key is wrong"}))
    setup_calls: int = 0


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


CASES: dict[str, Callable[[], Case]] = {"mandrill": mandrill_case}


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
                plan(channel=capabilities.channel, category=category, **more), frames or [people()],
                settings=self.settings, ledger=ledger, provider=self.provider, retry=QUICK,
            )  # fmt: skip

    def counts(self) -> Counter[str]:
        with Ledger.open(self.settings) as ledger:
            return ledger.counts(*THING)


def people(number: int = PEOPLE) -> pl.DataFrame:
    frame = pl.concat(list(audience(number)))
    return frame.with_columns(
        phone=pl.format("+4477009{}", pl.col("contact_id").cast(pl.String).str.zfill(5)),
        push_token=pl.format("token-{}", "contact_id"),
    )


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


@pytest.mark.parametrize("failure", ["429", "503", "html_503", "html_403"])
def test_too_much_then_accepted(bench: Bench, failure: str) -> None:
    bench.server.script = ["ok", failure, failure]
    assert bench.run().sent == PEOPLE
    assert bench.server.taken.total() == PEOPLE
    assert bench.counts().keys() <= {"sent", "queued"}


@pytest.mark.parametrize("failure", ["reset_after", "html_200_after"])
def test_reset_after_acceptance_is_unknown_never_resent_and_settled(bench: Bench, failure: str) -> None:
    first = bench.case.setup_calls
    bench.server.script = ["ok"] * first + [failure]
    summary = bench.run()
    if failure == "html_200_after" and summary.unknown == 0:
        pytest.skip("its answer has no content that could be wrong")
    assert (summary.unknown, summary.sent) == (1, PEOPLE - 1)
    assert bench.server.taken.total() == PEOPLE
    with Ledger.open(bench.settings) as ledger:
        (unknown,) = ledger.unknown_message_ids()
    rerun = bench.run()
    assert rerun.sent == 0 and bench.server.taken.total() == PEOPLE
    if bench.provider.capabilities.can_look_up:
        assert rerun.settled == {"sent": 1}
    elif bench.case.events is not None:
        body, headers = bench.case.events(unknown)
        rows = bench.provider.parse_webhook(body, headers)
        assert [row["message_id"] for row in rows] == [unknown]
        with Ledger.open(bench.settings) as ledger:
            assert ledger.settle({unknown: SETTLED_BY[EventType(rows[0]["type"])]}, AT) == {"sent": 1}
    else:
        assert bench.counts()["unknown"] == 1


@pytest.mark.parametrize("failure", ["html_500", "html_502", "html_504", "reset_before"])
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


def one(case: Case, *batch: Message) -> tuple[list[Delivery], list[Request]]:
    with (
        serve(lambda request: case.vendor(request)[1], case.checks) as server,
        case.make(server.url) as provider,
    ):
        return provider.send(batch), server.requests


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
