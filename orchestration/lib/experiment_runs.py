"""Experiments of the files: how a send is divided, what is due, how many contacts are needed. No Dagster in here.

What they have come to is `orchestration.lib.experiment_analysis`, which imports scipy; every process that sends imports
this, and leaves the statistics until it needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl

from campaigns.assignment import HOLDOUT
from campaigns.audience import Audience, AudienceSummary
from campaigns.checks import CheckResult
from campaigns.experiment_specs import (
    LOWER_IS_BETTER,
    ExperimentSpec,
    Placed,
    experiment_problems,
)
from campaigns.experiments import Decision, Settled, decision_of, parts_of, settle, settled
from campaigns.identity import occurrence_key
from campaigns.journeys import load_journeys
from campaigns.specs import CampaignSpec, load_campaigns
from orchestration.lib.dbt_runs import PROJECT_DIR
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.yaml_specs import named, problems_error

METRICS_DIR = PROJECT_DIR / "models" / "metrics"
EXPERIMENT_CHECK = "experiment_size"
_FLOOR = 0.05  # the least share of a bandit's variant
_COUNTS = {
    "opens": "opened_count", "clicks": "clicked_count", "conversions": "goal_reached_count",
    "unsubscribes": "unsubscribed_count", "complaints": "complained_count", "bounces": "bounced_count",
}  # fmt: skip


@dataclass(frozen=True)
class Running:
    """An experiment of a file, and its campaign if it is one's."""

    placed: Placed
    version: str
    campaign: CampaignSpec | None = None

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.placed.name


def load_experiments(content_dir: Path) -> dict[str, Running]:
    """All experiments of campaigns and journeys, by name.

    Raises:
        InputError: a file is wrong, two experiments share a name or a part of a layer, or a metric is unknown.
    """
    campaigns, journeys = load_campaigns(content_dir), load_journeys(content_dir)
    found = [
        Running(placed, spec.version, spec)
        for spec in campaigns.values()
        if (placed := spec.placed_experiment()) is not None
    ]
    found += [Running(placed, spec.version) for spec in journeys.values() for placed in spec.experiments()]
    goals = [spec.name for spec in campaigns.values() if spec.goal]
    goals += [one.owner for spec in journeys.values() if spec.goal for one in spec.experiments()]
    metrics = [path.stem for path in METRICS_DIR.glob("*.sql")]
    if problems := experiment_problems([one.placed for one in found], goals=goals, metrics=metrics):
        raise problems_error(problems)
    return {one.name: one for one in found}


def experiment_named(content_dir: Path, name: str) -> Running:
    """The experiment of a name.

    Raises:
        InputError: there is none; names the nearest.
    """
    fix = "Write `experiment` into a campaign: see docs/experiments.md."
    return named(load_experiments(content_dir), name, "experiment", content_dir.name, fix=fix)


def divisions_of(
    warehouse: Warehouse, spec: CampaignSpec, occurrence: datetime, now: datetime
) -> tuple[list[Settled], Decision | None]:
    """How an occurrence is divided, settled now if it was not: for a bandit, every batch that is due."""
    placed, experiment = spec.placed_experiment(), spec.experiment
    assert placed is not None and experiment is not None
    key = occurrence_key(occurrence)
    decision = decision_of(warehouse, placed.name)
    if experiment.allocation == "fixed":
        # whoever was to get nothing got it in the occurrence that was under way; later ones send the control
        over = _with_winner(decision, placed.control) if decision else None
        return [settle(warehouse, spec, key, decision=over)], decision
    known = settled(warehouse, placed.name)
    batches = experiment.batches
    divisions: list[Settled] = []
    for batch in range(batches.count if batches else 1):
        if batches is not None and occurrence + batches.every * batch > now:
            break
        one = known.get((key, batch))
        if one is None:
            weights = bandit_weights(warehouse, placed) if known or divisions else None
            one = settle(warehouse, spec, key, batch=batch, weights=weights)
        divisions.append(one)
    return divisions, decision


def _with_winner(decision: Decision, control: str) -> Decision:
    if decision.winner:
        return decision
    return replace(decision, winner=control)


def bandit_weights(warehouse: Warehouse, placed: Placed) -> dict[str, float] | None:
    """The weights of the next batch by Thompson sampling; None as long as nothing is known."""
    from ml.experiments.bandit import thompson_weights
    from ml.experiments.bayes import bayes_proportions

    rows = rows_of_sums(warehouse, placed.name)
    here = rows.filter(pl.col("metric") == placed.measures.metric)
    if not here.height:
        return None
    counts = {
        name: (
            round(here.filter(variant=name)["value_sum"].sum()),
            int(here.filter(variant=name)["contacts_count"].sum()),
        )
        for name in placed.weights
    }
    floor = min(_FLOOR, 0.5 / len(placed.weights))
    return thompson_weights(
        bayes_proportions(counts, lower_is_better=placed.measures.metric in LOWER_IS_BETTER), floor=floor
    )


class Needed(NamedTuple):
    """Contacts of each variant, and of all together."""

    each: dict[str, int]
    total: int


def needed(placed: Placed, baseline: float) -> Needed:
    """How many contacts the metric, a proportion, needs for its minimum effect: enough for every treatment.

    Treatments are corrected for their number (Bonferroni), as the analysis does at the least.
    """
    from ml.experiments.power import SampleSize, sample_size_proportions

    measures = placed.measures
    treatments = [name for name in placed.weights if name != placed.control]
    after = baseline * (1 + measures.minimum_effect)
    if after >= 1:
        after = baseline * (1 - measures.minimum_effect)
    unit = 0.0
    for name in treatments:
        ratio = placed.weights[name] / placed.weights[placed.control]
        size: SampleSize = sample_size_proportions(
            baseline, after, ratio=ratio, alpha=_final_alpha(measures.decide, measures.alpha) / len(treatments),
            power=measures.power,
        )  # fmt: skip
        unit = max(unit, size.exact / placed.weights[placed.control])
    each = {name: -int(-unit * weight // 1) for name, weight in placed.weights.items()}
    return Needed(each, sum(each.values()))


def _final_alpha(decide: str, alpha: float) -> float:
    return 0.2 * alpha if decide == "anytime" else alpha


def size_words(placed: Placed, baseline: float | None, available: int | None = None) -> str:
    """What the experiment needs, and whether that is there, in a sentence or two."""
    measures = placed.measures
    goal = f"to find a change of {measures.minimum_effect:.1%} of {measures.metric}"
    goal += f" with a chance of {measures.power:.0%}"
    if not placed.is_proportion:
        return f"How many contacts are needed {goal} cannot be said beforehand: {measures.metric} is no proportion."
    if baseline is None:
        return f"How many contacts are needed {goal} cannot be said: there is no history, so write baseline."
    need = needed(placed, baseline)
    words = f"From {baseline:.2%}, {need.total:,} contacts are needed {goal}"
    words += f" ({', '.join(f'{name} {number:,}' for name, number in need.each.items())})."
    if available is not None:
        enough = (
            "That is enough."
            if available >= need.total
            else "That is too few: a difference may well stay unseen."
        )
        words += f" {available:,} are tested. {enough}"
    if measures.metric == "opens":
        words += (
            " Opens are made by machines, too, not all of which are known; clicks or conversions tell more."
        )
    return words


def check_size(warehouse: Warehouse, spec: CampaignSpec, summary: AudienceSummary) -> CheckResult:
    """`experiment_size`: whether the audience is large enough for the experiment. A warning, never more."""
    placed, experiment = spec.placed_experiment(), spec.experiment
    if placed is None or experiment is None:
        return CheckResult(EXPERIMENT_CHECK, True, "There is no experiment.", is_blocking=False)
    baseline = placed.measures.baseline or _history(warehouse, placed, spec)
    available = tested_of(experiment, summary.sendable)
    is_enough = True
    if baseline is not None and placed.is_proportion:
        is_enough = available >= needed(placed, baseline).total
    message = size_words(placed, baseline, available)
    return CheckResult(EXPERIMENT_CHECK, is_enough, message, {"tested": available}, is_blocking=False)


def tested_of(experiment: ExperimentSpec, contacts: int) -> int:
    """About how many of so many contacts are tested."""
    share = experiment.traffic
    if experiment.layer is not None:
        share *= experiment.layer.end - experiment.layer.start
    if experiment.holdout is not None:
        share *= 1 - experiment.holdout.share
    return round(contacts * share)


def baseline_of(warehouse: Warehouse, running: Running) -> float | None:
    """What the metric is today: as the file says, or what the campaign's messages came to; None if neither."""
    return running.placed.measures.baseline or _history(warehouse, running.placed, running.campaign)


def available_for(warehouse: Warehouse, running: Running, now: datetime) -> int | None:
    """About how many contacts would be tested now; None where that cannot be said beforehand, as of journeys."""
    spec = running.campaign
    if spec is None or spec.experiment is None or not _exists(warehouse, "segments", spec.audience.segment):
        return None
    audience = Audience(warehouse, spec, now.replace(microsecond=0), is_dry_run=True)
    return tested_of(spec.experiment, audience.summary().sendable)


def _history(warehouse: Warehouse, placed: Placed, spec: CampaignSpec | None) -> float | None:
    column = _COUNTS.get(placed.measures.metric)
    if column is None or not _exists(warehouse, "marts", "campaign_performance"):
        return None
    name = spec.campaign if spec else placed.owner.partition(".")[0]
    row = warehouse.frame(
        f"""
        select sum({column}) as happened, sum(sent_count) as sent from marts.campaign_performance
        where campaign = {{name:String}} or startsWith(campaign, {{name:String}} || '.')
        """,  # noqa: S608
        {"name": name},
    ).row(0)
    happened, sent = int(row[0] or 0), int(row[1] or 0)
    return happened / sent if happened >= 10 and happened < sent else None


class Task(NamedTuple):
    """Something of an experiment that is due.

    Attributes:
        kind: `send` (a part that may go now), `look` (a look that may decide) or `refresh` (one that only shows).
        campaign, occurrence, part: for `send`: whose, which, and the part's key.
    """

    kind: str
    experiment: str
    campaign: str = ""
    occurrence: str = ""
    part: str = ""


def due_tasks(warehouse: Warehouse, running: Running, now: datetime) -> Iterator[Task]:
    """Parts of occurrences that may go by now beside those that go at once, and looks.

    A part is told again and again once it is due: a bandit's later batches, variants with a delay, and the remainder of
    an experiment that was decided. Sending it again sends nothing.
    """
    spec = running.campaign
    if spec is None or spec.experiment is None:
        first = _first_exposure(warehouse, running.name)
        if first is None:
            return
        measures = running.placed.measures
        is_open = measures.winner is not None and decision_of(warehouse, running.name) is None
        if is_open and now >= first + measures.earliest:
            yield Task("look", running.name)
        elif _is_of_interest(running, first, now):
            yield Task("refresh", running.name)
        return
    experiment = spec.experiment
    by_occurrence: dict[str, list[Settled]] = {}
    for one in settled(warehouse, running.name).values():
        by_occurrence.setdefault(one.occurrence, []).append(one)
    if not by_occurrence:
        return
    decision = decision_of(warehouse, running.name)
    newest = max(by_occurrence)
    for key, here in by_occurrence.items():
        moment = datetime.fromisoformat(key)
        # older ones may still have a remainder, and nothing else
        if decision is None and key != newest:
            continue
        for part in parts_of(spec, moment, here, decision):
            if moment < part.due_at <= now:
                yield Task("send", running.name, spec.campaign, key, part.key)
        batches, batch = experiment.batches, len(here)
        is_due = batches is not None and batch < batches.count and moment + batches.every * batch <= now
        if is_due and key == newest:
            yield Task("send", running.name, spec.campaign, key, f"batch#{batch}")
    started, _ = started_at(warehouse, running, None, now)
    if decision is None and experiment.winner is not None and now >= started + experiment.earliest:
        yield Task("look", running.name)
    elif _is_of_interest(running, started, now):
        yield Task("refresh", running.name)


def _is_of_interest(running: Running, started: datetime, now: datetime) -> bool:
    """Whether something is to be seen of an experiment, and has not been seen for good."""
    measures = running.placed.measures
    return (
        started + timedelta(hours=1)
        <= now
        < started + measures.planned_end + measures.within + timedelta(days=2)
    )


def _first_exposure(warehouse: Warehouse, experiment: str) -> datetime | None:
    if not has_marts(warehouse):
        return None
    return warehouse.value(
        "select minOrNull(exposed_at) from marts.experiment_exposures where experiment = {experiment:String}",
        {"experiment": experiment},
    )


def rows_of_sums(warehouse: Warehouse, experiment: str) -> pl.DataFrame:
    return warehouse.frame(
        """
        select variant, metric, metric_kind, contacts_count, value_sum, value_square_sum, before_sum, before_square_sum,
            product_sum, denominator_sum, denominator_square_sum, denominator_product_sum, is_lower_better, exposed_on,
            first_exposed_at, last_exposed_at
        from marts.experiment_sums where experiment = {experiment:String}
        order by variant, metric, exposed_on
        """,
        {"experiment": experiment},
    )


def started_at(
    warehouse: Warehouse, running: Running, first_at: datetime | None, now: datetime
) -> tuple[datetime, str]:
    """When the last variant of the first occurrence went, and why it is too early to decide, if it is."""
    spec = running.campaign
    if spec is None or spec.experiment is None:
        return first_at or now, ""
    divisions = [one for one in settled(warehouse, running.name).values() if one.allocation.traffic > 0]
    if not divisions:
        return first_at or now, ""
    first = min(one.occurrence for one in divisions)
    delay = max((one.delay or timedelta(0) for one in spec.experiment.variants), default=timedelta(0))
    planned = datetime.fromisoformat(first) + delay
    sent = None
    if has_marts(warehouse):
        sent = warehouse.value(
            """
            select maxOrNull(exposed_at) from marts.experiment_exposures
            where experiment = {experiment:String} and occurrence = {occurrence:String}
                and variant != {holdout:String}
            """,
            {"experiment": running.name, "occurrence": first, "holdout": HOLDOUT},
        )
    if sent is None:
        return planned, "The models have not taken in its messages yet."
    # a send that is late puts the decision off, one that goes on for days, such as by quiet hours, does not
    return min(
        max(planned, sent), planned + timedelta(days=1)
    ), "" if now >= planned else "A variant has yet to go."


def missing_messages(settings: SenderSettings, warehouse: Warehouse, running: Running) -> int:
    """Messages of the newest occurrence that went out and that the marts have not taken in yet."""
    spec = running.campaign
    divisions = settled(warehouse, running.name)
    if spec is None or not divisions:
        return 0
    newest = max(occurrence for occurrence, _ in divisions)
    with Ledger.open(settings) as ledger:
        counts = ledger.counts("campaign", spec.campaign, newest)
    sent = counts["sent"] + counts["queued"]
    taken = int(
        warehouse.value(
            """
            select count() from marts.messages
            where kind = 'campaign' and name = {name:String} and occurrence = {occurrence:String} and is_sent
            """,
            {"name": spec.campaign, "occurrence": newest},
        )
    )
    return max(0, sent - taken)


def has_marts(warehouse: Warehouse) -> bool:
    return _exists(warehouse, "marts", "experiment_sums")


def _exists(warehouse: Warehouse, database: str, table: str) -> bool:
    return bool(
        warehouse.value(
            "select count() from system.tables where database = {database:String} and name = {table:String}",
            {"database": database, "table": table},
        )
    )
