"""Sending one thing to a few people now: claim, dispatch, hand over, record, in one call.

The same ledger steps as `senders.pipeline` takes, over the same worker; what is put off is left to the caller, who
tries again later (`senders.firings`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from campaigns.identity import message_id
from campaigns.permissions import ADDRESS_COLUMNS
from senders.composing import Envelope
from senders.ledger import Claim, Ledger, Outcome, Run
from senders.limits import CircuitBreaker, DailyAllowance, LimitsSpec, Throttle
from senders.links import Links
from senders.message import Delivery, Reason, Status
from senders.pipeline import require_attachable, rows_of, texts
from senders.plan import Cap, SendPlan
from senders.providers import get_provider
from senders.providers.base import Provider, ProviderError, ProviderUnavailableError, require_capabilities
from senders.rendering import TemplateLibrary
from senders.settings import SenderSettings, require_identity, require_rehearsal_safe
from senders.tracking import tracking_of
from senders.workers import Window, Worker, needed_columns


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
        """Columns of a profile that the plan's messages need; None for all.

        Raises:
            MailhouseError: as `prepare`.
        """
        worker, _ = self._worker(plan, templates)
        return needed_columns(worker.template, plan.channel)

    def prepare(self, plan: SendPlan, templates: TemplateLibrary) -> None:
        """Find what is wrong with a plan before anything is claimed.

        Raises:
            MailhouseError: settings, template or provider do not let it be sent.
        """
        self._worker(plan, templates)

    def send(
        self,
        plan: SendPlan,
        templates: TemplateLibrary,
        people: pl.DataFrame,
        occurrences: Sequence[str],
        details: Sequence[dict[str, object]],
        *,
        stop: threading.Event | None = None,
    ) -> list[Sent]:
        """Send to each row what has not been sent; one answer a row.

        Args:
            plan: its occurrence is not read.
            people: an audience's columns: `contact_id`, `email`, `skip_reason` and what the template needs.
            occurrences: of each row.
            details: what explains each decision, for `mailhouse why`.

        Raises:
            MailhouseError: what `prepare` raises, or the ledger cannot be written.
        """
        worker, template_version = self._worker(plan, templates)
        now = self.clock()
        contacts: list[int] = people["contact_id"].to_list()
        ids = [
            message_id(plan.kind, plan.name, one, key) for one, key in zip(contacts, occurrences, strict=True)
        ]
        cap = self._cap(plan)
        if column := ADDRESS_COLUMNS.get(plan.channel):
            details = [
                {**one, "address": address}
                for one, address in zip(details, texts(people, column), strict=True)
            ]
        claimed = self.ledger.claim(
            self.run,
            Claim(
                self._ledger_plan(plan, template_version), ids, contacts, texts(people, "email"),
                texts(people, "skip_reason"), [json.dumps(_with_cap(one, cap)) for one in details],
                occurrences=occurrences,
            ),
            now,
            cap=cap,
        )  # fmt: skip
        places = sorted(claimed.rows)
        found: dict[int, Sent] = {}
        if places:
            needed = needed_columns(worker.template, plan.channel)
            rows = rows_of(people[places], needed, worker.template.source.product_fields)
            window = Window([claimed.rows[at] for at in places], [ids[at] for at in places], rows)
            found = dict(zip(places, self._hand_over(plan, worker, window, now, stop), strict=True))
        left = [at for at in range(len(ids)) if at not in found]
        standing = self.ledger.standing([ids[at] for at in left]) if left else {}
        for at in left:
            status, reason = standing.get(ids[at], (Status.UNKNOWN.value, ""))
            found[at] = Sent(ids[at], status, reason)
        return [found[at] for at in range(len(ids))]

    def _hand_over(
        self, plan: SendPlan, worker: Worker, window: Window, now: datetime, stop: threading.Event | None
    ) -> list[Sent]:
        number = self._allowance.take(len(window.row_ids), now)
        if number < len(window.row_ids):
            rest = range(number, len(window.row_ids))
            later = [Outcome(window.row_ids[at], Status.FAILED, Reason.WARM_UP) for at in rest]
            self.ledger.fail_claimed(self.run, later, now)
        going = window.only(range(number))
        answers = [
            Sent(one, Status.FAILED, Reason.WARM_UP, is_put_off=True) for one in window.message_ids[number:]
        ]
        if not going.row_ids:
            return answers
        throttle = self._throttles.setdefault(
            plan.name, Throttle.of(self.settings, self.provider.name, plan.name)
        )
        if not throttle.take(going.rows.texts("email"), stop):
            self._allowance.give_back(number, now)
            self._put_off(going, "claimed", "stopped before it", now)
            return [*(self._later(one) for one in going.message_ids), *answers]
        granted = self.ledger.dispatch(self.run, going.row_ids, self.clock())
        mine = going.only([at for at, row_id in enumerate(going.row_ids) if row_id in granted])
        others = [
            one for one, row_id in zip(going.message_ids, going.row_ids, strict=True) if row_id not in granted
        ]
        by_id = {one: Sent(one, Status.UNKNOWN, "taken over by another run") for one in others}
        if mine.row_ids:
            by_id |= {one.message_id: one for one in self._work(worker, mine)}
        return [*(by_id[one] for one in going.message_ids), *answers]

    def _work(self, worker: Worker, window: Window) -> list[Sent]:
        answer = worker.work(window)
        now = self.clock()
        if answer.error is not None:
            self._allowance.give_back(len(window.row_ids), now)
            is_away = isinstance(answer.error, ProviderUnavailableError)
            retry_after = (
                answer.error.retry_after if isinstance(answer.error, ProviderUnavailableError) else None
            )
            if is_away:
                self.breaker.failed(retry_after)
            self._put_off(
                window,
                "dispatching",
                answer.error.message,
                now,
                Reason.DEFERRED if is_away else Reason.SENDER_REFUSED,
            )
            return [self._later(one, retry_after) for one in window.message_ids]
        deliveries = [
            one._replace(status=Status.FAILED, reason=Reason.DEFERRED) if one.is_transient else one
            for one in answer.deliveries
        ]
        self.ledger.record(
            self.run,
            [
                Outcome.of(row_id, delivery, subject)
                for row_id, delivery, subject in zip(window.row_ids, deliveries, answer.subjects, strict=True)
            ],
            now,
        )
        self._judge(answer.deliveries)
        return [
            Sent(
                one.message_id,
                one.status,
                one.reason,
                is_put_off=before.is_transient,
                retry_after=before.retry_after,
            )
            for one, before in zip(deliveries, answer.deliveries, strict=True)
        ]

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


def _with_cap(details: dict[str, object], cap: Cap | None) -> dict[str, object]:
    limit = {"cap": {"messages": cap.messages, "seconds": int(cap.within.total_seconds())}} if cap else {}
    return {**limit, **{name: value for name, value in details.items() if value not in ("", None)}}


__all__ = ["ProviderError", "RealtimeSender", "Sent"]
