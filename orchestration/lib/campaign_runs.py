"""A campaign from its file to its messages: what the Dagster assets, the sensor and `mailhouse send` share.

`prepare` reads and judges and changes nothing but to settle the audience; `deliver` sends. No Dagster in here.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from campaigns.assignment import HOLDOUT
from campaigns.audience import Audience, AudienceSummary, Shard
from campaigns.checks import CheckResult, run_checks
from campaigns.experiments import Part, parts_of
from campaigns.identity import occurrence_key
from campaigns.specs import (
    CampaignSpec,
    SendSpec,
    check_references,
    load_campaigns,
    next_occurrence,
    occurrence,
    segment_version,
)
from deliverability.preflight import CHECKS as PREFLIGHT_CHECKS
from deliverability.preflight import WARNINGS as PREFLIGHT_WARNINGS
from orchestration.lib.dbt_runs import PROJECT_DIR
from orchestration.lib.experiment_runs import EXPERIMENT_CHECK, METRICS_DIR, check_size, divisions_of
from orchestration.lib.preflights import judge_message
from senders.export import export_messages, settle_from_events
from senders.ledger import Ledger
from senders.pipeline import Progress, SendSummary, require_attachable, send
from senders.plan import SendPlan
from senders.providers import get_capabilities, get_provider
from senders.rendering import TemplateLibrary
from senders.settings import SenderSettings, require_identity
from warehouse.client import Warehouse
from warehouse.errors import InputError, MailhouseError
from warehouse.yaml_specs import named

SEGMENTS_DIR = PROJECT_DIR / "models" / "segments"
BATCH_ROWS = 1_000

CHECKS: Mapping[str, str] = {
    "template_lint": "The template compiles, its merge tags have a meaning, and it has what the law asks for.",
    "consent": "Nobody is about to get marketing without consent, or although suppressed.",
    "audience_not_empty": "Somebody is left to send to.",
    "audience_drift": "The audience is not wildly larger than that of the occurrence before.",
    EXPERIMENT_CHECK: "The audience is large enough for the experiment to find what it looks for.",
    **PREFLIGHT_CHECKS,
}
WARNINGS = (*PREFLIGHT_WARNINGS, EXPERIMENT_CHECK)
"""Checks that do not stop a send."""


class CheckError(MailhouseError):
    """A check failed, so the campaign was not sent."""


@dataclass(frozen=True)
class Prepared:
    """A campaign that has been read and judged, ready to be sent.

    Attributes:
        occurrence: the scheduled instant that is to be sent.
        summary: the audience in numbers.
        checks: one judgement for each of `CHECKS`.
    """

    settings: SenderSettings
    spec: CampaignSpec
    occurrence: datetime
    audience: Audience
    templates: TemplateLibrary
    segment_version: str
    summary: AudienceSummary
    checks: tuple[CheckResult, ...]

    @property
    def occurrence_key(self) -> str:
        """The occurrence as text."""
        return occurrence_key(self.occurrence)

    def require_passed(self) -> None:
        """Stop here if a check that blocks failed.

        Raises:
            CheckError: names every failed check and what it found.
        """
        failed = [check for check in self.checks if check.is_blocking and not check.is_passed]
        if failed:
            raise CheckError(
                f"{self.spec.campaign} was not sent: "
                + " ".join(f"{check.name}: {check.message}" for check in failed),
                fix="Correct what the check names and send again; nothing was sent.",
            )


def campaign_named(settings: SenderSettings, name: str) -> CampaignSpec:
    """The campaign of that name, its template and segment known to exist.

    Raises:
        InputError: there is no such campaign, or its file is wrong; names the file, line and nearest right name.
    """
    specs = load_campaigns(settings.content_dir)
    place = f"{settings.content_dir.name}/campaigns"
    spec = named(specs, name, "campaign", place, fix="Add a YAML file there.")
    templates = TemplateLibrary.load(settings.content_dir / "templates").names()
    segments = [path.stem for path in SEGMENTS_DIR.glob("*.sql")]
    metrics = [path.stem for path in METRICS_DIR.glob("*.sql")]
    check_references({name: spec}, templates, segments, provider=settings.provider, metrics=metrics)
    return spec


def prepare(
    settings: SenderSettings,
    warehouse: Warehouse,
    name: str,
    *,
    is_dry_run: bool = False,
    is_judged: bool = False,
    moment: datetime | None = None,
) -> Prepared:
    """Read a campaign, choose its occurrence, settle its audience and judge all of it.

    The occurrence is the newest that has come; a campaign whose first time has not come yet is sent as that one, so
    that its schedule later finds it done.

    Args:
        is_dry_run: settle nothing.
        is_judged: the same occurrence has passed its checks already; there are none in the answer.
        moment: this occurrence, rather than the newest.

    Raises:
        InputError: a file is wrong, or the campaign has no time at all.
        WarehouseError: the models have not been built.
    """
    spec = campaign_named(settings, name)
    now = settings.now()
    moment = moment or occurrence(spec, now) or next_occurrence(spec, now)
    if moment is None:
        raise InputError(
            f"{spec.place('schedule')}: campaign {name} never happens.", fix="Correct its schedule."
        )
    version = segment_version(SEGMENTS_DIR, spec.audience.segment)
    audience = Audience(
        warehouse, spec, moment, segment_version=version, is_dry_run=is_dry_run, clock=settings.now
    )
    templates = TemplateLibrary.load(
        settings.content_dir / "templates", audience.profile_columns(), assets_url=settings.assets_url
    )
    if is_judged:
        return Prepared(settings, spec, moment, audience, templates, version, audience.summary(), ())
    summary = audience.summary()
    said = _said_of(settings, spec, moment, templates)
    checks = [
        *run_checks(spec, summary, said),
        check_size(warehouse, spec, summary),
        *judge_message(settings, spec, moment, audience, templates, has_problems=bool(said)),
    ]
    return Prepared(settings, spec, moment, audience, templates, version, summary, tuple(checks))


def _said_of(
    settings: SenderSettings, spec: CampaignSpec, moment: datetime, templates: TemplateLibrary
) -> list[str]:
    """What is wrong with what is sent, each variant of an experiment included, once each."""
    sent: list[tuple[SendSpec, SendPlan]] = [(spec.send, SendPlan.from_campaign(spec, moment))]
    for at, variant in enumerate(spec.experiment.variants if spec.experiment else ()):
        if variant.changes():
            plan = SendPlan.from_campaign(spec, moment, variant=variant.name)
            place = spec.place("experiment", "variants", at)
            sent.append((spec.send_of(variant.name), dataclasses.replace(plan, place=place)))
    said: dict[str, None] = {}
    for send_spec, plan in sent:
        problems = templates.check(
            send_spec.template,
            subject=send_spec.subject,
            preheader=send_spec.preheader or "",
            place=plan.place,
        )
        found = [str(problem) for problem in problems] or _send_problems(settings, send_spec, plan, templates)
        said.update(dict.fromkeys(found))
    return list(said)


def _send_problems(
    settings: SenderSettings, send_spec: SendSpec, plan: SendPlan, templates: TemplateLibrary
) -> list[str]:
    """What a template that compiles may lack: its attachments, and in advertising what the law asks for."""
    try:
        template = templates.template(
            send_spec.template,
            subject=send_spec.subject,
            preheader=send_spec.preheader or "",
            place=plan.place,
            attachments=send_spec.attachments,
        )
        if send_spec.category == "marketing":
            template.require_marketing(send_spec.template, channel=send_spec.channel)
        provider = send_spec.provider or settings.provider
        require_attachable(plan, template, provider, get_capabilities(provider))
        require_identity(settings, category=send_spec.category, from_email=send_spec.from_email or "")
    except MailhouseError as error:
        return [f"{error.message} {error.fix}"]
    return []


def deliver(
    prepared: Prepared,
    *,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
    shard: Shard | None = None,
) -> SendSummary:
    """Send what `prepare` judged; safe to repeat, also after a crash.

    Args:
        shard: only this part of the audience; other processes, perhaps on other machines with the same ledger, send
            the others.

    Raises:
        CheckError: a check had failed.
        MailhouseError: see `senders.pipeline.send`.
    """
    prepared.require_passed()
    parts, counts = divide(prepared)
    total = SendSummary()
    with Ledger.open(prepared.settings) as ledger:
        for number, part in enumerate(parts, 1):
            plan = SendPlan.from_campaign(
                prepared.spec,
                prepared.occurrence,
                segment_version=prepared.segment_version,
                variant=part.variant if part else "",
            )
            members = counts[part.key] if part else prepared.summary.sendable
            with get_provider(prepared.settings, plan.provider) as provider:
                summary = send(
                    plan,
                    _batches(prepared, part, shard),
                    settings=prepared.settings,
                    ledger=ledger,
                    provider=provider,
                    templates=prepared.templates,
                    on_progress=_onwards(total, on_progress),
                    stop=stop,
                    workers=prepared.settings.workers_for(members // (shard.count if shard else 1)),
                    # claims that dead runs left may be of another part, until all have been through
                    is_part=shard is not None or number < len(parts),
                )
            total = _added(total, summary)
            if total.is_interrupted:
                break
    return total


def divide(prepared: Prepared) -> tuple[list[Part | None], Counter[str]]:
    """The parts of the audience that may go now, and how many contacts each has; one, None, without an experiment."""
    spec, audience = prepared.spec, prepared.audience
    if spec.experiment is None:
        return [None], Counter()
    # who belongs to it is settled before it is divided
    if not audience.is_dry_run and audience.freeze() is None:
        return [None], Counter()
    now = prepared.settings.now()
    divisions, decision = divisions_of(audience.warehouse, spec, prepared.occurrence, now)
    parts = [part for part in parts_of(spec, prepared.occurrence, divisions, decision) if part.due_at <= now]
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.key] = audience.counts_by(f"toUInt8({part.condition})").get("1", 0)
    return [part for part in parts if counts[part.key]], counts


def _batches(prepared: Prepared, part: Part | None, shard: Shard | None) -> Iterator[pl.DataFrame]:
    """The audience, or a part of it with its variant; who is held out has that as the reason to get nothing."""
    if part is None:
        yield from prepared.audience.batches(BATCH_ROWS, shard=shard)
        return
    for frame in prepared.audience.batches(BATCH_ROWS, shard=shard, where=part.condition):
        frame = frame.with_columns(variant=pl.lit(part.label))
        if part.label == HOLDOUT:
            # whoever would have got nothing anyway is no part of the comparison
            frame = frame.with_columns(
                skip_reason=pl.when(pl.col("skip_reason") == "")
                .then(pl.lit(HOLDOUT))
                .otherwise("skip_reason")
            )
        yield frame


def _added(total: SendSummary, one: SendSummary) -> SendSummary:
    """Two summaries of parts of one audience as one."""
    return SendSummary(
        **{
            name: getattr(total, name) + getattr(one, name)
            for name in (
                "sent", "failed", "rejected", "invalid", "unknown", "waiting", "already_claimed", "seconds",
            )
        },
        skipped=dict(Counter(total.skipped) + Counter(one.skipped)),
        settled=dict(Counter(total.settled) + Counter(one.settled)),
        is_interrupted=one.is_interrupted,
        is_paused=one.is_paused,
    )  # fmt: skip


def _onwards(before: SendSummary, on_progress: Progress | None) -> Progress | None:
    """The progress of a part, counted on from the parts before it."""
    if on_progress is None:
        return None
    return lambda so_far: on_progress(_added(before, so_far))


def export_ledger(settings: SenderSettings, warehouse: Warehouse) -> int:
    """Settle messages in doubt by the events that have come, then copy what the ledger has and the warehouse has not.

    Returns:
        How many rows were copied.
    """
    with Ledger.open(settings) as ledger:
        settle_from_events(ledger, warehouse, settings.now())
        return export_messages(ledger, warehouse)


def summary_counts(summary: SendSummary) -> dict[str, int]:
    """A send in numbers, skips by reason."""
    counts = {
        name: getattr(summary, name)
        for name in ("sent", "failed", "rejected", "invalid", "unknown", "waiting", "already_claimed")
    }
    return counts | {f"skipped_{reason}": number for reason, number in sorted(summary.skipped.items())}


def throttled(report: Callable[[str], None], total: int, *, seconds: float = 5.0) -> Progress:
    """A progress callback that says a line every so many seconds: done, rate, time left."""

    def say(summary: SendSummary) -> None:
        rate = summary.seen / summary.seconds if summary.seconds else 0.0
        left = f"{(total - summary.seen) / rate:,.0f} s left" if rate else "no pace yet"
        report(f"{summary.seen:,} of {total:,}, {summary.sent:,} sent, {rate:,.0f} a second, {left}")

    return every(seconds, say)


def every(seconds: float, progress: Progress) -> Progress:
    """A progress callback that is called once in so many seconds at most, the first time after as many."""
    last = 0.0

    def on_progress(summary: SendSummary) -> None:
        nonlocal last
        if summary.seconds - last >= seconds:
            last = summary.seconds
            progress(summary)

    return on_progress
