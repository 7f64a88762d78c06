"""Probabilities of churn and purchase, how they are judged, and whether the world still is as it was."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from ml.predictions.base import NotEnoughData
from ml.predictions.cards import model_card
from ml.predictions.drift import Bins, drift_table, reference_bins
from ml.predictions.evaluation import calibration_table, count_metrics, probability_metrics
from ml.predictions.predictors import poisson_deviance
from ml.predictions.propensity import FEATURES, PropensityModel, RecencyModel, temporal_plan


def people(n: int, seed: int) -> tuple[pl.DataFrame, np.ndarray]:
    """Contacts whose chance is known: it falls with days since the order, and rises with clicks."""
    random = np.random.default_rng(seed)
    days, clicks = random.integers(0, 200, n), random.poisson(1.0, n)
    chance = 1 / (1 + np.exp(0.02 * days - 1.2 * clicks))
    features = pl.DataFrame(
        {"contact_id": np.arange(n) // 2, **{name: np.zeros(n) for name in FEATURES}}
    ).with_columns(
        days_since_order=pl.when(pl.Series(random.random(n) >= 0.1)).then(pl.Series(days)),
        clicks_90d=pl.Series(clicks),
        days_since_visit=pl.lit(None, pl.Float64),
    )
    return features, (random.random(n) < chance).astype(int)


def test_the_model_finds_the_chance_and_beats_what_knows_less() -> None:
    train, happened = people(4_000, seed=1)
    test, outcome = people(3_000, seed=2)
    model = PropensityModel().fit(train, happened)
    assert model.method_ == "isotonic" and model.base_rate_ == happened.mean()
    scores = model.predict_proba(test)[:, 1]
    found = probability_metrics(outcome, scores)
    recency = probability_metrics(outcome, RecencyModel().fit(train, happened).predict_proba(test)[:, 1])
    base = probability_metrics(outcome, np.full(len(outcome), model.base_rate_))
    assert found["log_loss"] < recency["log_loss"] - 0.03 < base["log_loss"] - 0.03
    assert found["auc"] > recency["auc"] > base["auc"] == 0.5
    assert found["calibration_error"] < 0.05
    assert found["lift"] > 1.3
    assert (scores >= 0.01).all() and (scores <= 0.99).all()


def test_few_rows_are_calibrated_by_a_sigmoid_and_fewer_not_at_all() -> None:
    features, happened = people(400, seed=3)
    model = PropensityModel().fit(features, happened)
    assert model.method_ == "sigmoid"
    # the same data, the same model
    again = PropensityModel().fit(features, happened).predict_proba(features)
    assert (again == model.predict_proba(features)).all()
    for few in (features.head(0), features.head(1), features.head(199)):
        with pytest.raises(NotEnoughData, match="not enough data"):
            PropensityModel().fit(few, happened[: few.height])
    for same in (np.zeros(400, int), np.ones(400, int)):
        with pytest.raises(NotEnoughData, match="30 of each outcome"):
            PropensityModel().fit(features, same)
    one = features.with_columns(contact_id=pl.lit(7))
    with pytest.raises(NotEnoughData, match="too few contacts"):
        PropensityModel().fit(one, happened)


def test_features_without_any_difference_give_the_base_rate() -> None:
    features, happened = people(600, seed=4)
    flat = features.with_columns(pl.lit(0.0).alias(name) for name in FEATURES)
    model = PropensityModel().fit(flat, happened)
    scores = model.predict_proba(flat)[:, 1]
    assert np.ptp(scores) < 1e-9
    assert scores[0] == pytest.approx(happened.mean(), abs=0.02)
    assert model.predict_proba(flat.head(0)).shape == (0, 2)


@pytest.mark.parametrize(
    ("outcome", "message"), [([0, 1, 2], "must be 0 or 1"), ([0, 1], "shape"), ([[0], [1], [1]], "shape")]
)
def test_wrong_outcomes_are_refused(outcome: list, message: str) -> None:
    features, _ = people(3, seed=1)
    with pytest.raises(ValueError, match=message):
        PropensityModel().fit(features, np.array(outcome))
    with pytest.raises(ValueError, match="lack silence"):
        PropensityModel().fit(features.drop("silence"), np.array([0, 1, 1]))


@given(
    history=st.integers(0, 600),
    horizon=st.integers(7, 120),
    most=st.integers(1, 6),
    step=st.integers(7, 60),
)
def test_what_is_learnt_was_over_before_the_day_that_is_judged(
    history: int, horizon: int, most: int, step: int
) -> None:
    today = date(2011, 6, 27)
    first = today - timedelta(days=history)
    mondays = [today - timedelta(days=7 * k) for k in range(60)]
    try:
        plan = temporal_plan(
            mondays, today=today, horizon=timedelta(days=horizon), first=first, most=most, step=step
        )
    except NotEnoughData as error:
        assert f"there are {history}" in str(error)
        # that is what it says is needed, and it is not there
        assert history < 2 * horizon + horizon // 3 + 14 or 2 * horizon + 14 > 7 * 59
        return
    assert plan.test + timedelta(days=horizon) <= today < plan.test + timedelta(days=horizon + 7)
    assert 1 <= len(plan.train) <= most
    for day, newer in zip(plan.train, [None, *plan.train], strict=False):
        assert day + timedelta(days=horizon) <= plan.test
        assert day > first
        assert newer is None or (newer - day).days >= step


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0.001, 0.999)), min_size=2, max_size=60).filter(
        lambda rows: len({y for y, _ in rows}) == 2
    )
)
def test_metrics_are_those_of_scikit_learn(rows: list[tuple[int, float]]) -> None:
    y, p = (np.array(values) for values in zip(*rows, strict=True))
    found = probability_metrics(y, p)
    assert found["log_loss"] == pytest.approx(log_loss(y, p))
    assert found["brier"] == pytest.approx(brier_score_loss(y, p))
    assert found["auc"] == pytest.approx(roc_auc_score(y, p))
    table = calibration_table(y, p)
    assert table["contacts"].sum() == len(y)
    assert (table["happened"] * table["contacts"]).sum() == pytest.approx(y.sum())
    assert table["mean_score"].is_sorted()
    assert ((table["low"] <= table["happened"] + 1e-9) & (table["happened"] <= table["high"] + 1e-9)).all()


def test_calibration_by_tenths() -> None:
    score = np.repeat([0.1, 0.5, 0.9], [50, 30, 20])
    outcome = np.concatenate([np.arange(50) < 5, np.arange(30) < 15, np.arange(20) < 18]).astype(int)
    table = calibration_table(outcome, score)
    assert table["contacts"].to_list() == [50, 30, 20]
    assert table["happened"].to_list() == pytest.approx([0.1, 0.5, 0.9])
    assert table["lift"].to_list() == pytest.approx([0.1 / 0.38, 0.5 / 0.38, 0.9 / 0.38])
    found = probability_metrics(outcome, score)
    assert found["calibration_error"] == pytest.approx(0, abs=1e-12)
    one = probability_metrics([1, 1], [0.9, 0.8])
    assert np.isnan(one["auc"]) and np.isnan(one["lift"])
    for wrong in (([], []), ([1], [1.2]), ([2], [0.5]), ([1, 0], [0.5])):
        with pytest.raises(ValueError, match=r"outcome|probabilities"):
            probability_metrics(*wrong)


def test_counts_and_their_deviance() -> None:
    found = count_metrics([0, 1, 5], [1.0, 1.0, 2.0])
    assert found["total_ratio"] == pytest.approx(4 / 6)
    assert found["mean_absolute_error"] == pytest.approx(4 / 3)
    assert found["rank_correlation"] == pytest.approx(0.8660, abs=1e-4)
    assert poisson_deviance(np.array([0.0, 3.0]), np.array([1e-12, 3.0])) == pytest.approx(0, abs=1e-8)
    assert poisson_deviance(np.array([2.0]), np.array([1.0])) == pytest.approx(2 * (2 * np.log(2) - 1))


def test_the_stability_index_of_a_known_shift() -> None:
    """Two bins, half and half, then a fifth and four fifths: sum of (a - e) ln(a / e)."""
    before, after = np.repeat([0.0, 1.0], 500), np.repeat([0.0, 1.0], [200, 800])
    bins = Bins.of(before, bins=2)
    index, chance = bins.stability(after)
    assert index == pytest.approx(-0.3 * np.log(0.2 / 0.5) + 0.3 * np.log(0.8 / 0.5))
    # (1 / n + 1 / m) times chi-squared with one degree of freedom at 1 %
    assert chance == pytest.approx(2 / 1_000 * 6.6349, rel=1e-3)
    assert bins.stability(before)[0] == 0


def test_missing_values_are_a_bin_of_their_own() -> None:
    before = pl.Series([1.0] * 90 + [None] * 10)
    table = drift_table({"x": Bins.of(before)}, pl.DataFrame({"x": [1.0] * 500 + [None] * 500}))
    assert table.row(0, named=True)["verdict"] == "large"
    nothing = Bins.of(pl.Series([None] * 5, dtype=pl.Float64))
    assert nothing.stability(pl.Series([None] * 9, dtype=pl.Float64))[0] == 0
    with pytest.raises(ValueError, match="no rows"):
        nothing.stability(pl.Series([], dtype=pl.Float64))
    with pytest.raises(ValueError, match="lacks x"):
        drift_table({"x": nothing}, pl.DataFrame({"y": [1]}))


@given(seed=st.integers(0, 10_000), n=st.integers(50, 3_000), m=st.integers(50, 3_000))
@settings(max_examples=40)
def test_what_did_not_move_is_stable_and_what_moved_far_is_not(seed: int, n: int, m: int) -> None:
    random = np.random.default_rng(seed)
    reference = reference_bins(
        pl.DataFrame({"number": random.normal(size=n), "count": random.poisson(0.4, n)}), ("number", "count")
    )
    same = drift_table(
        reference, pl.DataFrame({"number": random.normal(size=m), "count": random.poisson(0.4, m)})
    )
    # chance alone gives a verdict once in a hundred, and it must be large besides
    assert (same["psi"] < np.maximum(2.5 * same["chance"], 0.1)).all()
    moved = drift_table(
        reference, pl.DataFrame({"number": random.normal(2.0, size=m), "count": random.poisson(6.0, m)})
    )
    assert set(moved["verdict"]) == {"large"}
    for bins in reference.values():
        assert sum(bins.shares) == pytest.approx(1)
        assert list(bins.edges) == sorted(set(bins.edges))


def test_a_card_tells_what_the_model_is() -> None:
    y, p = np.array([0, 1, 1, 0] * 30), np.linspace(0.1, 0.9, 120)
    evaluation = pl.DataFrame({"model": ["churn", "recency"], "metric": ["auc", "auc"], "value": [0.7, 0.6]})
    drift = pl.DataFrame({"feature": ["x"], "psi": [0.3], "chance": [0.01], "verdict": ["large"]})
    card = model_card(
        "churn 1", {"predicts": "no order"}, evaluation, calibration_table(y, p), drift, is_share=True
    )
    assert "- **predicts**: no order" in card and "| auc | 0.7000 | 0.6000 |" in card
    assert "data:image/png;base64," in card and "| x | 0.300 | 0.010 | large |" in card
