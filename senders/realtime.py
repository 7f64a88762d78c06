"""Sending a few things to a few people now: claim, then dispatch, hand over and record, all of them together.

The same ledger steps as `senders.pipeline` takes, over the same worker; what is put off is left to the caller, who
tries again later (`senders.firings`). Each step is one commit, whatever the number of things: a micro-batch in which
fifty triggers fire costs what one does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from campaigns.identity import message_id
from campaigns.permissions import ADDRESS_COLUMNS
from senders.composing import Envelope
from senders.ledger import Claim, Ledger, Outcome, Run
from senders.limits import CircuitBreaker, DailyAllowance, LimitsSpec, Throttle
from senders.links import Links
from senders.message import Delivery, Message, Reason, Status
from senders.pipeline import require_attachable
from senders.plan import Cap, SendPlan
from senders.providers import get_provider
from senders.providers.base import Provider, ProviderError, ProviderUnavailableError, require_capabilities
from senders.rendering import TemplateLibrary
from senders.rows import NOT_PROFILE, Rows, columns_of, items_of
from senders.settings import SenderSettings, require_identity, require_rehearsal_safe
from senders.tracking import tracking_of
from senders.workers import Answer, Window, Worker, needed_columns

AT_ONCE = 200
"""Messages that are handed over together at most: so many may be in doubt after a crash."""


@dataclass(frozen=True)
class Parcel:
    """One thing and the people to whom it goes.

    Attributes:
        plan: its occurrence is not read.
        people: an audience's columns: `contact_id`, `email`, `skip_reason` and what the template needs.
        occurrences: of each of them.
        details: what explains each decision, for `mailhouse why`.
    """

    plan: SendPlan
    people: Sequence[Mapping[str, Any]]
    occurrences: Sequence[str]
    details: Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class _Open:
    """A parcel of which this run has claimed some.

    Attributes:
        places: of those people.
        window: their messages.
    """

    parcel: Parcel
    worker: Worker
    message_ids: list[str]
    places: list[int]
    window: Window


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one message.

    Attributes:
        status: as in the ledger.
        reason: beside it.
        is_put_off: certainly not accepted, and worth another try.
        retry_after: seconds that the provider asked us to wait, None if it did not say.
    """

    message_id: str
    status: str
    reason: str = ""
    is_put_off: bool = False
    retry_after: float | None = None


class RealtimeSender:
    """Sends through one provider; used by one thread at a time.

    Args:
        run: who claims; see `Ledger.begin_run`.
        clock: the time, UTC; left out, that of the settings.

    Raises:
        SettingsError: the provider is not set up.
    """

    def __init__(
        self,
        settings: SenderSettings,
        ledger: Ledger,
        run: Run,
        provider: str = "",
        *,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.settings, self.ledger, self.run = settings, ledger, run
        self.clock = clock or settings.now
        self.provider: Provider = get_provider(settings, provider)
        self.breaker = CircuitBreaker()
        ladder = LimitsSpec.load(settings.content_dir).warm_up.get(self.provider.name)
        self._allowance = DailyAllowance(ledger, self.provider.name, ladder)
        self._workers: dict[tuple[str, str], tuple[Worker, str]] = {}
        self._throttles: dict[str, Throttle] = {}

    def close(self) -> None:
        """Give the provider's connections back."""
        self.provider.close()

    def recover(self) -> None:
        """Settle what dead runs left half handed over, so that it is not held for open for ever."""
        lookup = self.provider.lookup if self.provider.capabilities.can_look_up else None
        self.ledger.recover(self.clock(), provider=self.provider.name, lookup=lookup)

    def forget(self) -> None:
        """Read templates anew: they may have changed."""
        self._workers.clear()

    def columns(self, plan: SendPlan, templates: TemplateLibrary) -> frozenset[str] | None:
        """Columns of a profile that the plan's messages need; None for all. Finds what is wrong with a plan before
        anything is claimed.

        Raises:
            MailhouseError: settings, template or provider do not let it be sent.
        """
        worker, _ = self._worker(plan, templates)
        return needed_columns(worker.template, plan.channel)

    def claim(self, templates: TemplateLibrary, parcels: Sequence[Parcel]) -> list[_Open]:
        """Claim what has not been sent, for `deliver`; may be part of a transaction of the caller's.

        Raises:
            MailhouseError: what `columns` raises, or the ledger cannot be written.
        """
        workers = [self._worker(parcel.plan, templates) for parcel in parcels]
        claims: list[tuple[Claim, Cap | None]] = []
        for parcel, (_, template_version) in zip(parcels, workers, strict=True):
            plan, people = parcel.plan, parcel.people
            contacts = [one["contact_id"] for one in people]
            cap = self._cap(plan)
            details = parcel.details
            if column := ADDRESS_COLUMNS.get(plan.channel):
                details = [
                    {**one, "address": str(person.get(column) or "")}
                    for one, person in zip(details, people, strict=True)
                ]
            claim = Claim(
                self._ledger_plan(plan, template_version),
                [
                    message_id(plan.kind, plan.name, one, key)
                    for one, key in zip(contacts, parcel.occurrences, strict=True)
                ],
                contacts, [one["email"] or "" for one in people], [one["skip_reason"] or "" for one in people],
                [json.dumps(_with_cap(one, cap)) for one in details], occurrences=parcel.occurrences,
            )  # fmt: skip
            claims.append((claim, cap))
        answers = self.ledger.claim_all(self.run, claims, self.clock())
        opened: list[_Open] = []
        for parcel, (worker, _), (claim, _), claimed in zip(parcels, workers, claims, answers, strict=True):
            places = sorted(claimed.rows)
            ids = list(claim.message_ids)
            window = Window(
                [claimed.rows[at] for at in places],
                [ids[at] for at in places],
                _rows(
                    [parcel.people[at] for at in places], needed_columns(worker.template, parcel.plan.channel)
                ),
            )
            opened.append(_Open(parcel, worker, ids, places, window))
        return opened

    def deliver(self, opened: Sequence[_Open], *, stop: threading.Event | None = None) -> list[list[Sent]]:
        """Send what was claimed; one answer a person of each parcel.

        What stands under a limit goes after the rest, so that it waits alone.

        Raises:
            MailhouseError: the ledger cannot be written.
        """
        found: dict[str, Sent] = {}
        limited: list[_Open] = []
        free: list[_Open] = []
        for one in opened:
            if one.window.row_ids:
                addresses = one.window.rows.texts("email")
                (limited if self._throttle(one).demands(addresses) else free).append(one)
        groups = [free] if self.provider.capabilities.most_per_call == 1 else [[one] for one in free]
        for group in (*groups, *([one] for one in limited)):
            if group:
                found |= self._hand_over(group, stop)
        left = [one for each in opened for one in each.message_ids if one not in found]
        standing = self.ledger.standing(left) if left else {}
        for one in left:
            status, reason = standing.get(one, (Status.UNKNOWN.value, ""))
            found[one] = Sent(one, status, reason)
        return [[found[one] for one in each.message_ids] for each in opened]

    def _throttle(self, opened: _Open) -> Throttle:
        name = opened.parcel.plan.name
        if name not in self._throttles:
            self._throttles[name] = Throttle.of(self.settings, self.provider.name, name)
        return self._throttles[name]

    def _hand_over(self, group: Sequence[_Open], stop: threading.Event | None) -> dict[str, Sent]:
        """Messages of several things in one go; each by its id."""
        now = self.clock()
        found: dict[str, Sent] = {}
        going: list[tuple[Worker, Window]] = []
        for one in group:
            window = one.window
            number = self._allowance.take(len(window.row_ids), now)
            if number < len(window.row_ids):
                rest = window.only(range(number, len(window.row_ids)))
                later = [Outcome(row_id, Status.FAILED, Reason.WARM_UP) for row_id in rest.row_ids]
                self.ledger.fail_claimed(self.run, later, now)
                found |= {
                    key: Sent(key, Status.FAILED, Reason.WARM_UP, is_put_off=True) for key in rest.message_ids
                }
                window = window.only(range(number))
            if not window.row_ids:
                continue
            if not self._throttle(one).take(window.rows.texts("email"), stop):
                self._allowance.give_back(number, now)
                self._put_off(window, "claimed", "stopped before it", now)
                found |= {key: self._later(key) for key in window.message_ids}
                continue
            going.append((one.worker, window))
        for part in _parts(going, min(AT_ONCE, self.provider.capabilities.dispatch_window)):
            if self.breaker.is_open:
                for _, window in part:
                    self._put_off(window, "claimed", "the provider is away", self.clock())
                    found |= {key: self._later(key, self.breaker.wait) for key in window.message_ids}
            else:
                found |= self._dispatched(part)
        return found

    def _dispatched(self, part: Sequence[tuple[Worker, Window]]) -> dict[str, Sent]:
        row_ids = [row_id for _, window in part for row_id in window.row_ids]
        granted = self.ledger.dispatch(self.run, row_ids, self.clock())
        found: dict[str, Sent] = {}
        mine: list[tuple[Worker, Window]] = []
        for worker, window in part:
            kept = [at for at, row_id in enumerate(window.row_ids) if row_id in granted]
            if len(kept) < len(window.row_ids):
                gone = set(window.message_ids) - {window.message_ids[at] for at in kept}
                found |= {one: Sent(one, Status.UNKNOWN, "taken over by another run") for one in gone}
                window = window.only(kept)
            if window.row_ids:
                mine.append((worker, window))
        if mine:
            found |= self._work(mine)
        return found

    def _work(self, part: Sequence[tuple[Worker, Window]]) -> dict[str, Sent]:
        made = [worker.compose(window) for worker, window in part]
        messages = [one for each in made for one in each if isinstance(one, Message)]
        deliveries: dict[str, Delivery] = {}
        if messages:
            self.provider.marks = None
            try:
                deliveries = {one.message_id: one for one in self.provider.send(messages)}
            except ProviderError as error:
                return self._away(part, error)
        now = self.clock()
        answers = [Answer.of(window, each, deliveries) for (_, window), each in zip(part, made, strict=True)]
        outcomes: list[Outcome] = []
        found: dict[str, Sent] = {}
        for (_, window), answer in zip(part, answers, strict=True):
            for row_id, before, subject in zip(
                window.row_ids, answer.deliveries, answer.subjects, strict=True
            ):
                delivery = (
                    before._replace(status=Status.FAILED, reason=Reason.DEFERRED)
                    if before.is_transient
                    else before
                )
                outcomes.append(Outcome.of(row_id, delivery, subject))
                found[delivery.message_id] = Sent(
                    delivery.message_id,
                    delivery.status,
                    delivery.reason,
                    is_put_off=before.is_transient,
                    retry_after=before.retry_after,
                )
        self.ledger.record(self.run, outcomes, now)
        self._judge([one for answer in answers for one in answer.deliveries])
        return found

    def _away(self, part: Sequence[tuple[Worker, Window]], error: ProviderError) -> dict[str, Sent]:
        """The provider took nothing of it."""
        now = self.clock()
        is_away = isinstance(error, ProviderUnavailableError)
        retry_after = error.retry_after if isinstance(error, ProviderUnavailableError) else None
        if is_away:
            self.breaker.failed(retry_after)
        found: dict[str, Sent] = {}
        for _, window in part:
            self._allowance.give_back(len(window.row_ids), now)
            reason = Reason.DEFERRED if is_away else Reason.SENDER_REFUSED
            self._put_off(window, "dispatching", error.message, now, reason)
            found |= {one: self._later(one, retry_after) for one in window.message_ids}
        return found

    def _judge(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries and all(one.is_transient for one in deliveries):
            self.breaker.failed(max((one.retry_after or 0.0 for one in deliveries), default=0.0))
        else:
            self.breaker.succeeded()

    def _put_off(
        self, window: Window, state: str, reply: str, now: datetime, reason: str = Reason.DEFERRED
    ) -> None:
        outcomes = [Outcome(row_id, Status.FAILED, reason, reply=reply) for row_id in window.row_ids]
        if state == "claimed":
            self.ledger.fail_claimed(self.run, outcomes, now)
        else:
            self.ledger.record(self.run, outcomes, now)

    @staticmethod
    def _later(message: str, retry_after: float | None = None) -> Sent:
        return Sent(message, Status.FAILED, Reason.DEFERRED, is_put_off=True, retry_after=retry_after)

    def _cap(self, plan: SendPlan) -> Cap | None:
        if plan.category != "marketing":
            return None
        if plan.cap is None and self.settings.default_cap_messages:
            return Cap(self.settings.default_cap_messages, timedelta(days=self.settings.default_cap_days))
        return plan.cap

    def _worker(self, plan: SendPlan, templates: TemplateLibrary) -> tuple[Worker, str]:
        known = self._workers.get((plan.name, plan.version))
        if known is not None:
            return known
        settings, provider = self.settings, self.provider
        require_identity(settings, category=plan.category, from_email=plan.from_email)
        require_rehearsal_safe(settings, reaches_people=provider.capabilities.reaches_people)
        require_capabilities(provider.name, provider.capabilities, plan.needs(), place=plan.place)
        template = templates.template(
            plan.template, subject=plan.subject, preheader=plan.preheader, place=plan.place,
            tracking=tracking_of(plan, settings), links=Links(settings.signing_key(), settings.base_url),
            attachments=plan.attachments, has_event=plan.kind == "trigger",
        )  # fmt: skip
        if plan.category == "marketing":
            template.require_marketing(plan.template, channel=plan.channel)
        require_attachable(plan, template, provider.name, provider.capabilities)
        made = (
            Worker(
                plan,
                Envelope.of(plan, settings),
                template,
                provider,
                clock_offset=settings.clock_offset,
            ),
            template.version,
        )
        self._workers[plan.name, plan.version] = made
        return made

    def _ledger_plan(self, plan: SendPlan, template_version: str) -> dict[str, str]:
        return {
            "kind": plan.kind, "name": plan.name, "version": plan.version, "channel": plan.channel,
            "provider": self.provider.name, "category": plan.category, "template": plan.template,
            "template_version": template_version, "segment": plan.segment,
            "segment_version": plan.segment_version, "experiment": plan.experiment,
        }  # fmt: skip


def _rows(people: Sequence[Mapping[str, Any]], needed: frozenset[str] | None) -> Rows:
    """People as messages need them: columns of `needed_columns`."""
    names = dict.fromkeys(
        name
        for one in people
        for name in one
        if (needed is None or name in needed) and (name not in NOT_PROFILE or name == "variant")
    )
    columns = columns_of({name: [one.get(name) for one in people] for name in names})
    given = [one.get("recommendations") or [] for one in people]
    if not any(given):
        return Rows(len(people), columns)
    return Rows(len(people), columns, [len(one) for one in given], items_of(given))


def _parts(going: Sequence[tuple[Worker, Window]], most: int) -> Iterator[list[tuple[Worker, Window]]]:
    """The same, cut into parts of at most so many messages."""
    part: list[tuple[Worker, Window]] = []
    room = most
    for worker, window in going:
        start = 0
        while start < len(window.row_ids):
            end = min(len(window.row_ids), start + room)
            part.append((worker, window.only(range(start, end))))
            room -= end - start
            start = end
            if room == 0:
                yield part
                part, room = [], most
    if part:
        yield part


def _with_cap(details: Mapping[str, object], cap: Cap | None) -> dict[str, object]:
    limit = {"cap": {"messages": cap.messages, "seconds": int(cap.within.total_seconds())}} if cap else {}
    return {**limit, **{name: value for name, value in details.items() if value not in ("", None)}}


__all__ = ["Parcel", "ProviderError", "RealtimeSender", "Sent"]
