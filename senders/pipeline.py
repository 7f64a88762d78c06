"""Claim, render, dispatch, record: a stream of audience batches in bounded memory.

What can be known to be wrong is found before anything is claimed: settings, template, merge tags. From then on every
step is in the ledger before the next one begins (`senders.ledger`), so the same call may be made again at any time,
after a crash too: it goes on where it stopped and sends nothing twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from campaigns.identity import message_ids, occurrence_key
from senders import mime
from senders.ledger import Cap, Claim, Ledger, LedgerError, Outcome, Run
from senders.limits import rate_limit
from senders.message import Address, Delivery, Message, Reason, RejectReason, Status
from senders.providers.base import (
    ADDRESS_COLUMNS,
    Needs,
    Provider,
    ProviderError,
    ProviderUnavailableError,
    require_capabilities,
)
from senders.rendering import RenderError, Template, TemplateLibrary
from senders.retries import RetryPolicy
from senders.settings import SenderSettings, require_identity, require_rehearsal_safe
from senders.unsubscribe import preferences_url, unsubscribe_url
from warehouse.errors import InputError, SettingsError

if TYPE_CHECKING:
    from campaigns.specs import CampaignSpec

#: Columns of an audience that are not the contact's profile.
NOT_PROFILE = frozenset(
    {
        "skip_reason",
        "consent_id",
        "suppression_event_id",
        "recommendations",
        "recommendation_version",
        "variant",
    }
)
_REQUIRED = ("contact_id", "email", "skip_reason")


@dataclass(frozen=True, kw_only=True)
class SendPlan:
    """What is sent, once the audience is decided.

    Attributes:
        kind, name, version, occurrence: the campaign, journey step or trigger; with the contact they make the message.
        subject, preheader: templates; `place` says where they are written, for messages about them.
        cap: frequency cap; None takes the default of the settings. Counts for marketing only.
        provider: name of a provider; empty takes that of the settings.
        from_email, from_name, reply_to: empty takes those of the settings.
        is_tracked: the provider counts opens and clicks.
        hold: the provider holds each message back for so long; `is_cancellable` until then.
    """

    name: str
    occurrence: str
    template: str
    subject: str
    kind: str = "campaign"
    version: str = ""
    category: str = "marketing"
    channel: str = "email"
    preheader: str = ""
    place: str = ""
    segment: str = ""
    segment_version: str = ""
    provider: str = ""
    from_email: str = ""
    from_name: str = ""
    reply_to: str = ""
    cap: Cap | None = None
    experiment: str = ""
    is_tracked: bool = False
    hold: timedelta = timedelta(0)
    is_cancellable: bool = False

    def needs(self) -> Needs:
        """What this asks of its provider."""
        return Needs(
            channel=self.channel, category=self.category, is_tracked=self.is_tracked, hold=self.hold,
            is_cancellable=self.is_cancellable,
        )  # fmt: skip

    @classmethod
    def from_campaign(
        cls, spec: CampaignSpec, occurrence: datetime, *, segment_version: str = ""
    ) -> SendPlan:
        """The plan of one occurrence of a campaign."""
        send = spec.send
        return cls(
            kind="campaign",
            name=spec.campaign,
            version=spec.version,
            occurrence=occurrence_key(occurrence),
            template=send.template,
            subject=send.subject,
            preheader=send.preheader or "",
            place=spec.place("send", "subject"),
            category=send.category,
            channel=send.channel,
            segment=spec.audience.segment,
            segment_version=segment_version,
            provider=send.provider or "",
            from_email=send.from_email or "",
            from_name=send.from_name or "",
            reply_to=send.reply_to or "",
            cap=Cap(spec.cap.messages, spec.cap.within) if spec.cap else None,
            is_tracked=send.tracking,
            hold=send.hold or timedelta(0),
            is_cancellable=send.cancellable,
        )


@dataclass
class SendSummary:
    """What became of an audience, so far or in the end.

    Attributes:
        sent: accepted by the provider in this run.
        skipped: not sent on purpose, by reason.
        failed: certainly not sent; a rerun tries those again whose reason is temporary.
        rejected, invalid: refused by the provider, or without a usable address.
        unknown: may have gone; the provider's events will tell.
        already_claimed: decided by an earlier run, or held by another one that is at work.
        settled: what a crashed run had left open, by what became of it.
        seconds: wall time.
        is_interrupted: stopped by a signal; the rest of the audience waits for a rerun.
    """

    sent: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    rejected: int = 0
    invalid: int = 0
    unknown: int = 0
    already_claimed: int = 0
    settled: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    is_interrupted: bool = False

    @property
    def seen(self) -> int:
        """Audience members that have been dealt with."""
        return (
            self.sent + sum(self.skipped.values()) + self.failed + self.rejected + self.invalid + self.unknown
            + self.already_claimed
        )  # fmt: skip

    def count(self, status: Status, number: int = 1) -> None:
        """Count messages that came to a status."""
        name = "sent" if status == Status.QUEUED else status.value
        setattr(self, name, getattr(self, name) + number)


Progress = Callable[[SendSummary], None]


def render_context(
    plan: SendPlan,
    settings: SenderSettings,
    contact: Mapping[str, Any],
    recommendations: Sequence[Any],
    now: datetime,
    *,
    variant: str = "",
    unsubscribe_url: str,
    preferences_url: str,
) -> dict[str, Any]:
    """What merge tags of a message may name; the same for a message that is sent and for a preview of it."""
    return {
        "contact": contact,
        "recommendations": recommendations,
        "campaign": {
            "kind": plan.kind, "name": plan.name, "version": plan.version,
            "occurrence": plan.occurrence, "category": plan.category, "variant": variant,
        },
        "unsubscribe_url": unsubscribe_url,
        "preferences_url": preferences_url,
        "postal_address": settings.postal_address,
        "company_name": settings.company_name,
        "now": now,
    }  # fmt: skip


def send(
    plan: SendPlan,
    batches: Iterable[pl.DataFrame],
    *,
    settings: SenderSettings,
    ledger: Ledger,
    provider: Provider,
    on_progress: Progress | None = None,
    templates: TemplateLibrary | None = None,
    retry: RetryPolicy | None = None,
    stop: threading.Event | None = None,
) -> SendSummary:
    """Send one occurrence to its audience; safe to call again at any time.

    Ctrl-C and SIGTERM (in the main thread), or setting `stop`, end it after the messages that are under way, with
    everything recorded.

    Args:
        batches: frames with `contact_id`, `email`, `skip_reason` and the profile's columns; see
            `campaigns.audience`. About 1,000 rows each.
        on_progress: called after each window with the running summary.
        templates: compiled templates; left out, those of `content_dir`, checked against the first batch's columns.

    Raises:
        SettingsError, TemplateError: found before anything was claimed.
        ProviderError: the provider refuses us or stays away; what was not sent waits for a rerun.
        LedgerError: the ledger cannot be written.
    """
    require_identity(settings, category=plan.category, from_email=plan.from_email)
    require_rehearsal_safe(settings, reaches_people=provider.capabilities.reaches_people)
    require_capabilities(provider.name, provider.capabilities, plan.needs(), place=plan.place)
    frames = iter(batches)
    first = next(frames, None)
    columns = [name for name in first.columns if name not in NOT_PROFILE] if first is not None else []
    if first is not None:
        _check_columns(first)
        _check_address(first, plan.channel)
    if templates is None:
        folder = settings.content_dir / "templates"
        templates = TemplateLibrary.load(folder, columns) if columns else TemplateLibrary.load(folder)
    template = templates.template(
        plan.template, subject=plan.subject, preheader=plan.preheader, place=plan.place
    )
    if plan.category == "marketing":
        template.require_marketing(plan.template)
    stop = stop or threading.Event()
    sender = _Sender(plan, template, settings, ledger, provider, retry or RetryPolicy(), stop, on_progress)
    with _signals(stop):
        return sender.run(itertools.chain([] if first is None else [first], frames))


class _Sender:
    def __init__(
        self,
        plan: SendPlan,
        template: Template,
        settings: SenderSettings,
        ledger: Ledger,
        provider: Provider,
        retry: RetryPolicy,
        stop: threading.Event,
        on_progress: Progress | None,
    ) -> None:
        self.plan, self.template, self.settings = plan, template, settings
        self.ledger, self.provider, self.retry, self.stop = ledger, provider, retry, stop
        self.on_progress = on_progress
        self.key = settings.signing_key()
        self.limit = rate_limit(settings.rate_per_second, settings.rate_burst)
        self.window = provider.capabilities.dispatch_window
        if settings.rate_per_second:
            # never more under way than may go in a second
            self.window = max(1, min(self.window, int(settings.rate_per_second)))
        self.cap = plan.cap
        if self.cap is None and settings.default_cap_messages:
            self.cap = Cap(settings.default_cap_messages, timedelta(days=settings.default_cap_days))
        if plan.category != "marketing":
            self.cap = None
        self.sender = Address(
            plan.from_email or settings.from_email, mime.one_line(plan.from_name or settings.from_name)
        )
        self.reply_to = Address(plan.reply_to) if plan.reply_to else None
        try:
            mime.mailbox(self.sender.email)
        except ValueError as error:
            raise SettingsError(
                f"The sender address {self.sender.email!r} cannot be used: {error}.",
                fix="Correct MAILHOUSE_FROM_EMAIL, or `from_email` in the campaign.",
            ) from None
        self.address_column = ADDRESS_COLUMNS.get(plan.channel, "")
        self.summary = SendSummary()
        self.started = time.monotonic()
        self.ledger_plan = {
            "kind": plan.kind, "name": plan.name, "version": plan.version, "occurrence": plan.occurrence,
            "channel": plan.channel, "provider": provider.name, "category": plan.category,
            "template": plan.template, "template_version": template.version, "segment": plan.segment,
            "segment_version": plan.segment_version, "experiment": plan.experiment,
        }  # fmt: skip

    def run(self, frames: Iterator[pl.DataFrame]) -> SendSummary:
        lookup = self.provider.lookup if self.provider.capabilities.can_look_up else None
        settled = self.ledger.recover(self.settings.now(), provider=self.provider.name, lookup=lookup)
        self.summary.settled = dict(settled)
        run = self.ledger.begin_run(self.plan.kind, self.plan.name, self.plan.occurrence, self.settings.now())
        outcome = "failed"
        try:
            with _heartbeat(self.ledger, run, self.settings.claim_lease):
                for frame in frames:
                    if self.stop.is_set():
                        break
                    self.batch(run, frame)
                if not self.stop.is_set():
                    left = self.ledger.abandon(run, self.settings.now())
                    if left:
                        self.skip(Reason.LEFT_AUDIENCE, left)
            self.summary.is_interrupted = self.stop.is_set()
            outcome = "interrupted" if self.summary.is_interrupted else "finished"
        finally:
            # a ledger that cannot be written fails above; its own error is the one to show
            with contextlib.suppress(LedgerError):
                self.ledger.end_run(run, outcome, self.settings.now())
        self.report()
        return self.summary

    def report(self) -> None:
        self.summary.seconds = time.monotonic() - self.started
        if self.on_progress is not None:
            self.on_progress(self.summary)

    def skip(self, reason: str, number: int) -> None:
        self.summary.skipped[reason] = self.summary.skipped.get(reason, 0) + number

    def batch(self, run: Run, frame: pl.DataFrame) -> None:
        _check_columns(frame)
        frame = frame.unique("contact_id", keep="first", maintain_order=True)
        contacts: list[int] = frame["contact_id"].to_list()
        ids = message_ids(self.plan.kind, self.plan.name, contacts, self.plan.occurrence)
        claimed = self.ledger.claim(
            run,
            Claim(
                self.ledger_plan, ids, contacts, _texts(frame, "email"), _texts(frame, "skip_reason"),
                self.details(frame), _texts(frame, "variant"),
            ),
            self.settings.now(),
            cap=self.cap,
        )  # fmt: skip
        self.summary.already_claimed += claimed.already_claimed
        for reason, number in claimed.skipped.items():
            self.skip(reason, number)
        positions = sorted(claimed.rows)
        waiting: list[tuple[int, Message, int]] = []
        again: float = 0.0
        for start in range(0, len(positions), self.window):
            if self.stop.is_set():
                return
            part = positions[start : start + self.window]
            rendered = self.render(
                run, frame[part], [ids[at] for at in part], [claimed.rows[at] for at in part]
            )
            later, pause = self.dispatch(run, [(row_id, message, 1) for row_id, message in rendered])
            waiting += later
            again = max(again, pause)
        while waiting and not self.stop.wait(again):
            part, waiting = waiting[: self.window], waiting[self.window :]
            later, pause = self.dispatch(run, part)
            waiting += later
            again = pause if later else 0.0
        if not positions:
            self.report()

    def details(self, frame: pl.DataFrame) -> list[str]:
        """What explains each decision, as JSON, for `mailhouse why`."""
        constant: dict[str, Any] = {}
        if self.cap is not None:
            constant["cap"] = {"messages": self.cap.messages, "seconds": int(self.cap.within.total_seconds())}
        names = ("consent_id", "suppression_event_id", "recommendation_version")
        columns = [_texts(frame, name) for name in names]
        return [
            json.dumps({**constant, **{name: value for name, value in zip(names, row, strict=True) if value}})
            for row in zip(*columns, strict=True)
        ]

    def render(
        self, run: Run, frame: pl.DataFrame, ids: Sequence[str], row_ids: Sequence[int]
    ) -> list[tuple[int, Message]]:
        """Messages that can go; those that cannot are recorded with their reason."""
        now = self.settings.now()
        columns = [name for name in frame.columns if name not in NOT_PROFILE]
        if self.template.columns is not None:
            always = {"contact_id", "email", "first_name", "last_name", self.address_column}
            always |= self.template.columns
            columns = [name for name in columns if name in always]
        recommendations = (
            frame["recommendations"].to_list() if "recommendations" in frame.columns else [[]] * frame.height
        )
        variants = _texts(frame, "variant")
        messages: list[tuple[int, Message]] = []
        failures: list[Outcome] = []
        for contact, items, variant, message_id, row_id in zip(
            frame.select(columns).iter_rows(named=True), recommendations, variants, ids, row_ids, strict=True
        ):
            try:
                message = self.message(contact, items or [], variant, message_id, now)
                if self.provider.capabilities.wants_raw:
                    # made here, so that what cannot be written is known before the provider is called
                    _ = message.raw
                messages.append((row_id, message))
            except RenderError as error:
                failures.append(Outcome(row_id, Status.FAILED, Reason.NOT_RENDERED, reply=str(error)))
            except ValueError as error:
                failures.append(Outcome(row_id, Status.INVALID, RejectReason.INVALID, reply=str(error)))
        if failures:
            self.ledger.fail_claimed(run, failures, now)
            for failure in failures:
                self.summary.count(failure.status)
        return messages

    def message(
        self, contact: dict[str, Any], items: list[Any], variant: str, message_id: str, now: datetime
    ) -> Message:
        plan, settings = self.plan, self.settings
        url = unsubscribe_url(settings.base_url, message_id, self.key)
        rendered = self.template.render(
            render_context(
                plan, settings, contact, items, now, variant=variant, unsubscribe_url=url,
                preferences_url=preferences_url(settings.base_url, message_id, self.key),
            )
        )  # fmt: skip
        headers: tuple[tuple[str, str], ...] = ()
        if plan.category == "marketing":
            label = "".join(c if c.isalnum() and c.isascii() else "-" for c in plan.name).strip("-")
            headers = (
                ("List-Unsubscribe", f"<{url}>"),
                ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
                ("List-Id", f"<{label}.{mime.ascii_domain(self.sender.email.rpartition('@')[2])}>"),
                ("Feedback-ID", f"{label}:{plan.category}:{plan.kind}:mailhouse"),
            )
        names = (contact.get("first_name"), contact.get("last_name"))
        return Message(
            message_id=message_id,
            contact_id=contact["contact_id"],
            sender=self.sender,
            recipient=Address(contact["email"], mime.one_line(" ".join(str(name) for name in names if name))),
            subject=rendered.subject,
            html=rendered.html,
            text=rendered.text,
            sent_at=now.replace(microsecond=0),
            reply_to=self.reply_to,
            headers=headers,
            address=str(contact.get(self.address_column) or "") if self.address_column else "",
            deliver_at=now + plan.hold if plan.hold else None,
            is_tracked=plan.is_tracked,
        )

    def dispatch(
        self, run: Run, window: list[tuple[int, Message, int]]
    ) -> tuple[list[tuple[int, Message, int]], float]:
        """Send one window; returns what is to be tried again, and after how many seconds."""
        for tries in itertools.count(1):
            if not window or not self.limit.take(len(window), self.stop):
                return [], 0.0
            granted = self.ledger.dispatch(run, [row_id for row_id, _, _ in window], self.settings.now())
            self.summary.already_claimed += len(window) - len(granted)
            window = [entry for entry in window if entry[0] in granted]
            try:
                deliveries = self.provider.send([message for _, message, _ in window])
            except ProviderError as error:
                # nothing was handed over, so all of it may be tried again, now or by the next run
                self.ledger.record(run, [], self.settings.now(), release=[row_id for row_id, _, _ in window])
                pause = None
                if isinstance(error, ProviderUnavailableError):
                    pause = self.retry.wait(tries, error.retry_after)
                if pause is None:
                    raise
                if self.stop.wait(pause):
                    return [], 0.0
                continue
            return self.record(run, window, deliveries)
        raise AssertionError("unreachable")

    def record(
        self, run: Run, window: list[tuple[int, Message, int]], deliveries: Sequence[Delivery]
    ) -> tuple[list[tuple[int, Message, int]], float]:
        answers = {delivery.message_id: delivery for delivery in deliveries}
        outcomes: list[Outcome] = []
        later: list[tuple[int, Message, int]] = []
        pause = 0.0
        for row_id, message, tries in window:
            delivery = answers.get(message.message_id)
            if delivery is None:
                delivery = Delivery(message.message_id, Status.UNKNOWN, reply="the provider gave no answer")
            if delivery.is_transient:
                wait = self.retry.wait(tries, delivery.retry_after)
                if wait is not None and not self.stop.is_set():
                    later.append((row_id, message, tries + 1))
                    pause = max(pause, wait)
                    continue
                delivery = dataclasses.replace(delivery, status=Status.FAILED, reason=Reason.DEFERRED)
            outcomes.append(Outcome.of(row_id, delivery, message.subject))
            self.summary.count(delivery.status)
        self.ledger.record(run, outcomes, self.settings.now(), release=[row_id for row_id, _, _ in later])
        self.report()
        return later, pause


def _check_columns(frame: pl.DataFrame) -> None:
    missing = [name for name in _REQUIRED if name not in frame.columns]
    if missing:
        raise InputError(
            f"The audience lacks the column {missing[0]}.",
            fix=f"An audience has {', '.join(_REQUIRED)} and the profile's columns; see campaigns.audience.",
        )


def _check_address(frame: pl.DataFrame, channel: str) -> None:
    column = ADDRESS_COLUMNS.get(channel)
    if column is not None and column not in frame.columns:
        raise InputError(
            f"Messages by {channel} go to the column {column}, and contacts have no such column.",
            fix=f"Add {column} to the contacts' profile (marts.contact_profiles), or use another channel.",
        )


def _texts(frame: pl.DataFrame, name: str) -> list[str]:
    """A text column without NULLs; all empty if the frame does not have it."""
    if name not in frame.columns:
        return [""] * frame.height
    return frame[name].cast(pl.String).fill_null("").to_list()


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into `stop`; the second one acts as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        del frame
        stop.set()
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _heartbeat(ledger: Ledger, run: Run, lease: float) -> Iterator[None]:
    """Keep the run's claims ours while we wait for providers and rate limits."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(lease / 4):
            with contextlib.suppress(LedgerError):
                ledger.heartbeat(run)

    thread = threading.Thread(target=beat, name=f"heartbeat-{run.run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
