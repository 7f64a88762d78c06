"""How good ranked recommendations are, a contact at a time.

Notation: for a contact, R is the set of relevant products, r_i is 1 if the product at rank i is in R, else 0.

- precision@k = sum_{i<=k} r_i / k
- recall@k = sum_{i<=k} r_i / |R|
- hit rate@k = 1 if any r_i with i <= k is 1, else 0
- NDCG@k = sum_{i<=k} r_i / log2(i + 1), divided by the same sum of an ideal ranking, sum_{i<=min(k, |R|)}
  1 / log2(i + 1) (Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4),
  2002, with binary gains)
- average precision@k = sum_{i<=k} r_i precision@i, divided by min(k, |R|)
- coverage@k = distinct products recommended to anybody within rank k, divided by the products there are
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.special import ndtri

METRICS = ("ndcg", "recall", "precision", "hit_rate", "average_precision")


def ranking_metrics(recommendations: pl.DataFrame, relevant: pl.DataFrame, k: int) -> pl.DataFrame:
    """All metrics of each contact who has something relevant.

    Args:
        recommendations: contact_id, rank (1 is best, a rank once a contact) and product_id.
        relevant: contact_id and product_id; a pair written twice counts once.
        k: ranks beyond it do not count.

    Returns:
        contact_id and a Float64 column for each of `METRICS`, in order of contact_id. A contact without
        recommendations has 0 in all.

    Raises:
        ValueError: k is below 1, or a contact is recommended a product twice.
    """
    if k < 1:
        raise ValueError("k must be at least 1")
    top = recommendations.filter(pl.col("rank") <= k).select("contact_id", "rank", "product_id")
    if top.select("contact_id", "product_id").is_duplicated().any():
        raise ValueError("a contact is recommended the same product twice")
    relevant = relevant.select("contact_id", "product_id").unique()
    sizes = relevant.group_by("contact_id").len("size")
    hits = top.join(relevant, on=["contact_id", "product_id"], how="semi").sort("contact_id", "rank")
    # the position among the contact's hits over the rank is the precision at that rank
    position = pl.int_range(1, pl.len() + 1).over("contact_id")
    sums = (
        hits.with_columns(
            gain=1.0 / (pl.col("rank") + 1).cast(pl.Float64).log(2),
            precision_here=position / pl.col("rank"),
        )
        .group_by("contact_id")
        .agg(pl.len().alias("hits"), pl.col("gain").sum(), pl.col("precision_here").sum())
    )
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))
    ideals = pl.DataFrame({"best": np.arange(1, k + 1, dtype=np.int64), "ideal": ideal})
    return (
        sizes.join(sums, on="contact_id", how="left")
        .with_columns(
            pl.col("hits", "gain", "precision_here").fill_null(0),
            best=pl.min_horizontal(pl.col("size"), pl.lit(k)).cast(pl.Int64),
        )
        .join(ideals, on="best")
        .select(
            "contact_id",
            (pl.col("gain") / pl.col("ideal")).alias("ndcg"),
            (pl.col("hits") / pl.col("size")).alias("recall"),
            (pl.col("hits") / k).alias("precision"),
            (pl.col("hits") > 0).cast(pl.Float64).alias("hit_rate"),
            (pl.col("precision_here") / pl.col("best")).alias("average_precision"),
        )
        .sort("contact_id")
    )


def coverage(recommendations: pl.DataFrame, product_ids: Sequence[str], k: int) -> float:
    """Share of the products that are recommended to anybody within rank k; 0 if there are no products."""
    products = set(product_ids)
    if not products:
        return 0.0
    shown = set(recommendations.filter(pl.col("rank") <= k)["product_id"].unique())
    return len(shown & products) / len(products)


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: np.ndarray, *, confidence: float = 0.95, replicates: int = 1_000, seed: int = 0
) -> Interval:
    """The mean of independent values with a percentile bootstrap interval.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. Above 20,000 values the normal
    approximation is used, from which the bootstrap then does not differ.

    Args:
        values: (n,) one value a contact. NaN is not allowed.
        confidence: of the interval, between 0 and 1.
        replicates: resamples.
        seed: of the resampling.

    Returns:
        NaN in all three if there are no values.

    Raises:
        ValueError: a value is NaN, or an argument is out of range.
    """
    if not 0 < confidence < 1 or replicates < 1:
        raise ValueError("confidence must be between 0 and 1, replicates at least 1")
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("a value is NaN")
    n = len(values)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(values.mean())
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    if n > 20_000:
        half = float(ndtri(tails[1])) * float(values.std(ddof=1)) / np.sqrt(n)
        return Interval(mean, mean - half, mean + half)
    random = np.random.default_rng(seed)
    means = np.empty(replicates)
    for first in range(0, replicates, 100):
        count = min(100, replicates - first)
        means[first : first + count] = values[random.integers(0, n, (count, n))].mean(axis=1)
    low, high = np.quantile(means, tails)
    return Interval(mean, float(low), float(high))
