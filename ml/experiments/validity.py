"""Whether the experiment was one: contacts in the proportions that were planned, alike before they were exposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import gammaln, xlogy

from ml.experiments.multiple import holm
from ml.experiments.summaries import Sums


@dataclass(frozen=True)
class SampleRatio:
    """Contacts of each variant beside the plan.

    Args:
        observed, expected: shares of the variants.
        p_value: of Pearson's chi-squared, right at one look.
        anytime_p_value: right at every look; see `sample_ratio`.
        is_broken: the p-value asked for is below alpha.
    """

    observed: dict[str, float]
    expected: dict[str, float]
    p_value: float
    anytime_p_value: float
    is_broken: bool


def sample_ratio(
    counts: Mapping[str, int],
    weights: Mapping[str, float],
    *,
    alpha: float = 0.001,
    is_final: bool = False,
    concentration: float = 10_000.0,
) -> SampleRatio:
    """Check that variants have the contacts that their weights promise.

    A mismatch means that contacts were lost or doubled in a way that depends on the variant, which biases every
    metric (Fabijan and others, Diagnosing sample ratio mismatch in online controlled experiments, KDD 2019). At one
    look: Pearson's chi-squared. At every look: the martingale of a multinomial against a Dirichlet mixture around the
    planned shares t,

        Gamma(c) / Gamma(c + n) prod_i Gamma(c t_i + n_i) / Gamma(c t_i) / prod_i t_i^n_i,

    whose inverse is a p-value at all times (Lindon and Malek, Anytime-valid inference for multinomial count data,
    NeurIPS 2022).

    Args:
        counts: contacts found, of variants in `weights`; one that is left out has none.
        weights: planned, relative.
        alpha: below it the ratio is broken.
        is_final: judge by the chi-squared, which is stronger but right at one look only.
        concentration: c of the mixture: deviations of about 1 / sqrt(c) are found soonest.

    Returns:
        p-values of 1 without contacts.

    Raises:
        ValueError: a variant has no weight, a weight is not above zero, or a count is negative.
    """
    if not weights or any(not (np.isfinite(w) and w > 0) for w in weights.values()):
        raise ValueError("weights must be above 0")
    if unknown := sorted(set(counts) - set(weights)):
        raise ValueError(f"variants without a weight: {', '.join(unknown)}; there are {', '.join(weights)}")
    found = np.array([counts.get(variant, 0) for variant in weights], dtype=np.float64)
    if (found < 0).any():
        raise ValueError("a count is negative")
    shares = np.fromiter(weights.values(), dtype=np.float64)
    shares = shares / shares.sum()
    n = found.sum()
    p_value = float(stats.chisquare(found, shares * n).pvalue) if n and len(found) > 1 else 1.0
    prior = concentration * shares
    evidence = (
        gammaln(concentration)
        - gammaln(concentration + n)
        + (gammaln(prior + found) - gammaln(prior) - xlogy(found, shares)).sum()
    )
    anytime = float(np.exp(min(-evidence, 0.0)))
    return SampleRatio(
        dict(zip(weights, (found / n if n else found).tolist(), strict=True)),
        dict(zip(weights, shares.tolist(), strict=True)),
        p_value,
        anytime,
        (p_value if is_final else anytime) < alpha,
    )


@dataclass(frozen=True)
class Balance:
    """How alike the variants were before they were exposed.

    Args:
        differences: of each treatment and covariate, (treatment mean - control mean) / pooled standard deviation;
            NaN for a covariate without variance.
        p_value: that chance alone makes the covariates differ as much, the smallest over treatments (Holm).
        is_unbalanced: the p-value is below alpha: targeting was hardly random.
    """

    differences: dict[str, dict[str, float]]
    p_value: float
    is_unbalanced: bool


def covariate_balance(
    control: Sums, treatments: Mapping[str, Sums], covariates: Sequence[str], *, alpha: float = 0.001
) -> Balance:
    """Check what was known of the contacts before the exposure; categories as columns of 0 and 1.

    For each treatment all covariates are tested together, d' (S (1/n + 1/m))^-1 d being about chi-squared under
    randomisation (Hansen and Bowers, Covariate balance in simple, stratified and clustered comparative studies,
    Statistical Science 23, 2008), so that many covariates do not raise many false alarms.

    Args:
        control, treatments: sums with the covariates.
        covariates: columns.
        alpha: below it the contacts are called unbalanced.

    Returns:
        A p-value of NaN if there is nothing to compare.
    """
    differences: dict[str, dict[str, float]] = {}
    p_values: list[float] = []
    base = control.select(covariates)
    for name, sums in treatments.items():
        arm = sums.select(covariates)
        total = base.n + arm.n
        if min(base.n, arm.n) < 1 or total < 3:
            differences[name] = dict.fromkeys(covariates, float("nan"))
            p_values.append(float("nan"))
            continue
        apart = arm.means - base.means
        pooled = (base.comoments + arm.comoments) / (total - 2)
        sd = np.sqrt(np.diag(pooled))
        with np.errstate(invalid="ignore", divide="ignore"):
            # constant in each variant, but not the same: infinitely far apart
            standardised = np.where((sd > 0) | (apart != 0), apart / sd, np.nan)
        differences[name] = dict(zip(covariates, standardised.tolist(), strict=True))
        # under the hypothesis all contacts are alike: the variance around the common mean
        spread = (base + arm).comoments / (total - 1)
        scale = np.sqrt(np.diag(spread))
        varies = scale > 0
        if not varies.any():
            p_values.append(float("nan"))
            continue
        correlation = spread[np.ix_(varies, varies)] / np.outer(scale[varies], scale[varies])
        z = apart[varies] / scale[varies] / np.sqrt(1 / base.n + 1 / arm.n)
        rank = int(np.linalg.matrix_rank(correlation, tol=1e-9, hermitian=True))
        statistic = float(z @ np.linalg.pinv(correlation, rcond=1e-9, hermitian=True) @ z)
        p_values.append(float(stats.chi2.sf(statistic, rank)))
    adjusted = holm(p_values)
    p_value = float(np.nanmin(adjusted)) if np.isfinite(adjusted).any() else float("nan")
    return Balance(differences, p_value, p_value < alpha)
