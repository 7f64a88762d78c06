"""Intervals that hold at all times at once: look every day, stop when you like.

A confidence sequence contains the truth at all sample sizes together with the stated confidence, so that stopping
when it leaves zero out keeps the promised error. Each is the set of values at which a nonnegative martingale with
start 1 is below 1 / alpha (Ville's inequality).

- Normal mixture, for any estimate that is asymptotically normal (means, proportions, ratios, lifts, adjusted or
  not): Robbins, Statistical methods related to the law of the iterated logarithm, Annals of Mathematical Statistics
  41, 1970; Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory and asymptotic
  confidence sequences, Annals of Statistics 52, 2024. As any use of the central limit theorem it needs a start: do not
  look before some hundred contacts and a hundred conversions a variant.
- Beta-binomial mixture, exact for proportions at every sample size: Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon,
  Time-uniform, nonparametric, nonasymptotic confidence sequences, Annals of Statistics 49, 2021.
- The same over the conversions alone, exact for the ratio of two rates: if contacts are divided at random, who
  converts next comes from the treatment with a probability that depends on the ratio of the rates only (Lindon and
  Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, lambertw, xlog1py, xlogy

from ml.experiments.compare import Comparison, Estimate, check_confidence
from ml.experiments.summaries import Sums

MINIMUM_CONTACTS = 500
"""Of each variant, before an asymptotic sequence is looked at."""

MINIMUM_CONVERSIONS = 100
"""Likewise contacts of each variant who did and who did not, for proportions."""


def mixture_scale(planned_se: ArrayLike, confidence: float = 0.95) -> np.ndarray:
    """The scale of the normal mixture that makes the sequence tightest where the standard error is `planned_se`.

    With k the square of scale over planned_se, the width there is least if k + 1 = -W(-alpha^2 / e), W being
    Lambert's function's lower branch (Waudby-Smith and others 2024, appendix; Howard and others 2021, section 3.5).
    """
    check_confidence(confidence)
    k = -float(lambertw(-((1 - confidence) ** 2) / np.e, k=-1).real) - 1
    return np.asarray(planned_se, dtype=np.float64) * np.sqrt(k)


def normal_mixture_interval(
    value: ArrayLike, se: ArrayLike, scale: ArrayLike, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the asymptotic confidence sequence, at one or many looks.

    half width = se sqrt((se^2 + scale^2) / scale^2 log((se^2 + scale^2) / (se^2 alpha^2)))

    Args:
        value, se: estimates and their standard errors, all of one shape.
        scale: of the mixture, fixed beforehand; see `mixture_scale`.
        confidence: over all looks together.

    Returns:
        Lower and upper ends; infinite where the standard error is not known or zero.
    """
    check_confidence(confidence)
    value, se, scale = (np.asarray(x, dtype=np.float64) for x in (value, se, scale))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (se**2 + scale**2) / se**2
        half = se * np.sqrt(ratio / (ratio - 1) * (np.log(ratio) - 2 * np.log(1 - confidence)))
        half = np.where((se > 0) & np.isfinite(half) & np.isfinite(value), half, np.inf)
        centre = np.where(np.isfinite(value), value, 0.0)
        return centre - half, centre + half


def normal_mixture_p_value(value: ArrayLike, se: ArrayLike, scale: ArrayLike) -> np.ndarray:
    """The p-value, valid at every look, of the same mixture: the inverse of the martingale at zero effect, at most 1.

    NaN where the standard error is not known or zero.
    """
    value, se, scale = (np.asarray(x, dtype=np.float64) for x in (value, se, scale))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = (se**2 + scale**2) / se**2
        log_evidence = -0.5 * np.log(ratio) + 0.5 * (value / se) ** 2 * (1 - 1 / ratio)
        return np.where(se > 0, np.exp(np.minimum(-log_evidence, 0.0)), np.nan)


def sequence_of(estimate: Estimate, *, information: float) -> Estimate:
    """An estimate as it may be looked at before the planned end.

    Args:
        estimate: an effect at a look.
        information: contacts so far over the contacts planned, above 0. The sequence is tightest at 1, a few per cent
            wider at a quarter or at four times the plan, and valid everywhere.

    Returns:
        The same effect with the ends of the confidence sequence and the p-value that holds at all looks.

    Raises:
        ValueError: information is not above 0.
    """
    if not information > 0:
        raise ValueError(f"information must be above 0, not {information}")
    if not estimate.is_known:
        return estimate
    scale = mixture_scale(estimate.se * np.sqrt(information), estimate.confidence)
    low, high = normal_mixture_interval(estimate.value, estimate.se, scale, estimate.confidence)
    p_value = normal_mixture_p_value(estimate.value, estimate.se, scale)
    return replace(estimate, low=float(low), high=float(high), p_value=float(p_value), df=np.inf)


def bernoulli_log_evidence(
    successes: ArrayLike, trials: ArrayLike, p: ArrayLike, prior: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """Logarithm of the beta-binomial mixture martingale against a success probability p.

    log B(a + s, b + n - s) - log B(a, b) - s log p - (n - s) log(1 - p)

    Args:
        successes, trials: s and n, at one or many looks.
        p: the hypothesis.
        prior: a and b of the mixing Beta distribution.
    """
    s, n, p = (np.asarray(x, dtype=np.float64) for x in (successes, trials, p))
    a, b = prior
    return betaln(a + s, b + n - s) - betaln(a, b) - xlogy(s, p) - xlog1py(n - s, -p)


def bernoulli_interval(
    successes: ArrayLike,
    trials: ArrayLike,
    confidence: float = 0.95,
    prior: tuple[float, float] = (0.5, 0.5),
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the exact confidence sequence of a proportion, at one or many looks.

    Args:
        successes, trials: of one shape.
        confidence: over all looks together.
        prior: of the mixture; whatever it is, the sequence is valid. A prior near the rate makes it tighter.

    Raises:
        ValueError: counts cannot be.
    """
    check_confidence(confidence)
    s, n = (np.asarray(x, dtype=np.float64) for x in (successes, trials))
    if (s < 0).any() or (s > n).any():
        raise ValueError("successes must be between 0 and trials")
    threshold = -np.log(1 - confidence)
    with np.errstate(invalid="ignore"):
        peak = np.where(n > 0, s / np.maximum(n, 1), 0.5)

    def end(outer: float) -> np.ndarray:
        # the evidence grows from the observed rate outwards: bisect between it and the end of [0, 1]
        inside, outside = peak.copy(), np.full_like(peak, outer)
        for _ in range(60):
            middle = (inside + outside) / 2
            is_in = bernoulli_log_evidence(s, n, middle, prior) < threshold
            inside, outside = np.where(is_in, middle, inside), np.where(is_in, outside, middle)
        # the outer side of the last bracket, so that rounding never costs coverage
        return outside

    return end(0.0), end(1.0)


def rate_ratio_sequence(
    control_conversions: ArrayLike,
    treatment_conversions: ArrayLike,
    *,
    treatment_share: float,
    confidence: float = 0.95,
    prior_conversions: float = 20.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact confidence sequence of the relative lift of a rate, from conversions alone.

    Right however rare conversions are, and however the rates move over time as long as their ratio does not. At high
    rates it is wider than need be, by about 1 / sqrt(1 - rate).

    Args:
        control_conversions, treatment_conversions: so far, at one or many looks.
        treatment_share: treatment's weight over the sum of both weights, as assigned (not as found).
        confidence: over all looks together.
        prior_conversions: weight of the mixture, which is centred on no lift. Whatever it is, the sequence is valid;
            an eighth of the conversions that are expected is best, and four times too few or too many hardly matters.

    Returns:
        Lower and upper ends of treatment / control - 1, and the p-value of no lift, valid at every look.

    Raises:
        ValueError: the share is not between 0 and 1, the weight not above 0, or counts are negative.
    """
    if not (0 < treatment_share < 1 and prior_conversions > 0):
        raise ValueError(
            f"treatment_share must be between 0 and 1, not {treatment_share}, and prior_conversions above 0"
        )
    control = np.asarray(control_conversions, dtype=np.float64)
    treatment = np.asarray(treatment_conversions, dtype=np.float64)
    centred = (prior_conversions * treatment_share, prior_conversions * (1 - treatment_share))
    low, high = bernoulli_interval(treatment, control + treatment, confidence, centred)
    odds = (1 - treatment_share) / treatment_share
    with np.errstate(divide="ignore"):
        ends = [end / (1 - end) * odds - 1 for end in (low, high)]
    log_evidence = bernoulli_log_evidence(treatment, control + treatment, treatment_share, centred)
    return ends[0], ends[1], np.exp(np.minimum(-log_evidence, 0.0))


def early_estimates(
    control: Sums, treatment: Sums, comparison: Comparison, *, information: float, treatment_share: float
) -> tuple[Estimate, Estimate, float]:
    """What may be believed of a comparison before the planned end: difference, lift, and the p-value of both.

    Asymptotic sequences, once there are `MINIMUM_CONTACTS` and `MINIMUM_CONVERSIONS`; before that they are without end.
    For proportions that are not adjusted the exact sequence over conversions joins them from the first conversion on:
    each has half of alpha, and whichever says more is used.

    Args:
        control, treatment: sums with the metric's columns first.
        comparison: of both; its confidence is kept.
        information: contacts so far over the contacts planned, of both variants.
        treatment_share: treatment's weight over the sum of both weights, as assigned.
    """
    is_plain = comparison.metric.kind == "proportion" and not comparison.metric.covariates
    confidence = comparison.absolute.confidence
    counts = (control.n, treatment.n)
    has_started = min(counts) >= MINIMUM_CONTACTS
    column = comparison.metric.columns[0]
    if comparison.metric.kind == "proportion":
        cells = [control.total(column), treatment.total(column)]
        cells += [n - yes for n, yes in zip(counts, cells, strict=True)]
        has_started = has_started and min(cells) >= MINIMUM_CONVERSIONS
    half = 1 - (1 - confidence) / 2 if is_plain else confidence
    unknown = {"low": -np.inf, "high": np.inf, "p_value": float("nan"), "confidence": confidence}
    estimates: list[Estimate] = []
    for estimate in (comparison.absolute, comparison.relative):
        if has_started and estimate.is_known:
            shown = sequence_of(replace(estimate, confidence=half), information=information)
            estimates.append(replace(shown, confidence=confidence))
        else:
            estimates.append(replace(estimate, **unknown))
    absolute, relative = estimates
    if not is_plain:
        return absolute, relative, absolute.p_value
    lows, highs, p_values = rate_ratio_sequence(
        round(control.total(column)),
        round(treatment.total(column)),
        treatment_share=treatment_share,
        confidence=half,
    )
    # a union of two tests at half alpha
    p_value = min(1.0, 2 * float(np.nanmin([absolute.p_value, float(p_values)])))
    low, high = max(relative.low, float(lows)), min(relative.high, float(highs))
    if low > high:
        low, high = float(lows), float(highs)
    return replace(absolute, p_value=p_value), replace(relative, low=low, high=high, p_value=p_value), p_value
