"""How good probabilities are, on people and times that the model has not seen.

- log loss: mean of -ln of the probability given to what happened; 0 is perfect, lower is better
- Brier score: mean squared difference of probability and outcome (Brier, Verification of forecasts expressed
  in terms of probability, Monthly Weather Review 78, 1950)
- AUC: probability that somebody to whom it happened has the higher score than somebody to whom it did not
- calibration error: mean over tenths of the scores, by rows, of |mean probability - share to whom it happened|
  (ECE)
- lift: share to whom it happened in the tenth with the highest scores, over that of all
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.special import ndtri
from scipy.stats import rankdata

METRICS = ("log_loss", "brier", "auc", "calibration_error", "mean_score", "lift")
DECILE_SCHEMA = pl.Schema(
    {
        "decile": pl.Int64(),
        "contacts": pl.Int64(),
        "mean_score": pl.Float64(),
        "happened": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "lift": pl.Float64(),
    }
)
_CLIP = 1e-6


def probability_metrics(outcome: ArrayLike, probability: ArrayLike) -> dict[str, float]:
    """All of `METRICS`; AUC and lift are NaN where only one outcome happened.

    Args:
        outcome: (n,) 0 or 1, n at least 1.
        probability: (n,) between 0 and 1.

    Raises:
        ValueError: nothing to judge, lengths differ, or a number is out of its range.
    """
    y, p = _checked(outcome, probability)
    clipped = np.clip(p, _CLIP, 1 - _CLIP)
    table = calibration_table(y, p)
    happened = y.sum()
    auc = lift = float("nan")
    if 0 < happened < len(y):
        auc = (rankdata(p)[y == 1].sum() - happened * (happened + 1) / 2) / (happened * (len(y) - happened))
        lift = float(table["lift"][-1])
    off = (table["mean_score"] - table["happened"]).abs() * table["contacts"]
    return {
        "log_loss": float(-np.mean(np.where(y == 1, np.log(clipped), np.log1p(-clipped)))),
        "brier": float(np.mean((p - y) ** 2)),
        "auc": float(auc),
        "calibration_error": float(off.sum() / len(y)),
        "mean_score": float(p.mean()),
        "lift": lift,
    }


def calibration_table(outcome: ArrayLike, probability: ArrayLike, *, groups: int = 10) -> pl.DataFrame:
    """Scores beside what happened, by tenths of the scores, lowest first.

    Equal scores stay together, so there may be fewer than ten groups. `low` and `high` are Wilson's 95 %
    interval of the share to whom it happened; `lift` is that share over that of all, null if it happened to
    nobody.

    Returns:
        A frame of `DECILE_SCHEMA`.
    """
    y, p = _checked(outcome, probability)
    # the rank of the middle of equal scores
    group = np.minimum(((rankdata(p) - 0.5) / len(p) * groups).astype(int), groups - 1)
    z = float(ndtri(0.975))
    n, k = pl.col("contacts").cast(pl.Float64), pl.col("events")
    middle = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * (k * (n - k) / n + z**2 / 4).sqrt()
    base = float(y.mean())
    return (
        pl.DataFrame({"decile": group + 1, "probability": p, "outcome": y})
        .group_by("decile")
        .agg(
            pl.len().cast(pl.Int64).alias("contacts"),
            pl.col("probability").mean().alias("mean_score"),
            pl.col("outcome").sum().cast(pl.Float64).alias("events"),
        )
        .sort("decile")
        .with_columns(
            (k / n).alias("happened"),
            (middle - half).clip(0, 1).alias("low"),
            (middle + half).clip(0, 1).alias("high"),
            (k / n / base if base > 0 else pl.lit(None, pl.Float64)).alias("lift"),
        )
        .select(pl.col(name).cast(kind) for name, kind in DECILE_SCHEMA.items())
    )


def compare_probabilities(outcome: ArrayLike, models: Mapping[str, ArrayLike]) -> pl.DataFrame:
    """`METRICS` of several models on the same rows: model, metric and value, a row each, in the order given."""
    rows = [
        {"model": model, "metric": metric, "value": value}
        for model, probability in models.items()
        for metric, value in probability_metrics(outcome, probability).items()
    ]
    return pl.DataFrame(rows, schema={"model": pl.String, "metric": pl.String, "value": pl.Float64})


def count_metrics(actual: ArrayLike, expected: ArrayLike) -> dict[str, float]:
    """Forecasts of counts or sums beside what came.

    Returns:
        `total_ratio`, all that was forecast over all that came (NaN if nothing came); `mean_absolute_error`;
        and `rank_correlation`, Spearman's (NaN if nothing differs).

    Raises:
        ValueError: nothing to judge, lengths differ, or a number is not finite.
    """
    y, f = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if y.shape != f.shape or y.ndim != 1 or not len(y):
        raise ValueError("actual and expected must be (n,) with n at least 1")
    if not (np.isfinite(y).all() and np.isfinite(f).all()):
        raise ValueError("actual and expected must be finite")
    correlation = float("nan")
    if np.ptp(y) > 0 and np.ptp(f) > 0:
        correlation = float(np.corrcoef(rankdata(y), rankdata(f))[0, 1])
    return {
        "total_ratio": float(f.sum() / y.sum()) if y.sum() else float("nan"),
        "mean_absolute_error": float(np.abs(f - y).mean()),
        "rank_correlation": correlation,
    }


def _checked(outcome: ArrayLike, probability: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(outcome), np.asarray(probability, dtype=np.float64)
    if y.shape != p.shape or y.ndim != 1 or not len(y):
        raise ValueError("outcome and probability must be (n,) with n at least 1")
    if not np.isin(y, (0, 1)).all() or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("outcomes are 0 or 1, probabilities between them")
    return y.astype(int), p
