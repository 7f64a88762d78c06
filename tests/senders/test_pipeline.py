"""Sending as a whole: what arrives, what is recorded, what stops it, and that nothing goes twice."""

from __future__ import annotations

import email
import email.policy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path

import polars as pl
import pytest
from sending import audience, plan, recipients, send_all, sender_settings, write_content

from campaigns.identity import message_id
from senders.ledger import Ledger
from senders.message import Delivery, Message, Status
from senders.pipeline import SendSummary, send
from senders.plan import Cap
from senders.providers import get_provider
from senders.providers.base import Capabilities, Provider, ProviderRefusedError, ProviderUnavailableError
from senders.providers.maildir import MaildirProvider
from senders.rendering import TemplateError
from senders.retries import RetryPolicy
from senders.settings import SenderSettings
from senders.unsubscribe import verify_token
from warehouse.errors import InputError, SettingsError

QUICK = RetryPolicy(attempts=3, first=0.01, longest=0.02)
THING = ("campaign", "offer", "2026-06-27T09:00:00Z")


@pytest.fixture
def settings(tmp_path: Path) -> SenderSettings:  # pyright: ignore[reportIncompatibleVariableOverride]
    write_content(tmp_path / "content")
    return sender_settings(tmp_path)


class Memory(Provider):
    """A provider that answers as it is told, and fails the test if it gets a message twice."""

    name = "memory"

    def __init__(self, *, window: int = 10, reaches_people: bool = False) -> None:
        self.capabilities = Capabilities(dispatch_window=window, reaches_people=reaches_people)
        self.taken: dict[str, Message] = {}
        self.calls = 0
        self.errors: list[Exception] = []
        self.answers: dict[str, list[Delivery]] = {}

    def send(self, batch: Sequence[Message]) -> list[Delivery]:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return [self.one(message) for message in batch]

    def one(self, message: Message) -> Delivery:
        queued = self.answers.get(message.recipient.email)
        if queued:
            return queued.pop(0)
        assert message.message_id not in self.taken, "sent twice"
        self.taken[message.message_id] = message
        return Delivery(message.message_id, Status.SENT)


def through(settings: SenderSettings, provider: Provider, people: int = 30, **more: object) -> SendSummary:
    with Ledger.open(settings) as ledger:
        return send(
            plan(), audience(people), settings=settings, ledger=ledger, provider=provider, retry=QUICK, **more
        )  # pyright: ignore[reportArgumentType]


def only_message(folder: Path) -> EmailMessage:
    (file,) = (folder / "new").iterdir()
    found = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


def test_an_audience_gets_its_mail_once(settings: SenderSettings) -> None:
    with Ledger.open(settings) as ledger, get_provider(settings) as provider:
        for number in range(2):
            summary = send(
                plan(),
                audience(1200, rows=500, skip_every=10),
                settings=settings,
                ledger=ledger,
                provider=provider,
            )
            assert summary.seen == 1200
            assert (summary.sent, summary.skipped, summary.already_claimed) == [
                (1080, {"no_consent": 120}, 0), (0, {}, 1200),
            ][number]  # fmt: skip
        assert ledger.counts(*THING) == {"sent": 1080, "skipped": 120}
    got = recipients(settings.maildir)
    assert sorted(got) == sorted(f"person{n}@example.com" for n in range(1, 1201) if n % 10)


def test_what_a_message_looks_like(settings: SenderSettings) -> None:
    send_all(settings, 1)
    found = only_message(settings.maildir)
    expected = message_id(*THING[:2], 1, THING[2])
    assert found["Message-ID"] == f"<{expected}@example.com>"
    assert found["From"] == "The Shop <shop@example.com>"
    assert found["To"].addresses[0].display_name == "Zoë 1"
    assert found["Subject"] == "For Zoë 1"
    assert found["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert found["List-Id"] == "<offer.example.com>"
    url = found["List-Unsubscribe"].strip("<>")
    assert url.startswith("http://127.0.0.1:18124/unsubscribe/")
    assert verify_token(settings.signing_key(), url.rpartition("/")[2]) == expected
    html, text = found.get_body(("html",)), found.get_body(("plain",))
    assert html is not None
    assert text is not None
    for part in (html.get_content(), text.get_content()):
        assert url in part
        assert "1 High Street, York" in part
        assert "£3.45" in part


def test_transactional_mail_carries_no_list_headers_and_no_cap(settings: SenderSettings) -> None:
    with Ledger.open(settings) as ledger, get_provider(settings) as provider:
        for name in ("receipt", "receipt_two"):
            summary = send(
                plan(name=name, category="transactional", cap=Cap(1, timedelta(days=1))), audience(1),
                settings=settings, ledger=ledger, provider=provider,
            )  # fmt: skip
            assert summary.sent == 1
    for file in (settings.maildir / "new").iterdir():
        assert b"List-Unsubscribe" not in file.read_bytes().split(b"\r\n\r\n")[0]


def test_cap(settings: SenderSettings) -> None:
    capped = settings.model_copy(update={"default_cap_messages": 2})
    with Ledger.open(settings) as ledger, get_provider(settings) as provider:
        results = [
            send(plan(name=name), audience(5), settings=capped, ledger=ledger, provider=provider)
            for name in ("one", "two", "three")
        ]
        last = send(
            plan(name="four", cap=Cap(4, timedelta(days=7))),
            audience(5),
            settings=capped,
            ledger=ledger,
            provider=provider,
        )
    assert [result.sent for result in results] == [5, 5, 0]
    assert results[2].skipped == {"frequency_cap": 5}
    assert last.sent == 5


def test_a_contact_who_cannot_be_rendered_or_addressed_fails_alone(settings: SenderSettings) -> None:
    templates = settings.content_dir / "templates"
    text = (templates / "offer.mjml").read_text()
    (templates / "offer.mjml").write_text(text.replace(" | default('there')", ""))
    frame = next(audience(4)).with_columns(
        email=pl.Series(["a@example.com", "not an address", "c@example.com", "d@example.com"])
    )
    with Ledger.open(settings) as ledger, get_provider(settings) as provider:
        summary = send(plan(), [frame], settings=settings, ledger=ledger, provider=provider)
        assert (summary.sent, summary.failed, summary.invalid) == (2, 1, 1)
        failed = ledger.find(message_id(*THING[:2], 3, THING[2]))
        assert failed is not None
        assert failed.reason == "not_rendered"
        assert "first_name" in failed.provider_reply
        # once the template is mended, that contact gets it after all
        (templates / "offer.mjml").write_text(text)
        summary = send(plan(), [frame], settings=settings, ledger=ledger, provider=provider)
        assert (summary.sent, summary.already_claimed) == (1, 3)
    assert sorted(recipients(settings.maildir)) == ["a@example.com", "c@example.com", "d@example.com"]


def test_what_is_wrong_for_all_is_found_before_anything_is_claimed(
    settings: SenderSettings, tmp_path: Path
) -> None:
    templates = settings.content_dir / "templates"
    (templates / "bad.mjml").write_text(
        (templates / "offer.mjml").read_text().replace("first_name", "frist_name | upper")
    )
    (templates / "rude.mjml").write_text("<mjml><mj-body></mj-body></mjml>")
    cases: list[tuple[type[Exception], str, dict[str, object], dict[str, object]]] = [
        (TemplateError, "frist_name", {"template": "bad"}, {}),
        (TemplateError, "unsubscribe_url", {"template": "rude"}, {}),
        (TemplateError, "no template", {"template": "none"}, {}),
        (TemplateError, "x.yaml:3", {"subject": "{{ nothing }}", "place": "x.yaml:3"}, {}),
        (SettingsError, "postal address", {}, {"postal_address": " "}),
        (SettingsError, "company name", {}, {"company_name": ""}),
        (SettingsError, "sender address", {}, {"from_email": ""}),
        (SettingsError, "cannot be used", {}, {"from_email": "shop"}),
        (SettingsError, "MAILHOUSE_BASE_URL", {}, {"base_url": "mail.example.com"}),
        (SettingsError, "sends email", {"channel": "sms"}, {}),
    ]
    provider = Memory()
    with Ledger.open(settings) as ledger:
        for kind, said, of_plan, of_settings in cases:
            with pytest.raises(kind, match=said):
                send(
                    plan(**of_plan), audience(3), settings=settings.model_copy(update=of_settings), ledger=ledger,
                    provider=provider,
                )  # fmt: skip
        with pytest.raises(InputError, match="contact_id"):
            send(
                plan(), [pl.DataFrame({"email": ["a"]})], settings=settings, ledger=ledger, provider=provider
            )
        assert ledger.counts(*THING) == {}
    assert provider.calls == 0


def test_a_rehearsal_reaches_nobody(settings: SenderSettings) -> None:
    shifted = settings.model_copy(update={"clock_offset": -1e8, "base_url": "https://mail.example.com"})
    with pytest.raises(SettingsError, match="rehearsal"):
        through(shifted, Memory(reaches_people=True))
    assert through(shifted, Memory()).sent == 30
    with pytest.raises(SettingsError, match="https"):
        through(settings, Memory(reaches_people=True))


def test_an_empty_audience_is_no_error(settings: SenderSettings) -> None:
    with Ledger.open(settings) as ledger, get_provider(settings) as provider:
        assert send(plan(), [], settings=settings, ledger=ledger, provider=provider).seen == 0


def test_what_is_temporary_is_tried_again_and_what_is_not_is_not(settings: SenderSettings) -> None:
    provider = Memory()
    later = Delivery("", Status.FAILED, "deferred", is_transient=True)

    def answer(number: int, *deliveries: Delivery) -> None:
        own = message_id(*THING[:2], number, THING[2])
        provider.answers[f"person{number}@example.com"] = [
            Delivery(own, one.status, one.reason, is_transient=one.is_transient) for one in deliveries
        ]

    answer(3, later, later)
    answer(4, later, later, later, later)
    answer(5, Delivery("", Status.REJECTED, "invalid"))
    answer(6, Delivery("", Status.UNKNOWN))
    summary = through(settings, provider)
    assert (summary.sent, summary.failed, summary.rejected, summary.unknown) == (27, 1, 1, 1)
    with Ledger.open(settings) as ledger:
        assert ledger.counts(*THING) == {"sent": 27, "failed": 1, "rejected": 1, "unknown": 1}
    provider.answers.clear()
    # a rerun tries what was temporary, never what is unknown
    again = through(settings, provider)
    assert (again.sent, again.already_claimed) == (1, 29)


def test_a_provider_that_stays_away_leaves_all_for_the_next_run(settings: SenderSettings) -> None:
    provider = Memory()
    provider.errors = [ProviderUnavailableError("away")]
    assert through(settings, provider, 15).sent == 15
    provider.errors = [ProviderUnavailableError("away")] * 3
    with pytest.raises(ProviderUnavailableError, match="away"):
        through(settings, provider)
    provider.errors = [ProviderRefusedError("never")]
    with pytest.raises(ProviderRefusedError, match="never"):
        through(settings, provider)
    assert through(settings, provider).sent == 15
    assert len(provider.taken) == 30


def test_a_defect_in_a_provider_leaves_unknowns_and_no_second_try(settings: SenderSettings) -> None:
    provider = Memory()
    provider.errors = [RuntimeError("boom")]
    with pytest.raises(RuntimeError, match="boom"):
        through(settings, provider)
    summary = through(settings, provider)
    assert summary.settled == {"unknown": 10}
    assert (summary.sent, summary.already_claimed) == (20, 10)


def test_stopping_keeps_what_is_done_and_leaves_the_rest(settings: SenderSettings) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def progress(summary: SendSummary) -> None:
        seen.append(summary.sent)
        if summary.sent >= 20:
            stop.set()

    provider = Memory()
    summary = through(settings, provider, 50, on_progress=progress, stop=stop)
    assert summary.is_interrupted
    assert summary.sent == len(provider.taken) == 20
    assert seen == sorted(seen)
    rest = through(settings, provider, 50)
    assert (rest.sent, rest.already_claimed) == (30, 20)


def test_signals_end_it_cleanly(settings: SenderSettings) -> None:
    slow = settings.model_copy(update={"rate_per_second": 20.0})

    provider = Memory()

    def interrupt() -> None:
        while not provider.taken:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    summary = through(slow, provider, 200)
    thread.join()
    assert summary.is_interrupted
    assert 0 < summary.sent == len(provider.taken) < 200
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_senders_at_once_never_double(settings: SenderSettings) -> None:
    script = Path(__file__).parent / "sending.py"
    command = [sys.executable, str(script), str(settings.home), "600", ""]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    provider = Counting(settings.maildir)
    with Ledger.open(settings) as ledger:
        send(plan(), audience(600, rows=50), settings=settings, ledger=ledger, provider=provider)
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sorted(recipients(settings.maildir)) == sorted(f"person{n}@example.com" for n in range(1, 601))
    assert not provider.doubled
    with Ledger.open(settings) as ledger:
        assert ledger.counts(*THING) == {"sent": 600}
        # each message had exactly one outcome
        assert {change["sequence"] for change in ledger.changes_to_export(10_000)} == {1}


class Counting(MaildirProvider):
    """A maildir that notices if a message is there already."""

    doubled = 0

    def send(self, batch: Sequence[Message]) -> list[Delivery]:
        found: Mapping[str, Delivery] = self.lookup([message.message_id for message in batch])
        self.doubled += sum(delivery.status == Status.SENT for delivery in found.values())
        return super().send(batch)


def test_who_left_the_audience_gets_nothing_late(settings: SenderSettings) -> None:
    provider = Memory()
    provider.errors = [ProviderRefusedError("not now")]
    with pytest.raises(ProviderRefusedError):
        through(settings, provider)
    summary = through(settings, provider, 20)
    assert summary.sent == 20
    assert summary.skipped == {"left_audience": 10}


def test_maildir_that_cannot_be_written(settings: SenderSettings) -> None:
    settings.maildir.write_text("in the way")
    with (
        pytest.raises(ProviderUnavailableError, match="maildir"),
        MaildirProvider(settings.maildir) as provider,
    ):
        through(settings, provider)


def test_unknown_providers_are_named(settings: SenderSettings) -> None:
    with pytest.raises(SettingsError, match=r"no provider 'mialdir'(.|\n)*maildir(.|\n)*smtp"):
        get_provider(settings, "mialdir")
    with pytest.raises(SettingsError, match="MAILHOUSE_SMTP_URL is not set"):
        get_provider(settings, "smtp")


def test_what_is_paused_stops_and_goes_on_where_it_stopped(settings: SenderSettings) -> None:
    provider = Memory()
    with Ledger.open(settings) as ledger:
        assert ledger.pause("campaign", "offer", settings.now())
        assert not ledger.pause("campaign", "offer", settings.now())
        assert ledger.paused("campaign") == {"offer"} and not ledger.paused("journey")
    summary = through(settings, provider, 30)
    assert summary.is_paused and summary.is_interrupted
    assert not provider.taken
    with Ledger.open(settings) as ledger:
        assert ledger.resume("campaign", "offer")
        assert not ledger.resume("campaign", "offer")
    summary = through(settings, provider, 30)
    assert not summary.is_paused
    assert summary.sent == len(provider.taken) == 30


def test_a_part_leaves_what_other_parts_left(settings: SenderSettings) -> None:
    provider = Memory()
    first, second = audience(20, rows=10)
    with Ledger.open(settings) as ledger:
        rest = {"settings": settings, "ledger": ledger, "provider": provider, "retry": QUICK}
        provider.errors = [ProviderRefusedError("not today")]
        with pytest.raises(ProviderRefusedError):
            send(plan(), iter([first]), **rest, is_part=True)
        summary = send(plan(), iter([second]), **rest, is_part=True)
        assert summary.sent == 10 and not summary.skipped
        assert send(plan(), iter([first]), **rest, is_part=True).sent == 10
        assert ledger.counts(*THING) == {"sent": 20}
