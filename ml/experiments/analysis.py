"""From a frame of sums and a plan to everything that is known of an experiment.

`analyse` computes, `ml.experiments.verdict.judge` decides and says so in words, `ml.experiments.report.report_html`
shows.

Before the planned end p-values and intervals hold at every look (see `ml.experiments.sequential`); at the end they are
those of the fixed-horizon tests, which are tighter: right for whoever decides at the end alone. If looks before it
may end the experiment as well, the error of the whole is at most the sum of both; `Plan.early_alpha` divides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from ml.experiments.bayes import Posterior, bayes_means, bayes_proportions
from ml.experiments.compare import Comparison, Estimate, compare, two_proportion_z
from ml.experiments.guardrails import Guardrail, GuardrailResult, check_guardrail
from ml.experiments.multiple import benjamini_hochberg, holm
from ml.experiments.segments import SegmentEffects, segment_effects
from ml.experiments.sequential import early_estimates
from ml.experiments.summaries import Metric, Sums, roll_up
from ml.experiments.validity import Balance, SampleRatio, covariate_balance, sample_ratio

COURSE_SCHEMA = pl.Schema(
    {
        "variant": pl.String(),
        "day": pl.Date(),
        "contacts": pl.Int64(),
        "lift": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
    }
)
"""Of `Analysis.course`: the primary metric's lift over the control on all contacts exposed up to a day, with its
confidence sequence; null where it is not known."""


@dataclass(frozen=True)
class Plan:
    """What was decided before the start.

    Args:
        experiment: name.
        weights: variants and their planned relative weights, the control among them.
        control: the variant that all others are compared with.
        primary: the metric that decides.
        planned_contacts: of all variants together, from `ml.experiments.power`.
        minimum_lift: the smallest relative change of the primary metric that would matter, above 0.
        guardrails: what must not get worse.
        secondary: further metrics, to learn from; they decide nothing.
        balance: columns known before the exposure that must be alike in all variants.
        alpha: chance of a wrong winner where nothing differs: over all treatments, all looks and the end together.
        power: wanted, for `minimum_lift`.
        early_alpha: the part of alpha for decisions before the end, by sequences; the test at the end has the others.
            0 leaves all to the end: before it intervals are shown, and nothing is decided.
        must_be_safe: only a treatment that all guardrails call safe may win; otherwise it may win unless harmed.

    Raises:
        ValueError: something is out of range, or the control has no weight; the message says what.
    """

    experiment: str
    weights: Mapping[str, float]
    control: str
    primary: Metric
    planned_contacts: int
    minimum_lift: float
    guardrails: tuple[Guardrail, ...] = ()
    secondary: tuple[Metric, ...] = ()
    balance: tuple[str, ...] = ()
    alpha: float = 0.05
    power: float = 0.8
    early_alpha: float = 0.01
    must_be_safe: bool = False

    def __post_init__(self) -> None:
        where = f"experiment {self.experiment}"
        if self.control not in self.weights or len(self.weights) < 2:
            raise ValueError(f"{where}: the weights must name the control {self.control} and another variant")
        if any(not (np.isfinite(weight) and weight > 0) for weight in self.weights.values()):
            raise ValueError(f"{where}: weights must be above 0")
        if self.planned_contacts < 1:
            raise ValueError(f"{where}: planned_contacts must be above 0; see ml.experiments.power")
        if not (np.isfinite(self.minimum_lift) and self.minimum_lift > 0):
            raise ValueError(f"{where}: minimum_lift must be above 0")
        if not (0 < self.alpha < 0.5 and 0 < self.power < 1):
            raise ValueError(f"{where}: alpha must be between 0 and 0.5, power between 0 and 1")
        if not 0 <= self.early_alpha < self.alpha:
            raise ValueError(f"{where}: early_alpha must be at least 0 and below alpha")

    def level(self, *, is_final: bool) -> float:
        """What p-values are held against: the part of alpha for the end (also for `ml.experiments.power`) or before."""
        return self.alpha - self.early_alpha if is_final else self.early_alpha

    @property
    def treatments(self) -> tuple[str, ...]:
        """All variants but the control."""
        return tuple(variant for variant in self.weights if variant != self.control)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics, for `aggregate` and `aggregate_sql`."""
        return (self.primary, *(guardrail.metric for guardrail in self.guardrails), *self.secondary)


@dataclass(frozen=True)
class Result:
    """One metric of one treatment against the control.

    Args:
        comparison: the fixed-horizon comparison, whatever the time.
        absolute, relative: what may be believed now: at the end the comparison's, before it confidence sequences.
        p_value: that belongs to them, right now; NaN if the data cannot say.
        p_adjusted: for the number of treatments (primary: Holm; secondary: Benjamini and Hochberg over all).
    """

    metric: Metric
    variant: str
    comparison: Comparison
    absolute: Estimate
    relative: Estimate
    p_value: float
    p_adjusted: float

    @property
    def is_better(self) -> bool:
        """Whether the effect, certain or not, is in the good direction."""
        return self.absolute.value * (-1 if self.metric.lower_is_better else 1) > 0


@dataclass(frozen=True)
class Analysis:
    """All that is known of an experiment; see `analyse`.

    Args:
        counts: contacts of each variant.
        mixed: contacts left out because they saw several variants.
        primary: a result for each treatment, intervals simultaneous over treatments.
        posteriors: of all variants on the primary metric; empty if the data cannot say. Adjusted metrics are centred
            on the control, and variants taken as independent.
        segments: effects by segment, of each treatment; empty without segments.
        course: of `COURSE_SCHEMA`; None without days.
    """

    plan: Plan
    is_final: bool
    counts: dict[str, int]
    mixed: int
    sample_ratio: SampleRatio
    balance: Balance | None
    primary: tuple[Result, ...]
    secondary: tuple[Result, ...]
    guardrails: tuple[GuardrailResult, ...]
    posteriors: dict[str, Posterior]
    segments: dict[str, SegmentEffects]
    course: pl.DataFrame | None
    first_exposed_at: datetime | None
    last_exposed_at: datetime | None

    @property
    def contacts(self) -> int:
        """Of all variants."""
        return sum(self.counts.values())


def analyse(
    sums: pl.DataFrame,
    plan: Plan,
    *,
    is_final: bool,
    segments: pl.DataFrame | None = None,
    days: pl.DataFrame | None = None,
    mixed: int = 0,
) -> Analysis:
    """Analyse an experiment from sufficient statistics.

    Args:
        sums: a frame of sums (see `ml.experiments.summaries`) of `plan.metrics` and `plan.balance`, a row a variant.
            Contacts who are in no variant, such as a holdout, have no row; a variant without one has no contacts.
        plan: what was decided before the start.
        is_final: the planned end is reached. Say it once.
        segments: sums with a further column `segment`, for effects by segment.
        days: sums with a further column `day` (a date), of the contacts exposed on that day, for the course over time.
        mixed: contacts who were left out because they saw several variants (`Exposures.mixed`).

    Raises:
        ValueError: a variant is not in the plan or has two rows, or a sum is missing or not finite.
    """
    rows = _by_variant(sums, plan)
    counts = {variant: int(rows[variant]["contacts"]) if variant in rows else 0 for variant in plan.weights}
    primary = [_result(rows, plan, plan.primary, variant, is_final) for variant in plan.treatments]
    adjusted = holm([result.p_value for result in primary])
    secondary = [
        _result(rows, plan, metric, variant, is_final)
        for metric in plan.secondary
        for variant in plan.treatments
    ]
    secondary_adjusted = benjamini_hochberg([result.p_value for result in secondary])
    guardrails = [
        check_guardrail(
            Sums.of_row(rows.get(plan.control), guardrail.metric.columns),
            Sums.of_row(rows.get(variant), guardrail.metric.columns),
            guardrail,
            variant=variant,
            alpha=plan.alpha,
            information=_information(counts, plan, variant),
            treatment_share=_share(plan, variant),
            is_final=is_final,
        )
        for guardrail in plan.guardrails
        for variant in plan.treatments
    ]
    balance = None
    if plan.balance:
        arms = {variant: Sums.of_row(rows.get(variant), plan.balance) for variant in plan.weights}
        balance = covariate_balance(arms.pop(plan.control), arms, plan.balance)
    found = list(rows.values())
    return Analysis(
        plan=plan,
        is_final=is_final,
        counts=counts,
        mixed=mixed,
        sample_ratio=sample_ratio(counts, plan.weights, is_final=is_final),
        balance=balance,
        primary=tuple(replace(r, p_adjusted=float(p)) for r, p in zip(primary, adjusted, strict=True)),
        secondary=tuple(
            replace(r, p_adjusted=float(p)) for r, p in zip(secondary, secondary_adjusted, strict=True)
        ),
        guardrails=tuple(guardrails),
        posteriors=_posteriors(rows, plan, primary),
        segments=_segments(segments, plan),
        course=_course(days, plan),
        first_exposed_at=min(
            (r["first_exposed_at"] for r in found if r.get("first_exposed_at")), default=None
        ),
        last_exposed_at=max((r["last_exposed_at"] for r in found if r.get("last_exposed_at")), default=None),
    )


_Rows = dict[str, dict[str, Any]]


def _by_variant(sums: pl.DataFrame, plan: Plan) -> _Rows:
    names = sums["variant"].to_list()
    if unknown := sorted({str(name) for name in names} - set(plan.weights)):
        raise ValueError(
            f"experiment {plan.experiment}: the plan has no variant {', '.join(unknown)}; it has "
            f"{', '.join(plan.weights)}"
        )
    if len(set(names)) != len(names):
        raise ValueError(f"experiment {plan.experiment}: a variant has several rows; see roll_up")
    return {row["variant"]: row for row in sums.to_dicts()}


def _information(counts: Mapping[str, int], plan: Plan, variant: str) -> float:
    share = (plan.weights[plan.control] + plan.weights[variant]) / sum(plan.weights.values())
    return max(counts[plan.control] + counts[variant], 1) / (plan.planned_contacts * share)


def _share(plan: Plan, variant: str) -> float:
    return plan.weights[variant] / (plan.weights[variant] + plan.weights[plan.control])


def _result(rows: _Rows, plan: Plan, metric: Metric, variant: str, is_final: bool) -> Result:
    # intervals of the primary metric are simultaneous; without early decisions any confidence may be shown early
    alpha = plan.level(is_final=is_final) or plan.alpha
    if metric == plan.primary:
        alpha /= len(plan.treatments)
    control = Sums.of_row(rows.get(plan.control), metric.columns)
    treatment = Sums.of_row(rows.get(variant), metric.columns)
    comparison = compare(control, treatment, metric, confidence=1 - alpha)
    is_plain = metric.kind == "proportion" and not metric.covariates
    if is_final:
        absolute, relative, p_value = _at_the_end(control, treatment, comparison, is_plain)
    else:
        absolute, relative, p_value = early_estimates(
            control,
            treatment,
            comparison,
            information=_information({plan.control: control.n, variant: treatment.n}, plan, variant),
            treatment_share=_share(plan, variant),
        )
    return Result(metric, variant, comparison, absolute, relative, p_value, float("nan"))


def _at_the_end(
    control: Sums, treatment: Sums, comparison: Comparison, is_plain: bool
) -> tuple[Estimate, Estimate, float]:
    absolute, relative = comparison.absolute, comparison.relative
    if not (is_plain and control.n and treatment.n):
        return absolute, relative, absolute.p_value
    yes = [round(sums.total(sums.columns[0])) for sums in (control, treatment)]
    pooled = sum(yes) / (control.n + treatment.n)
    if min(pooled, 1 - pooled) * min(control.n, treatment.n) >= 5:
        return absolute, relative, absolute.p_value
    # too few for the normal distribution: Fisher's exact test, Newcombe's interval
    table = [[yes[0], control.n - yes[0]], [yes[1], treatment.n - yes[1]]]
    p_value = float(stats.fisher_exact(table).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    score = two_proportion_z(yes[0], control.n, yes[1], treatment.n, confidence=absolute.confidence)
    exact = replace(score, p_value=p_value)
    return exact, replace(relative, p_value=p_value) if relative.is_known else relative, p_value


def _posteriors(rows: _Rows, plan: Plan, primary: list[Result]) -> dict[str, Posterior]:
    metric = plan.primary
    if any(variant not in rows for variant in plan.weights):
        return {}
    if metric.kind == "proportion" and not metric.covariates:
        counts: dict[str, tuple[int, int]] = {}
        for variant in plan.weights:
            sums = Sums.of_row(rows[variant], metric.columns)
            counts[variant] = (round(sums.total(metric.columns[0])), sums.n)
        return bayes_proportions(counts, lower_is_better=metric.lower_is_better)
    if not all(r.comparison.absolute.is_known and min(r.comparison.variances[:2]) > 0 for r in primary):
        return {}
    first = primary[0].comparison
    estimates = {plan.control: (first.control_value, float(np.sqrt(first.variances[0])))}
    for result in primary:
        moved = first.control_value + result.comparison.absolute.value
        estimates[result.variant] = (moved, float(np.sqrt(result.comparison.variances[1])))
    return bayes_means(estimates, lower_is_better=metric.lower_is_better)


def _segments(segments: pl.DataFrame | None, plan: Plan) -> dict[str, SegmentEffects]:
    if segments is None:
        return {}
    kept = segments.with_columns(pl.col("segment").cast(pl.String).fill_null("(none)"))
    by_segment = {
        str(name): _by_variant(rows, plan) for (name,), rows in kept.group_by("segment", maintain_order=True)
    }
    columns = plan.primary.columns
    return {
        variant: segment_effects(
            {
                name: (Sums.of_row(rows.get(plan.control), columns), Sums.of_row(rows.get(variant), columns))
                for name, rows in by_segment.items()
            },
            plan.primary,
            is_relative=True,
            confidence=1 - plan.alpha,
        )
        for variant in plan.treatments
    }


def _course(days: pl.DataFrame | None, plan: Plan) -> pl.DataFrame | None:
    if days is None:
        return None
    kept = days.with_columns(pl.col("day").cast(pl.Date))
    found: list[dict[str, object]] = []
    for day in kept["day"].unique().sort():
        rows = _by_variant(roll_up(kept.filter(pl.col("day") <= day)), plan)
        for variant in plan.treatments:
            result = _result(rows, plan, plan.primary, variant, False)
            found.append(
                {
                    "variant": variant,
                    "day": day,
                    "contacts": result.comparison.control_n + result.comparison.treatment_n,
                    "lift": result.relative.value,
                    "low": result.relative.low,
                    "high": result.relative.high,
                }
            )
    frame = pl.DataFrame(found, schema=COURSE_SCHEMA)
    lift = pl.col("lift", "low", "high")
    return frame.with_columns(pl.when(lift.is_finite()).then(lift)).sort("variant", "day")
