"""Sequences under continuous peeking: the chance that they ever leave the truth out is below alpha."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from ml.experiments.compare import Estimate
from ml.experiments.sequential import (
    bernoulli_interval,
    bernoulli_log_evidence,
    mixture_scale,
    normal_mixture_interval,
    normal_mixture_p_value,
    rate_ratio_sequence,
    sequence_of,
)
from ml.experiments.validity import sample_ratio

PATHS, STEPS, ALPHA = 1_000, 2_000, 0.05
AT_MOST = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / PATHS)


def running(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the first 1, 2, ... values, along axis 1."""
    n = np.arange(1, x.shape[1] + 1)
    mean = np.cumsum(x, axis=1) / n
    variance = (np.cumsum(x * x, axis=1) / n - mean**2) * n / np.maximum(n - 1, 1)
    return mean, variance


@pytest.mark.parametrize("kind", ["normal", "revenue", "proportion"])
def test_asymptotic_sequences_hold_at_all_looks_and_fixed_intervals_do_not(kind):
    rng = np.random.default_rng(1)
    shape = (PATHS, STEPS)
    draws = {
        "normal": lambda: rng.normal(1, 1, shape),
        # most buy nothing, few buy much, as in a shop
        "revenue": lambda: (rng.random(shape) < 0.2) * rng.gamma(2, 20, shape),
        "proportion": lambda: (rng.random(shape) < 0.25).astype(float),
    }[kind]
    (control, of_control), (treatment, of_treatment) = running(draws()), running(draws())
    n = np.arange(1, STEPS + 1)
    start = 400
    difference = (treatment - control)[:, start:]
    se = np.sqrt((of_control + of_treatment) / n)[:, start:]
    information = n[start:] / 1_000
    scale = mixture_scale(se * np.sqrt(information), 1 - ALPHA)
    low, high = normal_mixture_interval(difference, se, scale, 1 - ALPHA)
    leaves_out = ((low > 0) | (high < 0)).any(axis=1)
    assert leaves_out.mean() <= AT_MOST
    # p-values are those of the intervals
    p_values = normal_mixture_p_value(difference, se, scale)
    assert ((p_values.min(axis=1) < ALPHA) == leaves_out).all()
    # whoever peeks with fixed intervals errs several times as often
    assert (np.abs(difference) > 1.96 * se).any(axis=1).mean() > 2.5 * ALPHA


@pytest.mark.parametrize("p", [0.005, 0.1, 0.5])
def test_bernoulli_sequences_hold_from_the_first_contact(p):
    rng = np.random.default_rng(2)
    n = np.arange(1, 1_001)
    successes = np.cumsum(rng.random((PATHS, len(n))) < p, axis=1)
    evidence = bernoulli_log_evidence(successes, n, p)
    leaves_out = (evidence >= -math.log(ALPHA)).any(axis=1)
    assert leaves_out.mean() <= AT_MOST
    some = slice(0, 10)
    low, high = bernoulli_interval(successes[some], np.broadcast_to(n, successes[some].shape), 1 - ALPHA)
    assert (((low > p) | (high < p)).any(axis=1) == leaves_out[some]).all()


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_rate_ratios_hold_for_rare_conversions_and_unequal_shares(share):
    rng = np.random.default_rng(3)
    lift, base = 0.5, 0.008
    contacts = 20_000
    failures, early = [], []
    for _ in range(100):
        is_treated = rng.random(contacts) < share
        # the rate moves over time, by the same factor for both
        rates = base * (1 + np.sin(np.arange(contacts) / 3_000) / 2) * np.where(is_treated, 1 + lift, 1)
        converted = is_treated[rng.random(contacts) < rates]
        treated = np.cumsum(converted)
        control = np.arange(1, len(converted) + 1) - treated
        low, high, p_values = rate_ratio_sequence(control, treated, treatment_share=share)
        failures.append(((low > lift) | (high < lift)).any())
        early.append((p_values < ALPHA).any())
        assert ((p_values < ALPHA) == ((low > 0) | (high < 0))).all()
    assert np.mean(failures) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 100)
    assert np.mean(early) > 0.15  # and it has power


@pytest.mark.slow
def test_the_ratio_check_holds_at_all_looks():
    rng = np.random.default_rng(4)
    looks = range(50, 3_000, 100)
    alarms = {False: 0, True: 0}
    for _ in range(300):
        treated = np.cumsum(rng.random(3_000) < 0.5)
        checks = [
            sample_ratio(
                {"a": int(i - treated[i]), "b": int(treated[i])}, {"a": 1, "b": 1}, concentration=300
            )
            for i in looks
        ]
        alarms[False] += any(check.anytime_p_value < ALPHA for check in checks)
        alarms[True] += any(check.p_value < ALPHA for check in checks)
    assert alarms[False] / 300 <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 300)
    assert alarms[True] / 300 > 2.5 * ALPHA  # chi-squared does not


@settings(max_examples=40)
@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.5, 0.999))
def test_bernoulli_ends_are_where_the_martingale_crosses(successes, failures, confidence):
    n = successes + failures
    low, high = (float(end) for end in bernoulli_interval(successes, n, confidence))
    assert 0 <= low <= (successes / n if n else 0.5) <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert float(bernoulli_log_evidence(successes, n, end)) == pytest.approx(
                -math.log(1 - confidence), abs=1e-4
            )
    assert (low == 0) == (successes == 0 or low < 1e-300)


def test_the_scale_is_the_tightest():
    for confidence in (0.9, 0.95, 0.999):
        best = float(mixture_scale(2.0, confidence))
        found = optimize.minimize_scalar(
            lambda scale, c=confidence: float(normal_mixture_interval(0, 2.0, scale, c)[1]),
            bounds=(0.1, 50),
            method="bounded",
            options={"xatol": 1e-6},
        )
        assert best == pytest.approx(found.x, rel=1e-3)


@given(st.floats(-5, 5), st.floats(0.01, 10), st.floats(0.01, 3))
def test_a_sequence_is_wider_than_the_interval_and_its_p_value_larger(value, se, information):
    fixed = Estimate(value, se, 0, 0, 0, np.inf, 0.95)
    found = sequence_of(fixed, information=information)
    assert found.high - found.low > 2 * 1.96 * se
    assert found.p_value >= stats.norm.sf(abs(value) / se)
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0) or found.p_value == pytest.approx(0.05)


def test_what_is_not_known_has_no_end():
    nan = float("nan")
    unknown = Estimate(nan, nan, -np.inf, np.inf, nan, nan, 0.95)
    assert sequence_of(unknown, information=1.0) == unknown
    low, high = normal_mixture_interval([1.0, nan], [0.0, 1.0], 1.0)
    assert np.isinf(low).all()
    assert np.isinf(high).all()
    low, high, p_value = rate_ratio_sequence(0, 0, treatment_share=0.5)
    assert (float(low), float(high), float(p_value)) == (-1.0, np.inf, 1.0)
    for call in (
        lambda: sequence_of(Estimate(0, 1, 0, 0, 0, 1, 0.95), information=0),
        lambda: mixture_scale(1.0, 1.0),
        lambda: bernoulli_interval(2, 1),
        lambda: rate_ratio_sequence(1, 1, treatment_share=1.0),
    ):
        with pytest.raises(ValueError):
            call()
