"""Offline quality of recommenders: learnt from the past, judged on the future."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, cast

import numpy as np
import polars as pl
from sklearn.base import clone

from ml.dataset import InteractionMatrix, validated_interactions
from ml.metrics import METRICS, bootstrap_mean, coverage, ranking_metrics
from ml.recommend.base import Recommender
from ml.recommend.hybrid import HybridRecommender
from ml.recommend.rules import Rules
from ml.splits import TemporalSplit, temporal_folds, temporal_split

EVALUATION_SCHEMA = pl.Schema(
    {
        "estimator": pl.String(),
        "metric": pl.String(),
        "value": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "gain": pl.Float64(),
        "gain_low": pl.Float64(),
        "gain_high": pl.Float64(),
        "contacts": pl.Int64(),
        "cutoff": pl.Datetime("ms", "UTC"),
        "seconds": pl.Float64(),
    }
)

CURVE_SCHEMA = pl.Schema({"estimator": pl.String(), "k": pl.Int64(), "ndcg": pl.Float64()})


@dataclass(frozen=True)
class Judgement:
    """How estimators did on one split.

    Attributes:
        metrics: rows of `EVALUATION_SCHEMA`.
        curve: rows of `CURVE_SCHEMA`: mean NDCG of lists of length 1 to k, if asked for.
        ndcg: from estimators to (n_judged,) NDCG@k of each contact judged, contacts in the same order.
        weights: from hybrids to the weights that they learnt from the train part.
    """

    metrics: pl.DataFrame
    curve: pl.DataFrame
    ndcg: dict[str, np.ndarray]
    weights: dict[str, list[float]]

    def mean(self, estimator: str) -> float | None:
        """Mean NDCG@k, None if nobody could be judged."""
        values = self.ndcg[estimator]
        return float(values.mean()) if len(values) else None


def judge_on_split(
    split: TemporalSplit,
    estimators: Mapping[str, Recommender],
    *,
    k: int = 10,
    rules: Rules | None = None,
    catalogue: pl.DataFrame | None = None,
    groups: pl.DataFrame | None = None,
    max_judged: int = 20_000,
    with_curve: bool = False,
    seed: int = 0,
) -> Judgement:
    """Fit each estimator on what came before a moment, and judge its ranking by what was bought after it.

    Relevant is what a contact bought in the test part, less what `rules` keep off its list for having been bought
    before. Judged are contacts who bought before the moment and something relevant after it: for all others every
    estimator can only name what is popular. Of the catalogue only products sold before the moment are known: the
    others may not have been there yet.

    Args:
        split: train and test, validated interactions.
        estimators: from names to unfitted estimators; the first is the one to compare with. They are cloned.
        k: the length of the ranking.
        rules: as for `recommend`.
        catalogue: as for `fit`.
        groups: as for `fit`.
        max_judged: judge a sample of so many contacts.
        with_curve: whether to measure shorter lists too.
        seed: of the sample and of the bootstrap.

    Raises:
        ValueError: no estimators, or an argument that `fit` or `recommend` refuses.
    """
    if not estimators:
        raise ValueError("no estimators to judge")
    rules = rules or Rules()
    train = split.train
    relevant = (
        split.test.select("contact_id", "product_id")
        .unique()
        .join(train.select("contact_id").unique(), on="contact_id", how="semi")
    )
    relevant = rules.unmasked(relevant, train)
    judged = relevant["contact_id"].unique().sort()
    if judged.len() > max_judged:
        judged = judged.sample(max_judged, seed=seed).sort()
        relevant = relevant.filter(pl.col("contact_id").is_in(judged.implode()))
    products = train["product_id"].unique()
    if catalogue is not None:
        catalogue = catalogue.filter(pl.col("product_id").cast(pl.String).is_in(products.implode()))
    if rules.candidates is not None:
        products = products.filter(products.is_in(list(rules.candidates)))
    encoding = perf_counter()
    matrix = InteractionMatrix.from_interactions(train)
    encoding = perf_counter() - encoding

    baseline: pl.DataFrame | None = None
    baseline_coverage = 0.0
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    ndcg: dict[str, np.ndarray] = {}
    known: list[Recommender] = []
    weights: dict[str, list[float]] = {}
    for name, estimator in estimators.items():
        started = perf_counter()
        fitted = cast(Recommender, clone(estimator))
        if isinstance(fitted, HybridRecommender):
            fitted.reuse(known)
        fitted.fit(matrix, catalogue=catalogue, groups=groups)
        ranked = fitted.recommend(judged, k, rules=rules)
        seconds = encoding + perf_counter() - started
        known.append(fitted)
        if isinstance(fitted, HybridRecommender):
            weights[name] = fitted.weights_.tolist()
        metrics = ranking_metrics(ranked, relevant, k)
        covered = coverage(ranked, products.to_list(), k)
        if baseline is None:
            baseline, baseline_coverage = metrics, covered
        ndcg[name] = metrics["ndcg"].to_numpy()
        for length in range(1, k + 1) if with_curve else ():
            shorter = metrics if length == k else ranking_metrics(ranked, relevant, length)
            curves.append({"estimator": name, "k": length, "ndcg": shorter["ndcg"].mean()})
        common = {
            "estimator": name,
            "contacts": judged.len(),
            "cutoff": split.cutoff,
            "seconds": seconds,
        }
        for metric in METRICS:
            mean = bootstrap_mean(metrics[metric].to_numpy(), seed=seed)
            gain = bootstrap_mean((metrics[metric] - baseline[metric]).to_numpy(), seed=seed)
            rows.append(
                common
                | {"metric": f"{metric}@{k}", "value": mean.mean, "low": mean.low, "high": mean.high}
                | {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
            )
        rows.append(
            common
            | {
                "metric": f"coverage@{k}",
                "value": covered if judged.len() else None,
                "gain": covered - baseline_coverage,
            }
        )
    frame = pl.DataFrame(rows, schema=EVALUATION_SCHEMA).with_columns(pl.selectors.float().fill_nan(None))
    return Judgement(frame, pl.DataFrame(curves, schema=CURVE_SCHEMA), ndcg, weights)


def evaluate_on_temporal_split(
    interactions: pl.DataFrame,
    estimators: Mapping[str, Recommender],
    *,
    horizon: timedelta = timedelta(days=28),
    cutoff: datetime | None = None,
    k: int = 10,
    rules: Rules | None = None,
    catalogue: pl.DataFrame | None = None,
    groups: pl.DataFrame | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """`judge_on_split` at a moment.

    Args:
        interactions: see `ml.dataset`.
        estimators: see `judge_on_split`.
        horizon: how long the future lasts.
        cutoff: the moment; left out, one horizon before the newest interaction.
        k: see `judge_on_split`, as are the others.
        rules: what may be recommended.
        catalogue: what products are like.
        groups: what contacts belong to.
        seed: of the bootstrap.

    Returns:
        A frame of `EVALUATION_SCHEMA`, a row an estimator and metric (`ndcg@10` ...): mean over contacts with
        its 95 % bootstrap interval; the gain over the first estimator, its interval from differences of the
        same contacts; how many contacts were judged; seconds of fitting and scoring. Coverage has no
        interval. If the split leaves nobody to judge, `contacts` is 0 and the values are null.

    Raises:
        ValueError: no estimators, or an argument that `ml.splits` or `recommend` refuses.
    """
    interactions = validated_interactions(interactions)
    split = _split(interactions, cutoff, horizon)
    return judge_on_split(
        split, estimators, k=k, rules=rules, catalogue=catalogue, groups=groups, seed=seed
    ).metrics


def _split(interactions: pl.DataFrame, cutoff: datetime | None, horizon: timedelta) -> TemporalSplit:
    if cutoff is None:
        folds = temporal_folds(interactions, horizon=horizon)
        if folds:
            return folds[-1]
        newest = interactions["ordered_at"].max() if interactions.height else None
        cutoff = newest if isinstance(newest, datetime) else datetime.fromtimestamp(0, UTC)
    return temporal_split(interactions, cutoff=cutoff, horizon=horizon)
