"""Two variants at a planned end: differences and relative lifts with intervals and p-values.

Every metric (proportion, mean, ratio, adjusted by covariates or not) is a smooth function of means, so one formula
serves them all: the delta method, g' C g / n summed over both variants, with g the gradient of the effect with
regard to a variant's means and C their covariances. Sources:

- Welch, The generalization of Student's problem when several different population variances are involved,
  Biometrika 34, 1947: the test of a difference, with Satterthwaite's degrees of freedom.
- Deng, Knoblich and Lu, Applying the delta method in metric analytics, KDD 2018: relative lifts, ratio metrics.
- Fieller, Some problems in interval estimation, JRSS B 16, 1954: the interval of a ratio of means, which stays
  right where the control's mean is not far from zero and the delta method is not.
- Deng, Xu, Kohavi and Walker, Improving the sensitivity of online controlled experiments by utilizing
  pre-experiment data, WSDM 2013: CUPED. The coefficients here are those that minimise the variance of the
  difference, so that adjusting never costs precision, whatever the weights (compare Lin, Agnostic notes on
  regression adjustments, AOAS 7, 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from ml.experiments.summaries import Metric, Sums

_FAR_FROM_ZERO = 0.1
"""Up to this coefficient of variation of the control's mean the delta method's interval of a lift serves."""


@dataclass(frozen=True)
class Estimate:
    """An effect, its interval, and how surprising it would be if there were none.

    What the data cannot say is NaN: value and se of a lift over a control of zero, the p-value of variants without
    variance. The interval then is from minus to plus infinity.

    Args:
        value: the effect; a lift of 10 % is 0.1.
        se: its standard error.
        low, high: ends of the two-sided interval.
        p_value: two-sided.
        df: degrees of freedom; infinite for a normal approximation.
        confidence: of the interval.
    """

    value: float
    se: float
    low: float
    high: float
    p_value: float
    df: float
    confidence: float

    @property
    def is_known(self) -> bool:
        """Whether the data say anything: there is a finite value and a standard error above zero."""
        return bool(np.isfinite(self.value) and np.isfinite(self.se) and self.se > 0)


@dataclass(frozen=True)
class Comparison:
    """A treatment beside the control.

    Args:
        control_n, treatment_n: contacts.
        control_value, treatment_value: of the metric, adjusted if it has covariates.
        variances: of both values, and their covariance (zero but for covariates, whose mean they share).
        absolute: treatment minus control.
        relative: treatment over control minus 1; unknown unless the control's value is above zero.
        coefficients: (k,) of the covariates (CUPED's theta).
        variance_reduction: share of the variance of the difference that adjusting took away.
    """

    metric: Metric
    control_n: int
    treatment_n: int
    control_value: float
    treatment_value: float
    variances: tuple[float, float, float]
    absolute: Estimate
    relative: Estimate
    coefficients: tuple[float, ...] = ()
    variance_reduction: float = 0.0


def compare(
    control: Sums,
    treatment: Sums,
    metric: Metric,
    *,
    confidence: float = 0.95,
    lift_interval: Literal["auto", "delta", "fieller"] = "auto",
) -> Comparison:
    """Welch's test of two variants, absolute and relative.

    Args:
        control, treatment: sums with the metric's columns.
        metric: what to compare.
        confidence: of the intervals.
        lift_interval: how the interval of the lift is made: `delta`, `fieller`, or `auto`: Fieller's where the
            control's mean is less than ten standard errors from zero. Fieller's p-value is that of the difference.

    Raises:
        ValueError: the confidence is not between 0 and 1, the sums lack a column, or those of a proportion are not
            those of values of 0 and 1.
    """
    check_confidence(confidence)
    if lift_interval not in ("auto", "delta", "fieller"):
        raise ValueError(f"lift_interval {lift_interval!r} is none of auto, delta, fieller")
    if missing := [n for n in metric.columns if n not in control.columns or n not in treatment.columns]:
        raise ValueError(f"metric {metric.name}: the sums lack {', '.join(missing)}")
    arms = [control.select(metric.columns), treatment.select(metric.columns)]
    counts = (arms[0].n, arms[1].n)
    if metric.kind == "proportion" and not all(map(_is_binary, arms)):
        raise ValueError(f"metric {metric.name}: the sums are not those of values of 0 and 1")
    if min(counts) < 2:
        values = (_value(arms[0], metric), _value(arms[1], metric))
        unknown = _unknown(values[1] - values[0], confidence)
        nan = float("nan")
        lift = _unknown(_lift(*values), confidence)
        return Comparison(metric, counts[0], counts[1], values[0], values[1], (nan, nan, nan), unknown, lift)
    binary = metric.kind == "proportion" and not metric.covariates
    covariances = [arm.covariance(binary=binary) / arm.n for arm in arms]
    theta = _coefficients(arms, metric, covariances)
    values = (_value(arms[0], metric), _value(arms[1], metric))
    if len(theta):
        before = [arm.means[-len(theta) :] for arm in arms]
        pooled = (before[0] * counts[0] + before[1] * counts[1]) / sum(counts)
        values = (
            values[0] - float(theta @ (before[0] - pooled)),
            values[1] - float(theta @ (before[1] - pooled)),
        )
    control_gradients, treatment_gradients = _gradients(arms, metric, theta)

    def moments(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> list[float]:
        return [float(g @ c @ h) for g, c, h in zip(first, covariances, second, strict=True)]

    # estimating k coefficients costs k degrees of freedom
    inflation = (sum(counts) - 2) / max(sum(counts) - 2 - len(theta), 1)

    difference = tuple(t - c for c, t in zip(control_gradients, treatment_gradients, strict=True))
    parts = moments(difference, difference)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Satterthwaite's, of the difference; the lift is judged with the same
        df = np.float64(sum(parts)) ** 2 / sum(
            part**2 / (n - 1) for part, n in zip(parts, counts, strict=True)
        )

    def estimate(value: float, gradients: tuple[np.ndarray, ...]) -> Estimate:
        variance = sum(moments(gradients, gradients)) * inflation
        return t_estimate(value, variance, float(df), confidence)

    variances = (
        sum(moments(control_gradients, control_gradients)) * inflation,
        sum(moments(treatment_gradients, treatment_gradients)) * inflation,
        sum(moments(control_gradients, treatment_gradients)) * inflation,
    )
    absolute = estimate(values[1] - values[0], difference)
    lift = _lift(*values)
    if np.isfinite(lift):
        by_control, by_treatment = -values[1] / values[0] ** 2, 1 / values[0]
        relative = estimate(
            lift,
            tuple(
                by_control * c + by_treatment * t
                for c, t in zip(control_gradients, treatment_gradients, strict=True)
            ),
        )
        is_near_zero = variances[0] > (_FAR_FROM_ZERO * values[0]) ** 2
        if relative.is_known and (lift_interval == "fieller" or (lift_interval == "auto" and is_near_zero)):
            quantile = _quantile(confidence, absolute.df)
            low, high = fieller_interval(values[0], values[1], *variances, quantile)
            relative = replace(relative, low=low - 1, high=high - 1, p_value=absolute.p_value, df=absolute.df)
    else:
        relative = _unknown(lift, confidence)
    reduction = 0.0
    if len(theta):
        plain = compare(arms[0], arms[1], replace(metric, covariates=()), confidence=confidence).absolute
        reduction = 1 - (absolute.se / plain.se) ** 2 if plain.is_known else 0.0
    coefficients = tuple(float(t) for t in theta)
    return Comparison(
        metric=metric,
        control_n=counts[0],
        treatment_n=counts[1],
        control_value=values[0],
        treatment_value=values[1],
        variances=variances,
        absolute=absolute,
        relative=relative,
        coefficients=coefficients,
        variance_reduction=reduction,
    )


def fieller_interval(
    control: float,
    treatment: float,
    control_variance: float,
    treatment_variance: float,
    covariance: float,
    quantile: float,
) -> tuple[float, float]:
    """Interval of treatment / control: all ratios r for which treatment - r control is not significantly off zero.

    Args:
        control, treatment: estimates of the means.
        control_variance, treatment_variance, covariance: of the estimates.
        quantile: of the test, such as 1.96.

    Returns:
        Both ends; minus and plus infinity where the control does not differ significantly from zero, since the set
        then has no end on one side at least.
    """
    squared = quantile**2
    a = control**2 - squared * control_variance
    b = control * treatment - squared * covariance
    c = treatment**2 - squared * treatment_variance
    discriminant = b * b - a * c
    if a <= 0 or discriminant < 0:
        return -np.inf, np.inf
    root = np.sqrt(discriminant)
    return float((b - root) / a), float((b + root) / a)


def two_proportion_z(
    control_successes: int,
    control_n: int,
    treatment_successes: int,
    treatment_n: int,
    *,
    confidence: float = 0.95,
    interval: Literal["newcombe", "wald"] = "newcombe",
) -> Estimate:
    """The z test of two proportions with the pooled variance, and an interval of their difference.

    The test is Pearson's chi-squared of the two by two table (z squared). The interval is Newcombe's hybrid score
    interval (method 10 in Interval estimation for the difference between independent proportions, Statistics in
    Medicine 17, 1998), right for few successes and for none, or Wald's with the pooled variance, which agrees with
    the test.

    Raises:
        ValueError: counts cannot be, or the confidence is not between 0 and 1.
    """
    check_confidence(confidence)
    counts = ((control_successes, control_n), (treatment_successes, treatment_n))
    for successes, n in counts:
        if not 0 <= successes <= n:
            raise ValueError(f"{successes} of {n} cannot be")
    if not (control_n and treatment_n):
        return _unknown(float("nan"), confidence)
    p_control, p_treatment = control_successes / control_n, treatment_successes / treatment_n
    difference = p_treatment - p_control
    pooled = (control_successes + treatment_successes) / (control_n + treatment_n)
    se = float(np.sqrt(pooled * (1 - pooled) * (1 / control_n + 1 / treatment_n)))
    z = float(stats.norm.isf((1 - confidence) / 2))
    # nobody or everybody in both: no sign of a difference
    p_value = float(2 * stats.norm.sf(abs(difference) / se)) if se > 0 else 1.0
    if interval == "wald":
        low, high = (difference - z * se, difference + z * se) if se > 0 else (-np.inf, np.inf)
    elif interval == "newcombe":
        (low_c, high_c), (low_t, high_t) = (wilson_interval(*pair, confidence=confidence) for pair in counts)
        low = difference - float(np.hypot(p_treatment - low_t, high_c - p_control))
        high = difference + float(np.hypot(high_t - p_treatment, p_control - low_c))
    else:
        raise ValueError(f"interval {interval!r} is none of newcombe, wald")
    return Estimate(difference, se, low, high, p_value, np.inf, confidence)


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, JASA 22, 1927); 0 to 1 without contacts."""
    check_confidence(confidence)
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class ChiSquared:
    """Pearson's test that all variants have the same proportion.

    Args:
        statistic, df, p_value: of the test; NaN if nobody or everybody did it, or a variant is empty.
        smallest_expected: count in any cell under the hypothesis; below 5 the p-value is rough.
    """

    statistic: float
    df: int
    p_value: float
    smallest_expected: float


def chi_squared(successes: Sequence[int], totals: Sequence[int]) -> ChiSquared:
    """Pearson's chi-squared of a table of variants by yes and no, without a continuity correction.

    Args:
        successes: (k,) contacts of each variant who did it.
        totals: (k,) contacts of each variant.

    Raises:
        ValueError: fewer than two variants, or counts that cannot be.
    """
    yes, n = np.asarray(successes), np.asarray(totals)
    if len(yes) != len(n) or len(n) < 2 or (yes < 0).any() or (yes > n).any():
        raise ValueError(
            "successes and totals must be of the same two or more variants, 0 <= successes <= total"
        )
    df = len(n) - 1
    if not (n > 0).all() or yes.sum() in (0, n.sum()):
        return ChiSquared(float("nan"), df, float("nan"), 0.0)
    found = stats.chi2_contingency(np.stack([yes, n - yes]), correction=False)
    return ChiSquared(
        float(found.statistic),  # pyright: ignore[reportAttributeAccessIssue]
        df,
        float(found.pvalue),  # pyright: ignore[reportAttributeAccessIssue]
        float(found.expected_freq.min()),  # pyright: ignore[reportAttributeAccessIssue]
    )


def sign_test(control: np.ndarray, treatment: np.ndarray) -> float:
    """Two-sided exact p-value that the treatment is above the control as often as below it, day by day.

    Args:
        control, treatment: (n,) values of the same days; days with a NaN or the same value in both do not count.

    Returns:
        1 if no day counts.
    """
    difference = np.asarray(treatment, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    above, below = int((difference > 0).sum()), int((difference < 0).sum())
    return float(stats.binomtest(above, above + below).pvalue) if above + below else 1.0


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless it is between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")


def t_estimate(value: float, variance: float, df: float, confidence: float) -> Estimate:
    """Two-sided t test and interval of a value with this variance; df may be infinite (the normal distribution).

    Unknown unless value and variance are finite and the variance is above zero.
    """
    if not (np.isfinite(value) and np.isfinite(variance) and variance > 0):
        return _unknown(value, confidence)
    se = float(np.sqrt(variance))
    half = _quantile(confidence, df) * se
    p_value = float(2 * stats.t.sf(abs(value) / se, df))
    return Estimate(value, se, value - half, value + half, p_value, df, confidence)


def _is_binary(arm: Sums) -> bool:
    if not arm.n:
        return True
    p = arm.means[0]
    return bool(0 <= p <= 1 and abs(arm.comoments[0, 0] / arm.n - p * (1 - p)) < 1e-9)


def _value(arm: Sums, metric: Metric) -> float:
    if not arm.n:
        return float("nan")
    if metric.kind != "ratio":
        return float(arm.means[0])
    return float(arm.means[0] / arm.means[1]) if arm.means[1] else float("nan")


def _lift(control: float, treatment: float) -> float:
    return treatment / control - 1 if control > 0 else float("nan")


def _own_gradient(arm: Sums, metric: Metric) -> np.ndarray:
    """(k,) of the unadjusted value with regard to the means."""
    gradient = np.zeros(len(arm.columns))
    if metric.kind != "ratio":
        gradient[0] = 1.0
    elif arm.means[1]:
        gradient[0] = 1 / arm.means[1]
        gradient[1] = -arm.means[0] / arm.means[1] ** 2
    else:
        gradient[:2] = np.nan
    return gradient


def _coefficients(arms: list[Sums], metric: Metric, covariances: list[np.ndarray]) -> np.ndarray:
    """(number of covariates,) that minimise the variance of the difference; 0 for covariates without variance."""
    k = len(metric.covariates)
    if not k:
        return np.empty(0)
    own = [_own_gradient(arm, metric) for arm in arms]
    of_covariates = sum(c[-k:, -k:] for c in covariances)
    with_metric = sum(c[-k:, :] @ g for c, g in zip(covariances, own, strict=True))
    scale = np.sqrt(np.diag(of_covariates))
    scale = np.where(scale > 0, scale, 1.0)
    if not np.isfinite(with_metric).all():
        return np.zeros(k)
    return np.linalg.pinv(of_covariates / np.outer(scale, scale), rcond=1e-9) @ (with_metric / scale) / scale


def _gradients(
    arms: list[Sums], metric: Metric, theta: np.ndarray
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Of the control's and of the treatment's value, each with regard to the means of both variants.

    An adjusted value moves with the other variant's covariates too, through their mean over both.
    """
    total = sum(arm.n for arm in arms)
    found: list[tuple[np.ndarray, ...]] = []
    for of in range(2):
        parts = []
        for regarding, arm in enumerate(arms):
            gradient = _own_gradient(arm, metric) if of == regarding else np.zeros(len(arm.columns))
            if len(theta):
                gradient[-len(theta) :] += theta * (arm.n / total - (of == regarding))
            parts.append(gradient)
        found.append(tuple(parts))
    return found[0], found[1]


def _quantile(confidence: float, df: float) -> float:
    return float(stats.t.isf((1 - confidence) / 2, df))


def _unknown(value: float, confidence: float) -> Estimate:
    return Estimate(value, float("nan"), -np.inf, np.inf, float("nan"), float("nan"), confidence)
