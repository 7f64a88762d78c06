"""Metrics that must not get worse by more than is tolerated: unsubscribes, complaints, deliverability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from ml.experiments.compare import Comparison, compare, two_proportion_z
from ml.experiments.sequential import early_estimates
from ml.experiments.summaries import Metric, Sums


@dataclass(frozen=True)
class Guardrail:
    """A metric with the largest harm that is tolerated.

    Args:
        metric: `lower_is_better` says which direction harms.
        margin: the harm that is tolerated, above 0: relative to the control (0.1 is 10 % worse), or absolute.
        is_relative: how the margin is meant.

    Raises:
        ValueError: the margin is not above 0.
    """

    metric: Metric
    margin: float
    is_relative: bool = True

    def __post_init__(self) -> None:
        if not (np.isfinite(self.margin) and self.margin > 0):
            raise ValueError(f"guardrail {self.metric.name}: margin must be above 0")


@dataclass(frozen=True)
class GuardrailResult:
    """What a guardrail says of a treatment.

    Args:
        harm: of the treatment against the control in the harmful direction, in units of the margin's kind.
        harm_high: upper end of the one-sided interval of the harm.
        p_value: that a harm of the margin or more would look as harmless as this (non-inferiority).
        status: `safe` (harm of the margin or more is ruled out), `harmed` (worse than the control beyond chance, and
            safety is not shown), `undecided`.
    """

    guardrail: Guardrail
    variant: str
    comparison: Comparison
    harm: float
    harm_high: float
    p_value: float
    status: Literal["safe", "harmed", "undecided"]


def check_guardrail(
    control: Sums,
    treatment: Sums,
    guardrail: Guardrail,
    *,
    variant: str = "treatment",
    alpha: float = 0.05,
    information: float = 1.0,
    treatment_share: float = 0.5,
    is_final: bool = True,
) -> GuardrailResult:
    """Non-inferiority of a treatment, one-sided at `alpha`.

    The hypothesis treatment - control = margin, or with a relative margin m the linear treatment - (1 + m) control = 0,
    which needs no division by a rate near zero (Farrington and Manning, Test statistics and sample size formulae for
    comparative binomial trials, Statistics in Medicine 9, 1990). Absolute margins of proportions use Newcombe's
    interval, which is right for rare events and for none.

    Args:
        control, treatment: sums with the metric's columns.
        guardrail: metric and margin.
        variant: name of the treatment.
        alpha: one-sided.
        information, treatment_share: as for `early_estimates`, for looks before the end.
        is_final: at the planned end; before it `harmed` and `safe` need intervals that hold at every look.
    """
    metric = guardrail.metric
    # a one-sided test at alpha is a two-sided interval at 1 - 2 alpha
    confidence = 1 - 2 * alpha
    comparison = compare(control, treatment, metric, confidence=confidence)
    sign = 1.0 if metric.lower_is_better else -1.0
    difference, lift = comparison.absolute, comparison.relative
    low, high = difference.low, difference.high
    if not is_final:
        difference, lift, _ = early_estimates(
            control.select(metric.columns),
            treatment.select(metric.columns),
            comparison,
            information=information,
            treatment_share=treatment_share,
        )
        low, high = difference.low, difference.high
    elif metric.kind == "proportion" and not metric.covariates:
        column = metric.columns[0]
        successes = [round(sums.total(column)) for sums in (control, treatment)]
        score = two_proportion_z(successes[0], control.n, successes[1], treatment.n, confidence=confidence)
        low, high = score.low, score.high
    harm_low, harm_high = sorted((sign * low, sign * high))
    is_harmed, harm, p_value = harm_low > 0, sign * difference.value, float("nan")
    base = comparison.control_value
    if guardrail.is_relative:
        harm_low, harm_high = sorted((sign * lift.low, sign * lift.high))
        # conversions may speak before there are enough contacts for a difference
        is_harmed = is_harmed or (not is_final and harm_low > 0)
        harm = sign * lift.value
        if lift.is_known:
            factor = 1 + sign * guardrail.margin
            of_control, of_treatment, of_both = comparison.variances
            se = float(np.sqrt(of_treatment + factor**2 * of_control - 2 * factor * of_both))
            z = sign * (comparison.treatment_value - factor * base) / se if se > 0 else float("nan")
            p_value = float(stats.t.cdf(z, comparison.absolute.df))
    elif comparison.absolute.is_known:
        z = (harm - guardrail.margin) / comparison.absolute.se
        p_value = float(stats.t.cdf(z, comparison.absolute.df))
    is_safe = p_value < alpha if is_final and guardrail.is_relative else harm_high < guardrail.margin
    status = "safe" if is_safe else "harmed" if is_harmed else "undecided"
    return GuardrailResult(guardrail, variant, comparison, harm, harm_high, p_value, status)
