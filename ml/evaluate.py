"""Offline quality of recommenders: learnt from the past, judged on the future."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any, cast

import polars as pl
from sklearn.base import clone

from ml.dataset import validated_interactions
from ml.metrics import METRICS, bootstrap_mean, coverage, ranking_metrics
from ml.recommend.base import Recommender
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


def evaluate_on_temporal_split(
    interactions: pl.DataFrame,
    estimators: Mapping[str, Recommender],
    *,
    horizon: timedelta = timedelta(days=28),
    cutoff: datetime | None = None,
    k: int = 10,
    exclude_bought: bool = True,
    candidates: Collection[str] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Fit each estimator on what came before a moment, and judge its ranking by what was bought after it.

    Relevant is what a contact bought within the horizon; with `exclude_bought`, less what it had bought
    before, since that is not recommended. Judged are contacts who bought before the moment and something
    relevant after it: for all others every estimator can only name what is popular.

    Args:
        interactions: see `ml.dataset`.
        estimators: from names to unfitted estimators; the first is the one to compare with. They are cloned.
        horizon: how long the future lasts.
        cutoff: the moment; left out, one horizon before the newest interaction.
        k: the length of the ranking.
        exclude_bought: as for `recommend`.
        candidates: as for `recommend`.
        seed: of the bootstrap.

    Returns:
        A frame of `EVALUATION_SCHEMA`, a row an estimator and metric (`ndcg@10` ...): mean over contacts with
        its 95 % bootstrap interval; the gain over the first estimator, its interval from differences of the
        same contacts; how many contacts were judged; seconds of fitting and scoring. Coverage has no
        interval. If the split leaves nobody to judge, `contacts` is 0 and the values are null.

    Raises:
        ValueError: no estimators, or an argument that `ml.splits` or `recommend` refuses.
    """
    if not estimators:
        raise ValueError("no estimators to judge")
    interactions = validated_interactions(interactions)
    split = _split(interactions, cutoff, horizon)
    train = split.train
    relevant = (
        split.test.select("contact_id", "product_id")
        .unique()
        .join(train.select("contact_id").unique(), on="contact_id", how="semi")
    )
    if exclude_bought:
        relevant = relevant.join(train, on=["contact_id", "product_id"], how="anti")
    if candidates is not None:
        relevant = relevant.filter(pl.col("product_id").is_in(list(candidates)))
    judged = relevant["contact_id"].unique().sort()
    products = train["product_id"].unique()
    if candidates is not None:
        products = products.filter(products.is_in(list(candidates)))

    baseline: pl.DataFrame | None = None
    baseline_coverage = 0.0
    rows: list[dict[str, Any]] = []
    for name, estimator in estimators.items():
        started = perf_counter()
        fitted = cast(Recommender, clone(estimator)).fit(train)
        ranked = fitted.recommend(judged, k, exclude_bought=exclude_bought, candidates=candidates)
        seconds = perf_counter() - started
        metrics = ranking_metrics(ranked, relevant, k)
        covered = coverage(ranked, products.to_list(), k)
        if baseline is None:
            baseline, baseline_coverage = metrics, covered
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
    return pl.DataFrame(rows, schema=EVALUATION_SCHEMA).with_columns(pl.selectors.float().fill_nan(None))


def _split(interactions: pl.DataFrame, cutoff: datetime | None, horizon: timedelta) -> TemporalSplit:
    if cutoff is None:
        folds = temporal_folds(interactions, horizon=horizon)
        if folds:
            return folds[-1]
        newest = interactions["ordered_at"].max() if interactions.height else None
        cutoff = newest if isinstance(newest, datetime) else datetime.fromtimestamp(0).astimezone()
    return temporal_split(interactions, cutoff=cutoff, horizon=horizon)
