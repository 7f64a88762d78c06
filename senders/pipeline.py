"""Claim, render, dispatch, record: a stream of audience batches in bounded memory.

What can be known to be wrong is found before anything is claimed: settings, template, merge tags. From then on every
step is in the ledger before the next one begins (`senders.ledger`), so the same call may be made again at any time,
after a crash too: it goes on where it stopped and sends nothing twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
import operator
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from json.encoder import encode_basestring_ascii
from typing import Any

import polars as pl

from campaigns.identity import message_ids
from campaigns.permissions import ADDRESS_COLUMNS
from senders.composing import Envelope
from senders.journal import Journals, delete, left_behind
from senders.ledger import Claim, Ledger, LedgerError, Outcome, Run
from senders.limits import CircuitBreaker, DailyAllowance, LimitsSpec, Throttle
from senders.links import Links
from senders.message import Delivery, Reason, Status
from senders.plan import Cap, SendPlan
from senders.providers.base import (
    Capabilities,
    Provider,
    ProviderError,
    ProviderUnavailableError,
    require_capabilities,
)
from senders.rendering import PROFILE_COLUMNS, Template, TemplateLibrary
from senders.retries import RetryPolicy
from senders.rows import NOT_PROFILE, Rows
from senders.settings import SenderSettings, require_identity, require_rehearsal_safe
from senders.tracking import tracking_of
from senders.workers import (
    GARBAGE_THRESHOLDS,
    Answer,
    InProcess,
    Processes,
    Window,
    Worker,
    WorkerError,
    Workers,
    needed_columns,
)
from warehouse.errors import InputError, MailhouseError

_REQUIRED = ("contact_id", "email", "skip_reason")
_JOURNALS = "journals"  # in the home folder
_IS_TRANSIENT = operator.attrgetter("is_transient")
_PAUSE_SECONDS = 2.0  # a pause takes hold within so many, and the windows under way


@dataclass
class SendSummary:
    """What became of an audience, so far or in the end.

    Attributes:
        sent: accepted by the provider in this run.
        skipped: not sent on purpose, by reason.
        failed: certainly not sent; a rerun tries those again whose reason is temporary.
        rejected, invalid: refused by the provider, or without a usable address.
        unknown: may have gone; the provider's events will tell.
        waiting: go when quiet hours are over, by a later run.
        already_claimed: decided by an earlier run, or held by another one that is at work.
        settled: what a crashed run had left open, by what became of it.
        seconds: wall time.
        is_interrupted: stopped by a signal or a pause; the rest of the audience waits for a rerun.
        is_paused: stopped, or not begun, because somebody has paused it.
    """

    sent: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    rejected: int = 0
    invalid: int = 0
    unknown: int = 0
    waiting: int = 0
    already_claimed: int = 0
    settled: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    is_interrupted: bool = False
    is_paused: bool = False

    @property
    def seen(self) -> int:
        """Audience members that have been dealt with."""
        return (
            self.sent + sum(self.skipped.values()) + self.failed + self.rejected + self.invalid + self.unknown
            + self.waiting + self.already_claimed
        )  # fmt: skip

    def count(self, status: Status, number: int = 1) -> None:
        """Count messages that came to a status."""
        name = "sent" if status == Status.QUEUED else status.value
        setattr(self, name, getattr(self, name) + number)


Progress = Callable[[SendSummary], None]


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
    workers: int = 0,
    is_part: bool = False,
) -> SendSummary:
    """Send one occurrence to its audience; safe to call again at any time.

    Ctrl-C and SIGTERM (in the main thread), or setting `stop`, end it after the messages that are under way, with
    everything recorded.

    Args:
        batches: frames with `contact_id`, `email`, `skip_reason` and the profile's columns; see
            `campaigns.audience`. About 1,000 rows each.
        on_progress: called after each window with the running summary.
        templates: compiled templates; left out, those of `content_dir`, checked against the first batch's columns.
        workers: processes that render and hand over, each with a provider of its own made from the settings by the
            name of `provider`; 0 does it in this process, which is quicker for some thousands of messages.
        is_part: the batches are one of several parts, sent by other processes; so what dead runs left claimed may
            belong to another part, and is left for that one.

    Raises:
        SettingsError, TemplateError: found before anything was claimed.
        ProviderError: the provider refuses us or stays away; what was not sent waits for a rerun.
        WorkerError: worker processes die; what they held is of unknown outcome.
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
        templates = TemplateLibrary.load(folder, columns or PROFILE_COLUMNS, assets_url=settings.assets_url)
    template = templates.template(
        plan.template, subject=plan.subject, preheader=plan.preheader, place=plan.place,
        tracking=tracking_of(plan, settings), links=Links(settings.signing_key(), settings.base_url),
        attachments=plan.attachments,
    )  # fmt: skip
    if plan.category == "marketing":
        template.require_marketing(plan.template, channel=plan.channel)
    require_attachable(plan, template, provider.name, provider.capabilities)
    stop = stop or threading.Event()
    journals = Journals(settings.home / _JOURNALS, ledger.place, provider.capabilities.dispatch_window)
    with _signals(stop), _workers(plan, settings, template, provider, workers, journals) as lanes:
        sender = _Sender(
            plan,
            template,
            settings,
            ledger,
            provider,
            retry or RetryPolicy(),
            stop,
            on_progress,
            lanes,
            is_part=is_part,
        )
        return sender.run(itertools.chain([] if first is None else [first], frames))


def require_attachable(plan: SendPlan, template: Template, provider: str, capabilities: Capabilities) -> None:
    """Refuse what the provider cannot do of a template's own attachments, which are known once it is loaded.

    Raises:
        SettingsError: names the provider and what it cannot do.
    """
    if template.attachments:
        is_invitation = any(one.is_invitation for one in template.attachments)
        needs = dataclasses.replace(plan.needs(), has_attachments=True, has_invitation=is_invitation)
        require_capabilities(provider, capabilities, needs, place=plan.place or plan.template)


def _workers(
    plan: SendPlan,
    settings: SenderSettings,
    template: Template,
    provider: Provider,
    count: int,
    journals: Journals,
) -> Workers:
    # made in any case: what is wrong with the settings is found here
    envelope = Envelope.of(plan, settings)
    worker = Worker(plan, envelope, template, provider, clock_offset=settings.clock_offset)
    if count > 0:
        return Processes(count, plan, settings, template, provider.name, journals)
    return InProcess(worker, journals)


class _Sender:
    """The coordinator of one send: it alone writes the ledger."""

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
        workers: Workers,
        *,
        is_part: bool,
    ) -> None:
        self.plan, self.settings, self.is_part = plan, settings, is_part
        self.ledger, self.provider, self.retry, self.stop = ledger, provider, retry, stop
        self.on_progress, self.workers = on_progress, workers
        self.columns = needed_columns(template, plan.channel)
        self.product_fields = template.source.product_fields
        self.limit = Throttle.of(settings, provider.name, plan.name)
        ladder = LimitsSpec.load(settings.content_dir).warm_up.get(provider.name)
        self.allowance = DailyAllowance(ledger, provider.name, ladder)
        self.breaker = CircuitBreaker()
        self.window = provider.capabilities.dispatch_window
        if self.limit.per_second:
            # never more under way than may go in a second
            self.window = max(1, min(self.window, int(self.limit.per_second)))
        self.cap = plan.cap
        if self.cap is None and settings.default_cap_messages:
            self.cap = Cap(settings.default_cap_messages, timedelta(days=settings.default_cap_days))
        if plan.category != "marketing":
            self.cap = None
        self.summary = SendSummary()
        self.started = time.monotonic()
        self.again: list[tuple[float, Window]] = []
        # while the provider is away: how often it was in a row, and when it is asked again
        self.absences, self.resumes_at = 0, 0.0
        self.looked_at = 0.0
        self.trouble: MailhouseError | None = None
        self.ledger_plan = {
            "kind": plan.kind, "name": plan.name, "version": plan.version, "occurrence": plan.occurrence,
            "channel": plan.channel, "provider": provider.name, "category": plan.category,
            "template": plan.template, "template_version": template.version, "segment": plan.segment,
            "segment_version": plan.segment_version, "experiment": plan.experiment,
        }  # fmt: skip

    def run(self, frames: Iterator[pl.DataFrame]) -> SendSummary:
        lookup = self.provider.lookup if self.provider.capabilities.can_look_up else None
        # first the notes, then the ledger: what somebody else settles meanwhile needs none
        notes, files = left_behind(self.settings.home / _JOURNALS, self.ledger.place)
        settled = self.ledger.recover(
            self.settings.now(), provider=self.provider.name, lookup=lookup, notes=notes
        )
        delete(files)
        self.summary.settled = dict(settled)
        run = self.ledger.begin_run(self.plan.kind, self.plan.name, self.plan.occurrence, self.settings.now())
        self.workers.run_id = run.run_id
        outcome = "failed"
        try:
            with _heartbeat(self.ledger, run, self.settings.claim_lease), _rare_collections():
                try:
                    for frame in frames:
                        if self.is_over:
                            break
                        self.batch(run, frame)
                    self.finish(run)
                finally:
                    # whatever ends this run, what is under way is recorded
                    while self.workers.is_busy:
                        self.collect(run, wait=True)
                self.workers.all_recorded()
                if self.trouble is not None:
                    raise self.trouble
                if not self.stop.is_set() and not self.is_part:
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

    @property
    def is_over(self) -> bool:
        """Whether nothing more may begin."""
        return self.stop.is_set() or self.trouble is not None

    def report(self) -> None:
        self.summary.seconds = time.monotonic() - self.started
        if self.on_progress is not None:
            self.on_progress(self.summary)

    def skip(self, reason: str, number: int) -> None:
        self.summary.skipped[reason] = self.summary.skipped.get(reason, 0) + number

    def batch(self, run: Run, frame: pl.DataFrame) -> None:
        """Claim a batch of the audience and give out what may go."""
        _check_columns(frame)
        frame = frame.unique("contact_id", keep="first", maintain_order=True)
        contacts: list[int] = frame["contact_id"].to_list()
        ids = message_ids(self.plan.kind, self.plan.name, contacts, self.plan.occurrence)
        reasons = texts(frame, "skip_reason")
        quiet: set[int] = set()
        if self.plan.waits_for_quiet:
            quiet = {at for at, reason in enumerate(reasons) if reason == Reason.QUIET_HOURS}
            reasons = ["" if at in quiet else reason for at, reason in enumerate(reasons)]
        claimed = self.ledger.claim(
            run,
            Claim(
                self.ledger_plan, ids, contacts, texts(frame, "email"), reasons,
                self.details(frame), texts(frame, "variant"),
            ),
            self.settings.now(),
            cap=self.cap,
        )  # fmt: skip
        self.summary.already_claimed += claimed.already_claimed
        for reason, number in claimed.skipped.items():
            self.skip(reason, number)
        self.wait_for_quiet(run, [row for at, row in claimed.rows.items() if at in quiet])
        positions = sorted(claimed.rows.keys() - quiet)
        rows = rows_of(frame, self.columns, self.product_fields)
        for start in range(0, len(positions), self.window):
            part = positions[start : start + self.window]
            self.dispatch(
                run, Window([claimed.rows[at] for at in part], [ids[at] for at in part], rows.only(part))
            )
            if self.is_over:
                return
        self.retry_due(run)
        if not positions:
            self.report()

    def wait_for_quiet(self, run: Run, row_ids: Sequence[int]) -> None:
        """Put down what goes when quiet hours are over, by a later run."""
        if row_ids:
            reply = "waits for the end of quiet hours"
            outcomes = [Outcome(one, Status.FAILED, Reason.QUIET_HOURS, reply=reply) for one in row_ids]
            self.ledger.fail_claimed(run, outcomes, self.settings.now())
            self.summary.waiting += len(row_ids)

    def finish(self, run: Run) -> None:
        """Wait for what is under way and for what is to be tried again."""
        while not self.is_over and (self.workers.is_busy or self.again):
            self.collect(run, wait=True)
            if self.again and not self.workers.is_busy:
                self.stop.wait(max(0.0, min(due for due, _ in self.again) - time.monotonic()))
            self.retry_due(run)

    def retry_due(self, run: Run) -> None:
        now = time.monotonic()
        due = [window for moment, window in self.again if moment <= now]
        self.again = [(moment, window) for moment, window in self.again if moment > now]
        for window in due:
            if self.is_over:
                return
            self.dispatch(run, window)

    def details(self, frame: pl.DataFrame) -> list[str]:
        """What explains each decision, as JSON, for `mailhouse why`."""
        shared: list[str] = []
        if self.cap is not None:
            cap = {"messages": self.cap.messages, "seconds": int(self.cap.within.total_seconds())}
            shared.append(f'"cap": {json.dumps(cap)}')
        found = {name: name for name in ("consent_id", "suppression_event_id", "recommendation_version")}
        if column := ADDRESS_COLUMNS.get(self.plan.channel):
            found["address"] = column
        columns = {name: values for name, column in found.items() if any(values := texts(frame, column))}
        encoded = [list(map(encode_basestring_ascii, values)) for values in columns.values()]
        if all(map(all, columns.values())):
            # no row lacks any: what they share is written once
            pattern = ", ".join([*shared, *(f'"{name}": %s' for name in columns)])
            return (
                list(map(f"{{{pattern}}}".__mod__, zip(*encoded, strict=True)))
                or [f"{{{pattern}}}"] * frame.height
            )
        parts = [
            [f'"{name}": {text}' if text != '""' else "" for text in texts_]
            for name, texts_ in zip(columns, encoded, strict=True)
        ]
        return [f"{{{', '.join([*shared, *filter(None, row)])}}}" for row in zip(*parts, strict=True)]

    def dispatch(self, run: Run, window: Window) -> None:
        """Give a window out, as soon as somebody is free and the rate allows, unless somebody has paused it."""
        self.look_for_pause()
        while not self.workers.is_free and not self.is_over:
            self.collect(run, wait=True)
        self.stop.wait(max(0.0, self.resumes_at - time.monotonic(), self.breaker.wait))
        if self.is_over:
            return
        window = self.allowed_today(run, window)
        if not window.row_ids:
            return
        if not self.limit.take(window.rows.texts("email"), self.stop):
            self.not_today(window)
            return
        self.workers.reserve(window)
        granted = self.ledger.dispatch(run, window.row_ids, self.settings.now())
        if len(granted) < len(window.row_ids):
            self.summary.already_claimed += len(window.row_ids) - len(granted)
            window = window.only([at for at, row_id in enumerate(window.row_ids) if row_id in granted])
        if window.row_ids:
            self.workers.give(window)
        else:
            self.workers.withdraw()
        self.collect(run, wait=False)

    def allowed_today(self, run: Run, window: Window) -> Window:
        """What the warm-up ladder lets go today; the rest is put down to be tried by a later run."""
        if self.is_over or window.tries > 1:
            return window
        now = self.settings.now()
        number = self.allowance.take(len(window.row_ids), now)
        rest = window.row_ids[number:]
        if rest:
            reply = "the warm-up's limit of the day was reached"
            failures = [Outcome(row_id, Status.FAILED, Reason.WARM_UP, reply=reply) for row_id in rest]
            self.ledger.fail_claimed(run, failures, now)
            for failure in failures:
                self.summary.count(failure.status)
            window = window.only(range(number))
        return window

    def not_today(self, window: Window) -> None:
        """A window that did not go after all takes nothing of the day's allowance."""
        if window.tries == 1:
            self.allowance.give_back(len(window.row_ids), self.settings.now())

    def look_for_pause(self) -> None:
        """Stop as if by a signal if somebody has paused this; asked once in a while."""
        now = time.monotonic()
        if now - self.looked_at >= _PAUSE_SECONDS:
            self.looked_at = now
            if self.plan.name in self.ledger.paused(self.plan.kind):
                self.summary.is_paused = True
                self.stop.set()

    def collect(self, run: Run, *, wait: bool) -> None:
        """Record what workers have done."""
        for window, answer in self.workers.answers(wait=wait):
            if answer.error is not None:
                self.not_handed_over(run, window, answer.error)
            else:
                self.record(run, window, answer)

    def not_handed_over(self, run: Run, window: Window, error: ProviderError) -> None:
        """All of it may be tried again, now or by the next run."""
        self.ledger.record(run, [], self.settings.now(), release=window.row_ids)
        self.not_today(window)
        if not isinstance(error, ProviderUnavailableError):
            self.trouble = self.trouble or error
            return
        now = time.monotonic()
        # of windows that were under way together the first to come back speaks for all
        if now >= self.resumes_at:
            self.absences += 1
            pause = self.retry.wait(self.absences, error.retry_after)
            if pause is None:
                self.trouble = self.trouble or error
                return
            self.resumes_at = now + pause
        self.again.append((self.resumes_at, window))

    def judge(self, deliveries: Sequence[Delivery]) -> None:
        """A provider that puts everything off is left alone for a while, and for this run if it goes on."""
        put_off = [delivery for delivery in deliveries if delivery.is_transient]
        if not deliveries or len(put_off) < len(deliveries):
            self.breaker.succeeded()
            return
        asked = max((delivery.retry_after or 0.0 for delivery in put_off), default=0.0)
        self.breaker.failed(asked)
        if self.breaker.wait > self.retry.patience:
            self.trouble = self.trouble or ProviderUnavailableError(
                f"The provider {self.provider.name} puts everything off: {put_off[-1].reply[:200]}",
                fix="Nothing is lost: the rest goes when the campaign is sent again.",
                retry_after=asked or None,
            )

    def record(self, run: Run, window: Window, answer: Answer) -> None:
        self.absences = 0
        self.judge(answer.deliveries)
        outcomes: list[Outcome] = []
        later: dict[float, list[int]] = {}
        released: list[int] = []
        if not any(map(_IS_TRANSIENT, answer.deliveries)):
            outcomes = Outcome.of_all(window.row_ids, answer.deliveries, answer.subjects)
        for place, (row_id, delivery, subject) in enumerate(
            () if outcomes else zip(window.row_ids, answer.deliveries, answer.subjects, strict=True)
        ):
            if delivery.is_transient:
                wait = self.retry.wait(window.tries, delivery.retry_after)
                if wait is not None and not self.stop.is_set():
                    later.setdefault(delivery.retry_after or 0.0, []).append(place)
                    released.append(row_id)
                    continue
                delivery = delivery._replace(status=Status.FAILED, reason=Reason.DEFERRED)
            outcomes.append(Outcome.of(row_id, delivery, subject))
        for status, alike in itertools.groupby([outcome.status for outcome in outcomes]):
            self.summary.count(status, len(list(alike)))
        self.ledger.record(run, outcomes, self.settings.now(), release=released)
        for retry_after, places in later.items():
            pause = self.retry.wait(window.tries, retry_after) or 0.0
            self.again.append((time.monotonic() + pause, window.only(places, tries=window.tries + 1)))
        if answer.defect:
            self.trouble = self.trouble or WorkerError(
                f"A sending process failed:\n{answer.defect}", fix="This is a defect of Mailhouse: report it."
            )
        self.report()


def rows_of(frame: pl.DataFrame, needed: frozenset[str] | None, fields: frozenset[str] | None) -> Rows:
    """Rows of an audience as messages need them: columns of `needed_columns`, and these fields of products."""
    names = [
        name for name in frame.columns
        if (needed is None or name in needed)
        and (name not in NOT_PROFILE or name in ("recommendations", "variant"))
    ]  # fmt: skip
    return Rows.of(frame, names, fields)


def texts(frame: pl.DataFrame, name: str) -> list[str]:
    """A text column without NULLs; all empty if the frame does not have it."""
    if name not in frame.columns:
        return [""] * frame.height
    return frame[name].cast(pl.String).fill_null("").to_list()


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
def _rare_collections() -> Iterator[None]:
    """Look for garbage rarely: a window is thousands of tuples, and none of them is part of a cycle."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], GARBAGE_THRESHOLDS[0]), *GARBAGE_THRESHOLDS[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


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
