"""Experiments from their files to their decisions: what the Dagster asset, the sensor and `mailhouse experiment` share.

`look` reads the marts and analyses; `decision_for` says what follows by the file's rule; `conclude` writes it down, once;
`divisions_of` tells a send how its audience is divided. No Dagster in here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl

from campaigns.assignment import HOLDOUT
from campaigns.audience import AudienceSummary
from campaigns.checks import CheckResult
from campaigns.experiment_specs import (
    LOWER_IS_BETTER,
    MESSAGE_METRICS,
    ExperimentSpec,
    Placed,
    experiment_problems,
)
from campaigns.experiments import Decision, Part, Settled, decide, decision_of, parts_of, settle, settled
from campaigns.identity import occurrence_key
from campaigns.journeys import load_journeys
from campaigns.specs import CampaignSpec, load_campaigns
from ml.experiments import (
    Analysis,
    Guardrail,
    Metric,
    Plan,
    Verdict,
    analyse,
    judge,
    roll_up,
    thompson_weights,
)
from ml.experiments.bayes import bayes_proportions
from ml.experiments.power import SampleSize, sample_size_proportions
from ml.experiments.report import report_html
from ml.experiments.validity import sample_ratio
from orchestration.lib.dbt_runs import PROJECT_DIR
from senders.leases import hold
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import InputError, MailhouseError
from warehouse.yaml_specs import nearest, problems_error

METRICS_DIR = PROJECT_DIR / "models" / "metrics"
EXPERIMENT_CHECK = "experiment_size"
REPORTS = "experiments"  # in the home folder
_FLAGS = {
    "opens": "is_opened", "clicks": "is_clicked", "conversions": "is_converted", "unsubscribes": "is_unsubscribed",
    "complaints": "is_complained", "bounces": "is_bounced",
}  # fmt: skip
_FLOOR = 0.05  # the least share of a bandit's variant
_COUNTS = {
    "opens": "opened_count", "clicks": "clicked_count", "conversions": "goal_reached_count",
    "unsubscribes": "unsubscribed_count", "complaints": "complained_count", "bounces": "bounced_count",
}  # fmt: skip


class BrokenRatioError(MailhouseError):
    """The variants do not have the contacts that were planned, so no winner is chosen."""


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


@dataclass(frozen=True)
class Look:
    """An experiment as of now.

    Attributes:
        analysis, verdict: None as long as nobody has been exposed.
        mixed: contacts who saw several variants.
        held_out: contacts who were held out.
        started_at: when the last variant of the newest occurrence went, None before.
        is_final: the planned end is reached, or the decision was made.
        decision: what was decided, None if nothing yet.
        note: what keeps it from being decided; empty if nothing does.
    """

    running: Running
    analysis: Analysis | None
    verdict: Verdict | None
    mixed: int
    held_out: int
    started_at: datetime | None
    is_final: bool
    decision: Decision | None
    note: str = ""

    @property
    def chances(self) -> dict[str, float]:
        """Each variant's chance to be the best; empty if the data cannot say."""
        if self.analysis is None:
            return {}
        return {name: one.chance_best for name, one in self.analysis.posteriors.items()}

    @property
    def headline(self) -> str:
        """How it stands, in a sentence."""
        if self.decision is not None:
            return self.decision.headline
        return self.verdict.headline if self.verdict else self.note or "Nobody has been exposed yet."


def load_experiments(content_dir: Path) -> dict[str, Running]:
    """All experiments of campaigns and journeys, by name.

    Raises:
        InputError: a file is wrong, two experiments have one name or share a part of a layer, or a metric does not exist.
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
    known = load_experiments(content_dir)
    if name not in known:
        raise InputError(
            f"There is no experiment {name!r} in {content_dir.name}.",
            fix=nearest(name, known) or "Write `experiment` into a campaign: see docs/experiments.md.",
        )
    return known[name]


# who gets what


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
    rows = _rows(warehouse, placed.name)
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


# how it stands


def look(warehouse: Warehouse, running: Running, now: datetime) -> Look:
    """Analyse an experiment by what the marts have."""
    placed, spec = running.placed, running.campaign
    decision = decision_of(warehouse, placed.name)
    if not _has_marts(warehouse):
        note = "The models have not been built yet."
        return Look(running, None, None, 0, 0, None, False, decision, note)
    rows = _rows(warehouse, placed.name)
    people = warehouse.frame(
        """
        select countIf(is_mixed) as mixed, countIf(variant = {holdout:String}) as held_out,
            maxOrNull(if(variant != {holdout:String}, exposed_at, null)) as last_at, min(exposed_at) as first_at,
            count() as contacts
        from marts.experiment_exposures where experiment = {experiment:String}
        """,
        {"experiment": placed.name, "holdout": HOLDOUT},
    ).row(0, named=True)
    tested = rows.filter(pl.col("variant").is_in(list(placed.weights)))
    if not tested.height:
        return Look(running, None, None, people["mixed"], people["held_out"], None, False, decision)
    started, waits = _started(warehouse, running, people["first_at"], now)
    is_final = decision is not None or now >= started + _planned_end(placed)
    baseline = placed.measures.baseline or _history(warehouse, placed, spec)
    plan = plan_of(warehouse, placed, tested, baseline)
    days = _sums(tested, plan, by=["variant", "day"])
    analysis = analyse(
        roll_up(days),
        plan,
        is_final=is_final,
        days=days if days["day"].n_unique() > 1 else None,
        mixed=people["mixed"],
    )
    analysis = _with_ratio(warehouse, running, analysis)
    return Look(
        running,
        analysis,
        judge(analysis),
        people["mixed"],
        people["held_out"],
        started,
        is_final,
        decision,
        waits,
    )


def plan_of(warehouse: Warehouse, placed: Placed, rows: pl.DataFrame, baseline: float | None) -> Plan:
    """The plan of an experiment, as `ml.experiments` wants it.

    Args:
        rows: of `marts.experiment_sums`, to tell kinds and directions of metrics.
        baseline: what the metric is without the experiment; None takes what there is as what was planned.
    """
    measures = placed.measures
    kinds = {name: (kind, bool(lower)) for name, kind, lower in
             rows.select("metric", "metric_kind", "is_lower_better").unique().iter_rows()}  # fmt: skip

    def metric(name: str) -> Metric:
        kind, lower = kinds.get(
            name, ("proportion" if name in MESSAGE_METRICS else "mean", name in LOWER_IS_BETTER)
        )
        if kind == "proportion":
            return Metric(name, "proportion", lower_is_better=lower)
        varied = rows.filter(metric=name)["before_square_sum"].sum() > 0
        return Metric(name, "mean", covariates=(f"{name}_before",) if varied else (), lower_is_better=lower)

    contacts = int(rows.filter(metric=measures.metric)["contacts_count"].sum())
    planned = needed(placed, baseline).total if baseline else max(contacts, 1)
    early = {"fixed": 0.0, "anytime": 0.8 * measures.alpha, "bayes": 0.0}[measures.decide]
    return Plan(
        placed.name,
        _weights(warehouse, placed),
        control=placed.control,
        primary=metric(measures.metric),
        planned_contacts=planned,
        minimum_lift=measures.minimum_effect,
        guardrails=tuple(Guardrail(metric(one.metric), one.margin) for one in measures.guardrails),
        secondary=tuple(metric(name) for name in measures.others),
        alpha=measures.alpha,
        power=measures.power,
        early_alpha=early,
    )


class Needed(NamedTuple):
    """Contacts of each variant, and of all together."""

    each: dict[str, int]
    total: int


def needed(placed: Placed, baseline: float) -> Needed:
    """How many contacts the metric, a proportion, needs for its minimum effect: enough for every treatment.

    Treatments are corrected for their number (Bonferroni), as the analysis does at the least.
    """
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
    goal = (
        f"to find a change of {measures.minimum_effect:.3g} of {measures.metric}"
        if measures.metric not in MESSAGE_METRICS
        else f"to find a change of {measures.minimum_effect:.1%} of {measures.metric} with a chance of {measures.power:.0%}"
    )
    if measures.metric not in MESSAGE_METRICS:
        return f"How many contacts are needed {goal} cannot be said beforehand: {measures.metric} is no proportion."
    if baseline is None:
        return f"How many contacts are needed {goal} cannot be said: write baseline, there is no history to take it from."
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
    if baseline is not None and placed.measures.metric in MESSAGE_METRICS:
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


# what is decided


def decision_for(seen: Look, now: datetime) -> Decision | None:
    """What follows from a look by the file's rule; None as long as nothing does.

    Raises:
        BrokenRatioError: it would be time to decide, and the sample ratio is broken.
    """
    experiment = seen.running.campaign.experiment if seen.running.campaign else None
    if experiment is None or experiment.winner is None or seen.decision is not None:
        return None
    analysis, verdict, started = seen.analysis, seen.verdict, seen.started_at
    if (
        analysis is None
        or verdict is None
        or started is None
        or seen.note
        or now < started + experiment.earliest
    ):
        return None
    placed, rule = seen.running.placed, experiment.winner
    if analysis.sample_ratio.is_broken:
        raise BrokenRatioError(
            f"Experiment {placed.name} is not decided: {verdict.headline} {' '.join(verdict.evidence)}",
            fix=f"Find out why. `mailhouse experiment decide {placed.name} VARIANT` chooses all the same.",
        )

    def made(winner: str, by: str, outcome: str, headline: str) -> Decision:
        return Decision(placed.name, outcome, winner, by, headline, verdict.text, now)

    harmed = {one.variant for one in analysis.guardrails if one.status == "harmed"}
    if experiment.decide == "bayes":
        allowed = {name: one for name, one in analysis.posteriors.items() if name not in harmed}
        best = max(allowed, key=lambda name: allowed[name].chance_best, default=None)
        if best is not None and allowed[best].chance_best >= rule.confidence:
            chance = allowed[best].chance_best
            words = f"{best} wins: the best on {placed.measures.metric} with a chance of {chance:.1%}."
            return made(best, "bayes", "best_chance", words)
    elif verdict.winner is not None:
        return made(verdict.winner, experiment.decide, verdict.outcome, verdict.headline)
    if now < started + experiment.planned_end:
        return None
    match rule.otherwise:
        case "none":
            return made("", "otherwise", verdict.outcome, f"{verdict.headline} The remainder gets nothing.")
        case "best":
            allowed = {name: one for name, one in analysis.posteriors.items() if name not in harmed}
            best = max(allowed, key=lambda name: allowed[name].chance_best, default=placed.control)
            words = f"{verdict.headline} The remainder gets {best}, which looks best."
            return made(best, "otherwise", verdict.outcome, words)
        case _:
            words = f"{verdict.headline} The remainder gets {placed.control}, the control."
            return made(placed.control, "otherwise", verdict.outcome, words)


def conclude(settings: SenderSettings, warehouse: Warehouse, decision: Decision) -> Decision:
    """Write a decision, once; the answer is the one that counts.

    Raises:
        LeaseTakenError: another process is deciding at this moment.
    """
    with Ledger.open(settings) as ledger, hold(ledger, f"experiment {decision.experiment}"):
        return decide(warehouse, decision)


def review(settings: SenderSettings, warehouse: Warehouse, running: Running) -> Look:
    """Look, and decide if it is time: the decision is written, once, and is in the answer.

    Raises:
        BrokenRatioError: it would be time to decide, and the sample ratio is broken.
        LeaseTakenError: another process is deciding at this moment.
    """
    now = settings.now()
    seen = look(warehouse, running, now)
    if seen.decision is None and (missing := missing_messages(settings, warehouse, running)):
        seen = replace(seen, note=seen.note or f"The models have not taken in {missing:,} messages yet.")
    decision = decision_for(seen, now)
    return replace(seen, decision=conclude(settings, warehouse, decision)) if decision else seen


def decide_by_hand(
    settings: SenderSettings, warehouse: Warehouse, running: Running, variant: str
) -> Decision:
    """Decide whatever the data say.

    Raises:
        InputError: there is no such variant, or it has been decided otherwise.
    """
    if variant not in running.placed.weights:
        raise InputError(
            f"Experiment {running.name} has no variant {variant!r}.",
            fix=nearest(variant, running.placed.weights),
        )
    wanted = Decision(
        running.name, "by_hand", variant, "by_hand", f"{variant} was chosen by hand.", "", settings.now()
    )
    made = conclude(settings, warehouse, wanted)
    if made.winner != variant:
        raise InputError(
            f"Experiment {running.name} was decided on {made.decided_at:%Y-%m-%d %H:%M UTC}: {made.headline}",
            fix="A decision stands; begin a new experiment under another name.",
        )
    return made


# what is to be done next


class Task(NamedTuple):
    """Something of an experiment that is due.

    Attributes:
        kind: `send` (a part that may go now) or `look` (a look that may decide).
        occurrence: for `send`, which one.
        part: for `send`, its key.
    """

    kind: str
    experiment: str
    campaign: str
    occurrence: str = ""
    part: str = ""


def due_tasks(warehouse: Warehouse, running: Running, now: datetime) -> Iterator[Task]:
    """Parts of occurrences that may go by now beside those that go at once, and the look that decides.

    A part is told for as long as a message of it may be missing: a bandit's later batches, variants with a delay, and
    the remainder of an experiment that was decided.
    """
    spec = running.campaign
    if spec is None or spec.experiment is None:
        return
    divisions = list(settled(warehouse, running.name).values())
    if not divisions:
        return
    decision = decision_of(warehouse, running.name)
    by_occurrence: dict[str, list[Settled]] = {}
    for one in divisions:
        by_occurrence.setdefault(one.occurrence, []).append(one)
    newest = max(by_occurrence)
    for key, here in by_occurrence.items():
        moment = datetime.fromisoformat(key)
        if decision is None and key != newest:
            continue
        for part in parts_of(spec, moment, here, decision):
            if _is_later(part, moment) and part.due_at <= now:
                yield Task("send", running.name, spec.campaign, key, part.key)
        batches = spec.experiment.batches
        if batches is not None and key == newest:
            for batch in range(len(here), batches.count):
                if moment + batches.every * batch <= now:
                    yield Task("send", running.name, spec.campaign, key, f"batch#{batch}")
                    break
    if decision is None and spec.experiment.winner is not None:
        started, _ = _started(warehouse, running, None, now)
        if now >= started + spec.experiment.earliest:
            yield Task("look", running.name, spec.campaign)


def _is_later(part: Part, occurrence: datetime) -> bool:
    return part.due_at > occurrence


# reading


def write_report(settings: SenderSettings, seen: Look) -> Path | None:
    """Write the page of an experiment below the home folder; None as long as there is nothing to show."""
    if seen.analysis is None or seen.verdict is None:
        return None
    path = settings.home / REPORTS / f"{seen.running.name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(report_html(seen.analysis, seen.verdict, written_at=settings.now()), encoding="utf-8")
    beside.replace(path)
    return path


def result_table(seen: Look) -> pl.DataFrame:
    """What each variant came to: contacts, the metric that decides, lift with its interval, chance to be the best."""
    schema = {
        "variant": pl.String, "contacts": pl.Int64, "value": pl.Float64, "lift": pl.Float64, "low": pl.Float64,
        "high": pl.Float64, "p_value": pl.Float64, "chance_best": pl.Float64,
    }  # fmt: skip
    analysis = seen.analysis
    if analysis is None:
        return pl.DataFrame(schema=schema)
    values = {one.variant: one for one in analysis.primary}
    control = analysis.plan.control
    rows: list[dict[str, object]] = []
    for name, contacts in analysis.counts.items():
        row: dict[str, object] = {
            "variant": name,
            "contacts": contacts,
            "chance_best": seen.chances.get(name),
        }
        if name == control:
            row["value"] = analysis.primary[0].comparison.control_value
        else:
            one = values[name]
            row |= {
                "value": one.comparison.treatment_value, "lift": one.relative.value, "low": one.relative.low,
                "high": one.relative.high, "p_value": one.p_adjusted,
            }  # fmt: skip
        rows.append(row)
    number = pl.selectors.float()
    return pl.DataFrame(rows, schema=schema).with_columns(pl.when(number.is_finite()).then(number))


def _rows(warehouse: Warehouse, experiment: str) -> pl.DataFrame:
    return warehouse.frame(
        """
        select variant, metric, metric_kind, contacts_count, value_sum, value_square_sum, before_sum, before_square_sum,
            product_sum, is_lower_better, exposed_on, first_exposed_at, last_exposed_at
        from marts.experiment_sums where experiment = {experiment:String}
        order by variant, metric, exposed_on
        """,
        {"experiment": experiment},
    )


def _sums(rows: pl.DataFrame, plan: Plan, *, by: Sequence[str]) -> pl.DataFrame:
    """Rows of `marts.experiment_sums` as a frame of sums: a row a variant and day."""
    frame: pl.DataFrame | None = None
    for metric in dict.fromkeys(plan.metrics):
        name, before = metric.name, f"{metric.name}_before"
        first, second = sorted((name, before))
        here = rows.filter(pl.col("metric") == name).select(
            "variant",
            pl.col("exposed_on").alias("day"),
            pl.col("contacts_count").cast(pl.Int64).alias("contacts"),
            pl.col("value_sum").alias(f"sum__{name}"),
            pl.col("value_square_sum").alias(f"sum__{name}__{name}"),
            *(
                (
                    pl.col("before_sum").alias(f"sum__{before}"),
                    pl.col("before_square_sum").alias(f"sum__{before}__{before}"),
                    pl.col("product_sum").alias(f"sum__{first}__{second}"),
                )
                if metric.covariates
                else ()
            ),
            "first_exposed_at",
            "last_exposed_at",
        )
        if frame is None:
            frame = here
        else:
            more = [column for column in here.columns if column.startswith("sum__")]
            frame = frame.join(here.select("variant", "day", *more), on=["variant", "day"], how="left")
    assert frame is not None
    return frame.with_columns(pl.selectors.starts_with("sum__").fill_null(0.0)).sort(*by)


def _weights(warehouse: Warehouse, placed: Placed) -> Mapping[str, float]:
    """What was settled, not what the file says by now; the file's for journeys, and where they changed."""
    shares = [
        one.allocation.weights
        for one in settled(warehouse, placed.name).values()
        if one.allocation.traffic > 0
    ]
    if shares and all(set(one) == set(placed.weights) and one == shares[0] for one in shares):
        return shares[0]
    return placed.weights


def _with_ratio(warehouse: Warehouse, running: Running, analysis: Analysis) -> Analysis:
    """The sample ratio of a bandit is judged within batches: its weights change from one to the next."""
    spec = running.campaign
    if spec is None or spec.experiment is None or spec.experiment.allocation == "fixed":
        return analysis
    found = None
    divisions = list(settled(warehouse, running.name).values())
    for one in divisions:
        rows = warehouse.frame(
            f"""
            select variant, count() as contacts from marts.experiment_exposures
            where experiment = {{experiment:String}} and occurrence = {{occurrence:String}} and not is_mixed
                and variant != {{holdout:String}} and {one.condition_sql()}
            group by variant
            """,  # noqa: S608
            {"experiment": running.name, "occurrence": one.occurrence, "holdout": HOLDOUT},
        )
        counts = {str(name): int(number) for name, number in rows.iter_rows()}
        ratio = sample_ratio(
            counts, one.allocation.weights, alpha=0.001 / len(divisions), is_final=analysis.is_final
        )
        if found is None or ratio.p_value < found.p_value:
            found = ratio
    return replace(analysis, sample_ratio=found or analysis.sample_ratio)


def _started(
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
    if _has_marts(warehouse):
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


def _planned_end(placed: Placed) -> timedelta:
    return placed.measures.planned_end


def _has_marts(warehouse: Warehouse) -> bool:
    return _exists(warehouse, "marts", "experiment_sums")


def _exists(warehouse: Warehouse, database: str, table: str) -> bool:
    return bool(
        warehouse.value(
            "select count() from system.tables where database = {database:String} and name = {table:String}",
            {"database": database, "table": table},
        )
    )
