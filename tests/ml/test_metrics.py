from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from ml.metrics import METRICS, bootstrap_mean, coverage, ranking_metrics
from ml.splits import temporal_folds, temporal_split


def naive(ranked: list[str], relevant: set[str], k: int) -> dict[str, float]:
    hits = [product in relevant for product in ranked[:k]]
    gains = sum(1 / math.log2(i + 2) for i, hit in enumerate(hits) if hit)
    best = sum(1 / math.log2(i + 2) for i in range(min(k, len(relevant))))
    precisions = sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit)
    return {
        "ndcg": gains / best,
        "recall": sum(hits) / len(relevant),
        "precision": sum(hits) / k,
        "hit_rate": float(any(hits)),
        "average_precision": precisions / min(k, len(relevant)),
    }


PRODUCTS = st.sampled_from("abcdefghij")


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.integers(1, 5),
        st.tuples(st.lists(PRODUCTS, unique=True), st.sets(PRODUCTS, min_size=1)),
        min_size=1,
    ),
    st.integers(1, 12),
)
def test_metrics_are_those_of_a_naive_implementation(contacts, k):
    recommendations = pl.DataFrame(
        [(c, rank, p) for c, (ranked, _) in contacts.items() for rank, p in enumerate(ranked, 1)],
        schema={"contact_id": pl.Int64, "rank": pl.UInt16, "product_id": pl.String},
        orient="row",
    )
    relevant = pl.DataFrame(
        [(c, p) for c, (_, wanted) in contacts.items() for p in sorted(wanted) * 2],
        schema={"contact_id": pl.Int64, "product_id": pl.String},
        orient="row",
    )
    found = ranking_metrics(recommendations, relevant, k)
    assert found["contact_id"].to_list() == sorted(contacts)
    for row in found.iter_rows(named=True):
        expected = naive(*contacts[row["contact_id"]], k)
        assert {name: row[name] for name in METRICS} == pytest.approx(expected)
        assert all(0 <= row[name] <= 1 + 1e-12 for name in METRICS)
        if row["ndcg"] > 0:
            assert row["hit_rate"] == 1


def test_ndcg_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    truth = rng.random((20, 30)) < 0.2
    truth[:, 0] = True
    scores = rng.permuted(np.tile(np.arange(30.0), (20, 1)), axis=1)
    order = np.argsort(-scores, axis=1)
    recommendations = pl.DataFrame(
        {
            "contact_id": np.repeat(np.arange(20), 30),
            "rank": np.tile(np.arange(1, 31), 20),
            "product_id": order.ravel().astype(str),
        }
    )
    rows, columns = np.nonzero(truth)
    relevant = pl.DataFrame({"contact_id": rows, "product_id": columns.astype(str)})
    found = ranking_metrics(recommendations, relevant, 10)["ndcg"].mean()
    assert found == pytest.approx(ndcg_score(truth, scores, k=10))


def test_nothing_recommended_and_nothing_relevant():
    nothing = pl.DataFrame(schema={"contact_id": pl.Int64, "rank": pl.UInt16, "product_id": pl.String})
    relevant = pl.DataFrame({"contact_id": [1], "product_id": ["a"]})
    assert ranking_metrics(nothing, relevant, 5).row(0) == (1, 0, 0, 0, 0, 0)
    assert ranking_metrics(nothing, relevant.clear(), 5).height == 0
    twice = pl.DataFrame({"contact_id": [1, 1], "rank": [1, 2], "product_id": ["a", "a"]})
    with pytest.raises(ValueError, match="same product twice"):
        ranking_metrics(twice, relevant, 5)
    with pytest.raises(ValueError, match="k must be"):
        ranking_metrics(nothing, relevant, 0)


def test_coverage():
    frame = pl.DataFrame({"contact_id": [1, 1, 2], "rank": [1, 2, 1], "product_id": ["a", "b", "a"]})
    assert coverage(frame, ["a", "b", "c", "d"], 1) == 0.25
    assert coverage(frame, ["a", "b", "c", "d"], 2) == 0.5
    assert coverage(frame, [], 2) == 0


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        interval = bootstrap_mean(rng.exponential(2.0, 80), replicates=300, seed=trial)
        covered += interval.low <= 2.0 <= interval.high
    # 95 % less what the percentile bootstrap loses on 80 skewed values, three standard errors either side
    assert 0.88 <= covered / 300 <= 0.985
    same = bootstrap_mean(np.arange(50.0), seed=3)
    assert same == bootstrap_mean(np.arange(50.0), seed=3)
    large = rng.normal(5, 1, 30_000)
    assert bootstrap_mean(large).low == pytest.approx(5 - 1.96 / np.sqrt(30_000), abs=0.02)


def test_intervals_of_degenerate_values():
    assert all(math.isnan(value) for value in bootstrap_mean(np.array([])))
    assert bootstrap_mean(np.array([3.0])) == (3.0, 3.0, 3.0)
    assert bootstrap_mean(np.zeros(10)) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_mean(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_mean(np.array([1.0]), confidence=1.0)


START = datetime(2011, 1, 1, tzinfo=UTC)
# half days, so that many fall exactly on a cutoff
TIMES = st.lists(st.integers(0, 200).map(lambda half: half * 43_200), min_size=1, max_size=50)


@example([5 * 86_400, 6 * 86_400], 5, 1)  # exactly on both limits
@given(TIMES, st.integers(1, 100), st.integers(1, 40))
def test_splits_do_not_leak(seconds, day, days):
    frame = pl.DataFrame({"ordered_at": [START + timedelta(seconds=s) for s in seconds]})
    cutoff = START + timedelta(days=day)
    split = temporal_split(frame, cutoff=cutoff, horizon=timedelta(days=days))
    assert all(time < cutoff for time in split.train["ordered_at"])
    assert all(cutoff <= time < cutoff + timedelta(days=days) for time in split.test["ordered_at"])
    later = frame.filter(pl.col("ordered_at") >= cutoff + timedelta(days=days)).height
    assert split.train.height + split.test.height + later == frame.height


@given(TIMES, st.integers(1, 30), st.integers(1, 5))
def test_folds_roll(seconds, days, folds):
    frame = pl.DataFrame({"ordered_at": [START + timedelta(seconds=s) for s in seconds]})
    splits = temporal_folds(frame, horizon=timedelta(days=days), folds=folds)
    assert len(splits) <= folds
    for split in splits:
        assert split.train.height
        assert split.train["ordered_at"].max() < split.cutoff
    for one, other in itertools.pairwise(splits):
        assert one.cutoff + one.horizon == other.cutoff
    if splits:
        assert splits[-1].train.height + splits[-1].test.height == frame.height
        assert splits[-1].test.height


def test_splits_refuse():
    frame = pl.DataFrame({"ordered_at": [START, None]})
    with pytest.raises(ValueError, match="nulls"):
        temporal_split(frame, cutoff=START, horizon=timedelta(days=1))
    with pytest.raises(ValueError, match="horizon"):
        temporal_split(frame, cutoff=START, horizon=timedelta(0))
    with pytest.raises(ValueError, match="lack"):
        temporal_split(frame.drop("ordered_at"), cutoff=START, horizon=timedelta(days=1))
    assert temporal_folds(frame.clear(), horizon=timedelta(days=1)) == []
