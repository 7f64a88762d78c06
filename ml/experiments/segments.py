"""Whether the effect differs between segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import stats

from ml.experiments.compare import Estimate, compare, t_estimate
from ml.experiments.multiple import benjamini_hochberg, holm
from ml.experiments.summaries import Metric, Sums

SEGMENT_SCHEMA = pl.Schema(
    {
        "segment": pl.String(),
        "control_contacts": pl.Int64(),
        "treatment_contacts": pl.Int64(),
        "effect": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "p_value": pl.Float64(),
        "p_adjusted": pl.Float64(),
        "difference": pl.Float64(),
        "difference_p_value": pl.Float64(),
        "difference_p_adjusted": pl.Float64(),
    }
)
"""Of `SegmentEffects.frame`: effect in each segment with its own interval; p_adjusted by Holm over segments; the
difference from the effect in all other segments together, p_adjusted by Benjamini and Hochberg."""


@dataclass(frozen=True)
class SegmentEffects:
    """Effects by segment.

    Args:
        frame: of `SEGMENT_SCHEMA`, in order of the segments; null where the data cannot say.
        combined: the mean effect, segments weighted by their precision. Robust against a mix of segments that differs
            between variants or moves over time.
        heterogeneity_p_value: of Cochran's Q, that chance alone makes the effects differ as much; NaN if fewer than
            two segments say anything.
        i_squared: share of the variation between segments that is more than chance (Higgins and Thompson 2002).
        is_heterogeneous: the p-value is below alpha. Only then should single segments be talked about.
    """

    frame: pl.DataFrame
    combined: Estimate
    heterogeneity_p_value: float
    i_squared: float
    is_heterogeneous: bool


def segment_effects(
    segments: Mapping[str, tuple[Sums, Sums]],
    metric: Metric,
    *,
    is_relative: bool = False,
    confidence: float = 0.95,
) -> SegmentEffects:
    """Effect in each segment, corrected for how many there are, and a test that they are all the same.

    Q = sum w (effect - combined)^2 with w = 1 / se^2 is about chi-squared with k - 1 degrees of freedom if they are
    (Cochran, The combination of estimates from different experiments, Biometrics 10, 1954). Segments must be known
    before the exposure, and not overlap.

    Args:
        segments: of each segment, the control's and the treatment's sums.
        metric: to compare.
        is_relative: compare lifts rather than differences.
        confidence: of the intervals; alpha is 1 - confidence.
    """
    alpha = 1 - confidence
    names = sorted(segments)
    found: list[Estimate] = []
    for name in names:
        comparison = compare(*segments[name], metric, confidence=confidence, lift_interval="delta")
        found.append(comparison.relative if is_relative else comparison.absolute)
    value = np.array([e.value for e in found])
    se = np.array([e.se for e in found])
    is_known = np.array([e.is_known for e in found], dtype=bool)
    weight = np.where(is_known, 1 / np.where(is_known, se, 1.0) ** 2, 0.0)
    total = weight.sum()
    known_value = np.where(is_known, value, 0.0)
    mean = float(weight @ known_value / total) if total else float("nan")
    combined = t_estimate(mean, 1 / total if total else float("nan"), np.inf, confidence)
    q = float(weight @ (known_value - mean) ** 2) if total else 0.0
    df = int(is_known.sum()) - 1
    heterogeneity = float(stats.chi2.sf(q, df)) if df > 0 else float("nan")
    # each segment against the others: their combined effect without it
    rest_weight = total - weight
    with np.errstate(invalid="ignore", divide="ignore"):
        rest = (weight @ known_value - weight * known_value) / rest_weight
        can_differ = is_known & (df > 0)
        difference = np.where(can_differ, value - rest, np.nan)
        z = difference / np.sqrt(se**2 + 1 / rest_weight)
    difference_p = np.where(can_differ, 2 * stats.norm.sf(np.abs(z)), np.nan)
    p_value = np.array([e.p_value for e in found])
    frame = pl.DataFrame(
        {
            "segment": names,
            "control_contacts": [segments[name][0].n for name in names],
            "treatment_contacts": [segments[name][1].n for name in names],
            "effect": value,
            "low": [e.low for e in found],
            "high": [e.high for e in found],
            "p_value": p_value,
            "p_adjusted": holm(p_value),
            "difference": difference,
            "difference_p_value": difference_p,
            "difference_p_adjusted": benjamini_hochberg(difference_p),
        },
        schema=SEGMENT_SCHEMA,
    ).with_columns(pl.selectors.float().fill_nan(None))
    return SegmentEffects(
        frame,
        combined,
        heterogeneity,
        max(0.0, 1 - df / q) if q > 0 and df > 0 else 0.0,
        heterogeneity < alpha,
    )
