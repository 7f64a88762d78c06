"""How many contacts a test needs, and what it can find with those it has.

Two-sided tests. Sources: Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions, 3rd edition 2003,
section 4 (proportions, unequal groups, no continuity correction); Chow, Shao and Wang, Sample Size Calculations in
Clinical Research, 2nd edition 2008, sections 3.2 and 3.2.3 (means, non-inferiority). Means use the noncentral t
distribution, so that small samples are right too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import optimize, stats

from ml.experiments.compare import compare
from ml.experiments.summaries import Metric, Sums

_LARGE_DF = 1_000.0
_MOST = 1e15


@dataclass(frozen=True)
class SampleSize:
    """Contacts needed.

    Args:
        control, treatment: of each variant, rounded up.
        exact: the control's, before rounding.
    """

    control: int
    treatment: int
    exact: float

    @property
    def total(self) -> int:
        """Of both variants."""
        return self.control + self.treatment


def sample_size_proportions(
    control: float, treatment: float, *, ratio: float = 1.0, alpha: float = 0.05, power: float = 0.8
) -> SampleSize:
    """To tell two proportions apart by the pooled z test.

    With k treated contacts for one of the control and P the pooled proportion,
    n = (z(1 - alpha/2) sqrt(P (1 - P) (1 + 1/k)) + z(power) sqrt(p1 (1 - p1) + p2 (1 - p2) / k))^2 / (p2 - p1)^2.

    Args:
        control, treatment: the proportions, between 0 and 1, not equal.
        ratio: treated contacts for one of the control.
        alpha: of the two-sided test.
        power: wanted.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(alpha, power, ratio)
    _check_proportions(control, treatment)
    at_null, at_truth = _proportion_deviations(control, treatment, ratio)
    z_alpha, z_power = stats.norm.isf(alpha / 2), stats.norm.ppf(power)
    n = ((z_alpha * at_null + z_power * at_truth) / (treatment - control)) ** 2
    return _size(float(n), ratio)


def power_proportions(
    control: float, treatment: float, n_control: float, *, ratio: float = 1.0, alpha: float = 0.05
) -> float:
    """Chance that the pooled z test finds the difference (in its direction).

    Args:
        n_control: contacts of the control; the others as for `sample_size_proportions`.
    """
    _check(alpha, 0.5, ratio)
    _check_proportions(control, treatment)
    at_null, at_truth = _proportion_deviations(control, treatment, ratio)
    z_alpha = stats.norm.isf(alpha / 2)
    return float(
        stats.norm.cdf((abs(treatment - control) * np.sqrt(n_control) - z_alpha * at_null) / at_truth)
    )


def sample_size_means(
    difference: float,
    sd: float,
    *,
    sd_treatment: float | None = None,
    ratio: float = 1.0,
    alpha: float = 0.05,
    power: float = 0.8,
) -> SampleSize:
    """To find a difference of means by Welch's test.

    Args:
        difference: of the means, not zero.
        sd: standard deviation of a contact's value in the control.
        sd_treatment: in the treatment; None takes the control's.
        ratio: treated contacts for one of the control.
        alpha: of the two-sided test.
        power: wanted.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(alpha, power, ratio)

    def missing(log_n: float) -> float:
        return (
            power_means(difference, sd, math.exp(log_n), sd_treatment=sd_treatment, ratio=ratio, alpha=alpha)
            - power
        )

    least = math.log(2.0 / min(ratio, 1.0))
    if missing(least) >= 0:
        return _size(math.exp(least), ratio)
    if missing(math.log(_MOST)) < 0:
        raise ValueError(f"a difference of {difference} is too small to be found by any number of contacts")
    return _size(math.exp(_root(missing, least, math.log(_MOST))), ratio)


def power_means(
    difference: float,
    sd: float,
    n_control: float,
    *,
    sd_treatment: float | None = None,
    ratio: float = 1.0,
    alpha: float = 0.05,
) -> float:
    """Chance that Welch's test finds the difference (in its direction); arguments as for `sample_size_means`."""
    _check(alpha, 0.5, ratio)
    sd_treatment = sd if sd_treatment is None else sd_treatment
    if not (sd > 0 and sd_treatment > 0 and difference != 0 and np.isfinite(difference)):
        raise ValueError("standard deviations must be above 0, and the difference not 0")
    n_treatment = n_control * ratio
    if min(n_control, n_treatment) < 2 - 1e-9:
        raise ValueError("each variant needs 2 contacts at least")
    parts = sd**2 / n_control, sd_treatment**2 / n_treatment
    df = sum(parts) ** 2 / (parts[0] ** 2 / (n_control - 1) + parts[1] ** 2 / (n_treatment - 1))
    shift = abs(difference) / math.sqrt(sum(parts))
    if df > _LARGE_DF:
        return float(stats.norm.cdf(shift - stats.norm.isf(alpha / 2)))
    return float(stats.nct.sf(stats.t.isf(alpha / 2, df), df, shift))


def unit_deviation(baseline: Sums, metric: Metric) -> float:
    """Standard deviation of a contact's contribution to a metric: to be used as `sd`.

    For a ratio it is the delta method's, of (y - r d) / mean d (Deng and others 2018); with covariates it is what is
    left after adjusting. So the planner of a test gains from CUPED what the test will.

    Args:
        baseline: sums of past contacts.
        metric: to be tested.

    Returns:
        NaN if there are fewer than two contacts, 0 if they do not vary.
    """
    found = compare(baseline, baseline, metric).absolute
    if baseline.n < 2:
        return float("nan")
    # the difference of two such variants has variance 2 sd^2 / n
    return found.se * math.sqrt(baseline.n / 2) if found.is_known else 0.0


def sample_size_from_history(
    baseline: Sums,
    metric: Metric,
    lift: float,
    *,
    ratio: float = 1.0,
    alpha: float = 0.05,
    power: float = 0.8,
) -> SampleSize:
    """To find a relative lift of any metric, from past contacts: proportion, mean, ratio, adjusted or not.

    Args:
        baseline: sums of past contacts with the metric's columns, treated as the control will be.
        lift: relative, 0.1 for 10 %; not zero.
        ratio, alpha, power: as for `sample_size_means`.

    Raises:
        ValueError: the metric's value is not above zero, or does not vary.
    """
    value = compare(baseline, baseline, metric).control_value
    sd = unit_deviation(baseline, metric)
    if not (value > 0 and sd > 0):
        raise ValueError(f"metric {metric.name}: the past contacts have no positive value that varies")
    return sample_size_means(lift * value, sd, ratio=ratio, alpha=alpha, power=power)


def detectable_difference(
    sd: float, n_control: float, *, ratio: float = 1.0, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest difference of means that so many contacts find with this power (both variants with one sd).

    Args:
        sd: see `unit_deviation`; the others as for `sample_size_means`.
    """
    _check(alpha, power, ratio)
    if not sd > 0:
        raise ValueError("the standard deviation must be above 0")

    def missing(log_difference: float) -> float:
        return power_means(sd * math.exp(log_difference), sd, n_control, ratio=ratio, alpha=alpha) - power

    # in units of the standard error, within which the answer is a small number
    unit = 0.5 * math.log(1 / n_control + 1 / (n_control * ratio))
    return sd * math.exp(_root(missing, unit - 6, unit + 6))


def sample_size_guardrail(
    rate: float, margin: float, *, ratio: float = 1.0, alpha: float = 0.05, power: float = 0.8
) -> SampleSize:
    """To show that a rate rises by less than a margin, if in truth it does not rise at all.

    n = (z(1 - alpha) + z(power))^2 p (1 - p) (1 + 1/k) / margin^2, one-sided.

    Args:
        rate: of the control.
        margin: the largest rise that is tolerated, absolute, above 0.
    """
    _check(alpha, power, ratio)
    if not (0 < rate < 1 and margin > 0):
        raise ValueError("the rate must be between 0 and 1, the margin above 0")
    z = stats.norm.isf(alpha) + stats.norm.ppf(power)
    return _size(float(z**2 * rate * (1 - rate) * (1 + 1 / ratio) / margin**2), ratio)


def _proportion_deviations(control: float, treatment: float, ratio: float) -> tuple[float, float]:
    pooled = (control + ratio * treatment) / (1 + ratio)
    at_null = math.sqrt(pooled * (1 - pooled) * (1 + 1 / ratio))
    at_truth = math.sqrt(control * (1 - control) + treatment * (1 - treatment) / ratio)
    return at_null, at_truth


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return cast(float, optimize.brentq(function, low, high, xtol=1e-12))


def _check(alpha: float, power: float, ratio: float) -> None:
    if not (0 < alpha < 1 and 0 < power < 1 and 0 < ratio < np.inf):
        raise ValueError("alpha and power must be between 0 and 1, the ratio above 0")


def _check_proportions(control: float, treatment: float) -> None:
    if not (0 <= control <= 1 and 0 <= treatment <= 1) or control == treatment:
        raise ValueError("the proportions must be two different numbers from 0 to 1")


def _size(n: float, ratio: float) -> SampleSize:
    # a hair below a whole number is that number
    return SampleSize(math.ceil(n - 1e-9), math.ceil(n * ratio - 1e-9), n)
