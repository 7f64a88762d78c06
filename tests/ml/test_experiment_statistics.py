"""Fixed-horizon statistics: published figures to their digits, scipy's answers, invariances, simulation."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betaln

from ml.experiments.bandit import thompson_weights
from ml.experiments.bayes import bayes_means, bayes_proportions
from ml.experiments.compare import (
    chi_squared,
    compare,
    fieller_interval,
    sign_test,
    two_proportion_z,
    wilson_interval,
)
from ml.experiments.guardrails import Guardrail, check_guardrail
from ml.experiments.multiple import benjamini_hochberg, holm
from ml.experiments.power import (
    detectable_difference,
    power_means,
    power_proportions,
    sample_size_from_history,
    sample_size_guardrail,
    sample_size_means,
    sample_size_proportions,
    unit_deviation,
)
from ml.experiments.segments import segment_effects
from ml.experiments.summaries import Metric, Sums, aggregate, aggregate_sql, first_exposures, roll_up
from ml.experiments.validity import covariate_balance, sample_ratio
from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings

DATA = Path(os.environ.get("MAILHOUSE_DATA_DIR") or Path(__file__).parents[3] / "shared/data")
needs_data = pytest.mark.skipif(
    not (DATA / "stats_reference").is_dir(),
    reason=f"{DATA} is not on this machine; name the folder in MAILHOUSE_DATA_DIR",
)
VALUE = Metric("value")


# --- published figures ----------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name", ["gb_ttest_relative", "gb_ttest_absolute", "gb_prop_relative"])
def test_reference_vectors(name):
    vector = next(
        v for v in json.loads((DATA / "stats_reference/vectors.json").read_text()) if v["id"] == name
    )
    metric = Metric("value", "proportion" if "prop" in name else "mean")
    arms = [
        Sums.of_totals(
            arm["n"], {"value": arm["sum"]}, {("value", "value"): arm.get("sum_squares", arm["sum"])}
        )
        for arm in (vector["a"], vector["b"])
    ]
    comparison = compare(*arms, metric, lift_interval="delta")
    found = comparison.relative if "relative" in name else comparison.absolute
    expected = vector["expected"]
    assert [found.value, found.low, found.high, found.se, found.p_value] == pytest.approx(
        [expected["effect"], *expected["ci95"], expected["se"], expected["p"]], abs=5.1e-6
    )


def test_there_are_no_other_reference_vectors():
    path = DATA / "stats_reference/vectors.json"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    assert {v["id"] for v in json.loads(path.read_text())} == {
        "gb_ttest_relative",
        "gb_ttest_absolute",
        "gb_prop_relative",
    }


@needs_data
def test_udacity():
    control, treatment = (
        pl.read_csv(DATA / f"udacity_free_trial/{name}_data.csv") for name in ("control", "experiment")
    )
    views, clicks = (
        {"control": int(control[column].sum()), "experiment": int(treatment[column].sum())}
        for column in ("Pageviews", "Clicks")
    )
    assert list(views.values()) == [345_543, 344_660]
    ratio = sample_ratio(views, {"control": 1, "experiment": 1}, is_final=True)
    half = 1.959964 * math.sqrt(0.25 / sum(views.values()))
    assert [round(x, 4) for x in (ratio.observed["control"], 0.5 - half, 0.5 + half)] == [
        0.5006,
        0.4988,
        0.5012,
    ]
    assert ratio.p_value > 0.05
    assert not ratio.is_broken
    assert list(clicks.values()) == [28_378, 28_325]
    assert not sample_ratio(clicks, {"control": 1, "experiment": 1}).is_broken

    both = [frame.filter(pl.col("Enrollments").is_not_null()) for frame in (control, treatment)]
    totals = [int(frame["Clicks"].sum()) for frame in both]
    for column, counts, expected, signs in (
        ("Enrollments", [3_785, 3_423], [-0.0206, -0.0291, -0.0120], 0.0026),
        ("Payments", [2_033, 1_945], [-0.0049, -0.0116, 0.0019], 0.6776),
    ):
        successes = [int(frame[column].sum()) for frame in both]
        assert successes == counts
        assert totals == [17_293, 17_260]
        wald = two_proportion_z(successes[0], totals[0], successes[1], totals[1], interval="wald")
        welch = compare(
            Sums.of_counts(successes[0], totals[0]),
            Sums.of_counts(successes[1], totals[1]),
            Metric("value", "proportion"),
        ).absolute
        for found in (wald, welch):
            assert [round(x, 4) for x in (found.value, found.low, found.high)] == expected
        rates = [(frame[column] / frame["Clicks"]).to_numpy() for frame in both]
        assert round(sign_test(*rates), 4) == signs


@pytest.fixture(scope="module")
def hillstrom() -> pl.DataFrame:
    path = DATA / "hillstrom/mens_and_control.csv"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine; name the folder in MAILHOUSE_DATA_DIR")
    return pl.read_csv(path, infer_schema_length=None).with_columns(
        variant=pl.when(pl.col("segment") == "No E-Mail").then(pl.lit("nothing")).otherwise(pl.lit("mail"))
    )


def test_hillstrom(hillstrom):
    assert hillstrom.height == 42_613
    metrics = [Metric("visit", "proportion"), Metric("conversion", "proportion"), Metric("spend")]
    rows = {row["variant"]: row for row in aggregate(hillstrom, metrics).to_dicts()}
    expected = {
        "visit": (0.182757, 0.106167),
        "conversion": (0.012531, 0.005726),
        "spend": (1.422617, 0.652789),
    }
    for metric in metrics:
        arms = [Sums.of_row(rows[variant], metric.columns) for variant in ("nothing", "mail")]
        comparison = compare(*arms, metric)
        assert (round(comparison.treatment_value, 6), round(comparison.control_value, 6)) == expected[
            metric.name
        ]
        values = [
            hillstrom.filter(pl.col("variant") == variant)[metric.name].to_numpy()
            for variant in ("mail", "nothing")
        ]
        theirs = stats.ttest_ind(*values, equal_var=False)
        interval = theirs.confidence_interval(0.95)
        tolerance = 1e-4 if metric.kind == "proportion" else 1e-9  # p (1 - p) or n / (n - 1) of it
        assert comparison.absolute.p_value == pytest.approx(theirs.pvalue, rel=50 * tolerance)
        assert comparison.absolute.low == pytest.approx(interval.low, rel=tolerance)
        assert comparison.absolute.high == pytest.approx(interval.high, rel=tolerance)


def test_cuped_on_hillstrom_agrees_and_is_tighter(hillstrom):
    metric = Metric("spend", covariates=("history", "recency"))
    rows = {row["variant"]: row for row in aggregate(hillstrom, [metric]).to_dicts()}
    arms = [Sums.of_row(rows[variant], metric.columns) for variant in ("nothing", "mail")]
    comparison = compare(*arms, metric)
    assert 0 < comparison.variance_reduction < 0.01  # past spending says hardly anything here
    assert comparison.absolute.value == pytest.approx(1.422617 - 0.652789, abs=0.05)


# --- sums -----------------------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.floats(-1e4, 1e4),
        st.floats(0, 1e3),
        st.integers(0, 1),
        st.sampled_from("xyz"),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=50)
@given(ROWS)
def test_sums_add_up_over_any_division(rows):
    frame = pl.DataFrame(rows, schema=["variant", "y", "d", "b", "part"], orient="row")
    metrics = [Metric("r", "ratio", column="y", denominator="d"), Metric("b", "proportion")]
    whole = aggregate(frame, metrics)
    parts = aggregate(frame, metrics, by=["part"])
    rolled = roll_up(parts)
    assert rolled["contacts"].to_list() == whole["contacts"].to_list()
    for name in whole.columns:
        if name.startswith("sum__"):
            assert rolled[name].to_list() == pytest.approx(whole[name].to_list(), rel=1e-9, abs=1e-6)
    for variant in frame["variant"].unique():
        values = frame.filter(pl.col("variant") == variant)
        direct = Sums.of_arrays(y=values["y"], d=values["d"])
        merged = Sums.of_row(None, ("y", "d"))
        for row in parts.filter(pl.col("variant") == variant).to_dicts():
            merged = merged + Sums.of_row(row, ("y", "d"))
        assert merged.n == direct.n
        assert merged.means == pytest.approx(direct.means, rel=1e-9, abs=1e-9)
        assert merged.comoments == pytest.approx(direct.comoments, rel=1e-6, abs=1e-2)


def test_first_exposures_leave_out_who_saw_several_variants():
    frame = pl.DataFrame(
        {
            "contact_id": [1, 1, 2, 2, 3],
            "variant": ["a", "a", "a", "b", "b"],
            "exposed_at": [5, 2, 1, 3, 4],
            "day": ["late", "early", "x", "y", "z"],
        }
    )
    found = first_exposures(frame)
    assert found.mixed == 1
    assert found.frame.rows() == [(1, "a", 2, "early"), (3, "b", 4, "z")]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"variant": ["a"], "y": [None]}, "null, NaN or infinite for 1"),
        ({"variant": ["a", "b"], "y": [float("nan"), float("inf")]}, "null, NaN or infinite for 2"),
        ({"variant": ["a"], "y": [0.5]}, "neither 0 nor 1"),
        ({"variant": ["a", "a"], "y": [0, 1], "contact_id": [3, 3]}, "2 rows of 1 contacts"),
        ({"variant": ["a"], "z": [0]}, "lacks y"),
    ],
)
def test_rows_that_would_lie_are_refused(frame, message):
    with pytest.raises(ValueError, match=message):
        aggregate(
            pl.DataFrame(frame).with_columns(pl.selectors.exclude("variant")), [Metric("y", "proportion")]
        )


def test_a_large_constant_has_no_variance():
    n = 100_000
    value = 1234.567
    sums = Sums.of_totals(n, {"value": n * value}, {("value", "value"): n * value * value * (1 + 3e-14)})
    assert sums.covariance()[0, 0] == 0
    assert math.isnan(compare(sums, sums, VALUE).absolute.p_value)


def test_impossible_sums_are_refused():
    with pytest.raises(ValueError, match="below what the sum allows"):
        Sums.of_totals(10, {"value": 100.0}, {("value", "value"): 500.0})
    with pytest.raises(ValueError, match="NaN"):
        Sums.of_totals(10, {"value": float("nan")}, {("value", "value"): 1.0})
    with pytest.raises(ValueError, match="without contacts"):
        Sums.of_totals(0, {"value": 1.0}, {("value", "value"): 1.0})
    with pytest.raises(ValueError, match="11 of 10"):
        Sums.of_counts(11, 10)


# --- comparisons ----------------------------------------------------------------------------------------------------

SAMPLES = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=30).filter(lambda x: np.var(x) > 1e-3)


@settings(max_examples=60)
@given(SAMPLES, SAMPLES, st.floats(0.5, 0.99))
def test_welch_is_scipys(control, treatment, confidence):
    found = compare(
        Sums.of_arrays(value=control), Sums.of_arrays(value=treatment), VALUE, confidence=confidence
    )
    theirs = stats.ttest_ind(treatment, control, equal_var=False)
    interval = theirs.confidence_interval(confidence)
    assert found.absolute.p_value == pytest.approx(theirs.pvalue, rel=1e-6)
    assert found.absolute.df == pytest.approx(theirs.df, rel=1e-6)
    assert [found.absolute.low, found.absolute.high] == pytest.approx(
        [interval.low, interval.high], rel=1e-6, abs=1e-9
    )


@settings(max_examples=60)
@given(SAMPLES, SAMPLES, st.floats(0.1, 10))
def test_swapping_mirrors_and_scaling_keeps_lifts(control, treatment, factor):
    arms = [np.array(control), np.array(treatment)]
    arms = [arm - arm.min() + 1 for arm in arms]
    a, b = (Sums.of_arrays(value=arm) for arm in arms)
    there, back = compare(a, b, VALUE), compare(b, a, VALUE)
    assert there.absolute.value == pytest.approx(-back.absolute.value)
    assert there.absolute.p_value == pytest.approx(back.absolute.p_value, rel=1e-6)
    scaled = compare(*(Sums.of_arrays(value=arm * factor) for arm in arms), VALUE)
    assert [scaled.relative.low, scaled.relative.high] == pytest.approx(
        [there.relative.low, there.relative.high], rel=1e-6
    )
    # ratios are inverted by Fieller's interval exactly, by the delta method only nearly
    there, back = (compare(*pair, VALUE, lift_interval="fieller").relative for pair in ((a, b), (b, a)))
    if np.isfinite(there.low) and there.low > -1 and np.isfinite(back.high):
        assert 1 + there.low == pytest.approx(1 / (1 + back.high), rel=1e-6)


@settings(max_examples=60)
@given(st.integers(1, 200), st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_z_squared_is_chi_squared(n_control, n_treatment, p, q):
    a, b = round(p * n_control), round(q * n_treatment)
    z = two_proportion_z(a, n_control, b, n_treatment)
    table = chi_squared([a, b], [n_control, n_treatment])
    low, high = z.low, z.high
    assert -1 <= low <= z.value <= high <= 1
    if a + b in (0, n_control + n_treatment):
        assert z.p_value == 1
        assert math.isnan(table.p_value)
        return
    assert (z.value / z.se) ** 2 == pytest.approx(table.statistic, rel=1e-9, abs=1e-12)
    assert z.p_value == pytest.approx(table.p_value, rel=1e-6)


def test_newcombe_gives_his_published_example():
    # Newcombe 1998, table II, example (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339
    found = two_proportion_z(48, 80, 56, 70)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_chi_squared_of_many_variants_is_scipys():
    found = chi_squared([30, 45, 51], [400, 410, 390])
    theirs = stats.chi2_contingency([[30, 45, 51], [370, 365, 339]], correction=False)
    assert (found.statistic, found.p_value, found.df) == pytest.approx((theirs.statistic, theirs.pvalue, 2))
    with pytest.raises(ValueError, match="two or more variants"):
        chi_squared([1], [2])


@given(
    st.floats(1, 10), st.floats(-10, 10), st.floats(0.001, 0.2), st.floats(0.001, 4), st.floats(-0.02, 0.02)
)
def test_fieller_ends_are_where_the_test_turns(
    control, treatment, control_variance, treatment_variance, covariance
):
    assume(covariance**2 < control_variance * treatment_variance)
    low, high = fieller_interval(control, treatment, control_variance, treatment_variance, covariance, 1.96)
    if not np.isfinite(low):
        assert control**2 <= 1.96**2 * control_variance
        return
    assert low <= treatment / control <= high
    for r in (low, high):
        variance = treatment_variance + r * r * control_variance - 2 * r * covariance
        if variance > 1e-9:
            assert abs(treatment - r * control) / math.sqrt(variance) == pytest.approx(1.96, rel=1e-4)


def test_fieller_has_no_ends_where_the_control_may_be_zero():
    found = compare(Sums.of_arrays(value=[-1, 1, 3, -2]), Sums.of_arrays(value=[4, 5, 6, 7.0]), VALUE)
    assert found.relative.value > 0
    assert (found.relative.low, found.relative.high) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("control", "treatment"),
    [([], []), ([], [1.0, 2]), ([1.0], [2.0]), ([1, 1, 1.0], [1, 1, 1.0]), ([0, 0.0], [1, 1.0])],
)
def test_what_the_data_cannot_say_is_unknown(control, treatment):
    found = compare(Sums.of_arrays(value=control), Sums.of_arrays(value=treatment), VALUE)
    for estimate in (found.absolute, found.relative):
        assert not estimate.is_known
        assert math.isnan(estimate.p_value)
        assert (estimate.low, estimate.high) == (-np.inf, np.inf)


def test_a_lift_over_nothing_or_less_is_unknown():
    for control in ([0, 0, 0.0], [-1, -2, -3.0]):
        found = compare(Sums.of_arrays(value=control), Sums.of_arrays(value=[1, 2, 3.0]), VALUE)
        assert found.absolute.is_known
        assert math.isnan(found.relative.value)


def test_a_ratio_without_denominators_is_unknown():
    metric = Metric("r", "ratio", column="y", denominator="d", covariates=("x",))
    arm = Sums.of_arrays(y=[1, 2, 3.0], d=[0, 0, 0.0], x=[1, 2, 4.0])
    found = compare(arm, arm, metric)
    assert not found.absolute.is_known
    assert math.isnan(found.absolute.p_value)


def test_a_proportion_of_other_numbers_is_refused():
    ones, counts = Sums.of_arrays(value=[0, 1, 1, 0]), Sums.of_arrays(value=[0, 2, 1, 0])
    with pytest.raises(ValueError, match="not those of values of 0 and 1"):
        compare(ones, counts, Metric("value", "proportion"))


def test_nan_values_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        Sums.of_arrays(value=[1.0, float("nan")])


def covered(estimates, truth) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


@pytest.mark.slow
def test_intervals_of_lifts_and_ratios_cover():
    rng = np.random.default_rng(11)
    ratio = Metric("order_value", "ratio", column="revenue", denominator="orders")
    lifts, ratios, near_zero = [], [], []
    for _ in range(800):
        arms = []
        for factor, n in ((1.0, 300), (1.2, 900)):
            orders = rng.poisson(2 * factor, n)
            revenue = orders * rng.gamma(3, 10, n) * (1 + 0.5 * rng.random(n))  # revenue hangs on orders
            arms.append(Sums.of_arrays(revenue=revenue, orders=orders, noisy=rng.normal(1.0, 6, n) * factor))
        lifts.append(compare(*arms, Metric("revenue")).relative)
        ratios.append(compare(*arms, ratio).relative)
        near_zero.append(compare(*arms, Metric("noisy")).relative)
    # within four standard errors of 95 %
    slack = 4 * math.sqrt(0.05 * 0.95 / 800)
    assert abs(covered(lifts, 0.2) - 0.95) < slack
    assert abs(covered(ratios, 0.0) - 0.95) < slack
    assert abs(covered(near_zero, 0.2) - 0.95) < slack


def test_cuped_is_regression_and_never_costs():
    rng = np.random.default_rng(2)
    n = 400
    arms, rows = [], []
    for treated in (0, 1):
        x = rng.normal(size=(n, 2)) @ np.array([[1, 0.5], [0, 1.0]])
        y = 3 + 0.3 * treated + x @ [2.0, -1.0] + rng.normal(size=n)
        arms.append(Sums.of_arrays(y=y, x1=x[:, 0], x2=x[:, 1], same=x[:, 0] * 2, constant=np.ones(n)))
        rows.append(np.column_stack([y, np.ones(n), np.full(n, treated), x]))
    data = np.concatenate(rows)
    # with variants of one size, the coefficients that minimise the variance are those of least squares
    beta, residual, *_ = np.linalg.lstsq(data[:, 1:], data[:, 0], rcond=None)
    se = math.sqrt(residual[0] / (2 * n - 4) * np.linalg.inv(data[:, 1:].T @ data[:, 1:])[1, 1])
    found = compare(*arms, Metric("y", covariates=("x1", "x2")))
    assert found.coefficients == pytest.approx(beta[2:], rel=1e-6)
    assert found.absolute.value == pytest.approx(beta[1], rel=1e-6)
    assert found.absolute.se == pytest.approx(se, rel=0.01)
    plain = compare(*arms, Metric("y"))
    assert found.variance_reduction == pytest.approx(1 - (found.absolute.se / plain.absolute.se) ** 2)
    assert found.variance_reduction > 0.75
    # the same covariate twice, and one that is constant, change nothing
    more = compare(*arms, Metric("y", covariates=("x1", "x2", "same", "constant")))
    assert more.absolute.value == pytest.approx(found.absolute.value)
    assert more.absolute.se == pytest.approx(found.absolute.se, rel=0.01)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(60, 300), st.floats(0.05, 0.95))
def test_cuped_never_widens(seed, n, share):
    rng = np.random.default_rng(seed)
    sizes = [max(20, int(n * share)), max(20, int(n * (1 - share)))]
    arms = []
    for i, size in enumerate(sizes):
        x = rng.gamma(1, 2, size)
        arms.append(Sums.of_arrays(y=x * (1 - 3 * i) + rng.normal(size=size), x=x))  # slopes of opposite sign
    plain, adjusted = (compare(*arms, Metric("y", covariates=c)) for c in ((), ("x",)))
    # up to the degree of freedom that a coefficient costs
    assert adjusted.absolute.se <= plain.absolute.se * math.sqrt((sum(sizes) - 2) / (sum(sizes) - 3)) + 1e-12


@pytest.mark.slow
def test_cuped_covers_for_means_and_ratios_and_lifts():
    rng = np.random.default_rng(4)
    mean, ratio = [], []
    for _ in range(600):
        arms = []
        for factor, n in ((1.0, 150), (1.3, 450)):
            before = rng.gamma(2, 1, n)
            d = 1 + rng.poisson(before)
            y = factor * (before + rng.gamma(2, 1, n))
            arms.append(Sums.of_arrays(y=y, d=d, before=before))
        mean.append(compare(*arms, Metric("y", covariates=("before",))).relative)
        ratio.append(
            compare(*arms, Metric("r", "ratio", column="y", denominator="d", covariates=("before",))).relative
        )
    slack = 4 * math.sqrt(0.05 * 0.95 / 600)
    assert abs(covered(mean, 0.3) - 0.95) < slack
    assert abs(covered(ratio, 0.3) - 0.95) < slack


# --- power ----------------------------------------------------------------------------------------------------------


def test_power_gives_the_figures_of_r():
    # power.prop.test and power.t.test of R's stats package
    assert sample_size_proportions(0.2, 0.25).exact == pytest.approx(1093.739, abs=5e-4)
    assert sample_size_proportions(0.5, 0.75, power=0.9).exact == pytest.approx(76.7, abs=0.05)
    assert power_proportions(0.5, 0.75, 50) == pytest.approx(0.7401659, abs=5e-8)
    assert sample_size_means(1, 1, power=0.9).exact == pytest.approx(22.02110, abs=5e-6)
    assert power_means(1, 1, 20) == pytest.approx(0.8689528, abs=5e-8)


@settings(max_examples=40)
@given(st.floats(0.05, 2), st.floats(0.2, 5), st.floats(0.55, 0.99), st.floats(0.001, 0.2), st.floats(0.5, 2))
def test_sample_size_power_and_detectable_difference_are_inverse(difference, ratio, power, alpha, spread):
    size = sample_size_means(difference, 1.0, sd_treatment=spread, ratio=ratio, alpha=alpha, power=power)
    found = power_means(difference, 1.0, size.exact, sd_treatment=spread, ratio=ratio, alpha=alpha)
    assert found >= power - 1e-9
    if min(size.control, size.treatment) > 2:
        assert found == pytest.approx(power, abs=2e-3)  # where the t distribution gives way to the normal
    size = sample_size_means(difference, 1.0, ratio=ratio, alpha=alpha, power=power)
    if min(size.control, size.treatment) > 3:
        back = detectable_difference(1.0, size.exact, ratio=ratio, alpha=alpha, power=power)
        assert back == pytest.approx(difference, rel=2e-3)


def test_planned_power_is_reached():
    rng = np.random.default_rng(8)
    size = sample_size_proportions(0.1, 0.13, ratio=0.5)
    assert size.treatment == pytest.approx(size.control / 2, abs=1)
    n = 4_000
    a, b = rng.binomial(size.control, 0.1, n), rng.binomial(size.treatment, 0.13, n)
    pooled = (a + b) / size.total
    se = np.sqrt(pooled * (1 - pooled) * (1 / size.control + 1 / size.treatment))
    z = (b / size.treatment - a / size.control) / se
    assert np.mean(z > 1.959964) == pytest.approx(0.8, abs=0.025)


def test_sizes_from_history_know_ratios_and_covariates():
    rng = np.random.default_rng(3)
    n = 20_000
    before = rng.gamma(2, 1, n)
    orders = 1 + rng.poisson(1, n)
    baseline = Sums.of_arrays(
        y=before + rng.normal(size=n), orders=orders, before=before, revenue=20.0 * orders
    )
    plain, adjusted = (
        sample_size_from_history(baseline, Metric("y", covariates=c), 0.05) for c in ((), ("before",))
    )
    assert adjusted.total == pytest.approx(
        plain.total / 3, rel=0.05
    )  # two thirds of the variance was known before
    assert unit_deviation(baseline, Metric("y")) == pytest.approx(math.sqrt(3), rel=0.03)
    # revenue an order that never varies
    constant = Metric("v", "ratio", column="revenue", denominator="orders")
    with pytest.raises(ValueError, match="no positive value that varies"):
        sample_size_from_history(baseline, constant, 0.05)
    with pytest.raises(ValueError, match="no positive value that varies"):
        sample_size_from_history(Sums.of_row(None, ("y",)), Metric("y"), 0.05)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sample_size_proportions(0.1, 0.1),
        lambda: sample_size_proportions(0.1, 1.1),
        lambda: sample_size_proportions(0.1, 0.2, alpha=0),
        lambda: sample_size_proportions(0.1, 0.2, ratio=-1),
        lambda: sample_size_means(0, 1),
        lambda: sample_size_means(float("nan"), 1),
        lambda: sample_size_means(1, 0),
        lambda: sample_size_means(1e-12, 1),
        lambda: power_means(1, 1, 1),
        lambda: detectable_difference(0, 10),
        lambda: sample_size_guardrail(0.1, 0),
    ],
)
def test_power_refuses_what_has_no_answer(call):
    with pytest.raises(ValueError):
        call()


# --- Bayes ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 3_000), st.integers(0, 3_000))
def test_chance_to_win_is_the_closed_form(yes_a, yes_b, no_a, no_b):
    found = bayes_proportions({"a": (yes_a, yes_a + no_a), "b": (yes_b, yes_b + no_b)})
    a_a, b_a, a_b, b_b = yes_a + 1, no_a + 1, yes_b + 1, no_b + 1
    # P(b > a) for whole numbers (Cook, Exact calculation of beta inequalities, 2005; Miller 2015)
    i = np.arange(a_b)
    chance = np.exp(
        betaln(a_a + i, b_a + b_b) - np.log(b_b + i) - betaln(1 + i, b_b) - betaln(a_a, b_a)
    ).sum()
    assert found["b"].chance_best == pytest.approx(chance, abs=1e-9)
    assert found["a"].chance_best + found["b"].chance_best == pytest.approx(1, abs=1e-9)
    # what choosing a costs more than choosing b is the difference of the means
    assert found["a"].expected_loss - found["b"].expected_loss == pytest.approx(
        found["b"].mean - found["a"].mean, abs=1e-9
    )


@settings(max_examples=40)
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.001, 10), st.floats(0.001, 10), st.booleans())
def test_normal_posteriors_are_the_closed_form(mean_a, mean_b, se_a, se_b, lower_is_better):
    found = bayes_means({"a": (mean_a, se_a), "b": (mean_b, se_b)}, lower_is_better=lower_is_better)
    gain = (mean_a - mean_b) if lower_is_better else (mean_b - mean_a)
    spread = math.hypot(se_a, se_b)
    z = gain / spread
    assert found["b"].chance_best == pytest.approx(stats.norm.cdf(z), abs=1e-8)
    loss = spread * (stats.norm.pdf(z) - z * stats.norm.sf(z))
    assert found["b"].expected_loss == pytest.approx(loss, abs=1e-7 * spread)


def test_three_variants_agree_with_draws():
    counts = {"a": (40, 1_000), "b": (52, 1_000), "c": (5, 80)}
    found = bayes_proportions(counts, prior=(0.5, 0.5))
    rng = np.random.default_rng(0)
    draws = np.stack([rng.beta(0.5 + s, 0.5 + n - s, 400_000) for s, n in counts.values()])
    best = draws.max(axis=0)
    for i, name in enumerate(counts):
        assert found[name].chance_best == pytest.approx(np.mean(draws.argmax(axis=0) == i), abs=0.004)
        assert found[name].expected_loss == pytest.approx(np.mean(best - draws[i]), abs=2e-4)
    assert sum(p.chance_best for p in found.values()) == pytest.approx(1, abs=1e-9)


def test_posteriors_without_data_and_of_one_variant():
    found = bayes_proportions({"a": (0, 0), "b": (0, 0)})
    assert found["a"].chance_best == pytest.approx(0.5)
    assert bayes_means({"only": (1.0, 0.1)})["only"].expected_loss == 0
    for call in (
        lambda: bayes_proportions({}),
        lambda: bayes_proportions({"a": (2, 1)}),
        lambda: bayes_proportions({"a": (1, 2)}, prior=(0, 1)),
        lambda: bayes_means({"a": (1, 0)}),
        lambda: bayes_means({"a": (float("nan"), 1)}),
    ):
        with pytest.raises(ValueError):
            call()


def test_thompson_keeps_a_floor_and_finds_the_best():
    rng = np.random.default_rng(6)
    rates = {"a": 0.05, "b": 0.08, "c": 0.05}
    yes, n = dict.fromkeys(rates, 0), dict.fromkeys(rates, 0)
    weights = {}
    for _ in range(12):
        posteriors = bayes_proportions({v: (yes[v], n[v]) for v in rates})
        weights = thompson_weights(posteriors, floor=0.1)
        assert sum(weights.values()) == pytest.approx(1)
        assert min(weights.values()) >= 0.1 - 1e-12
        for variant, weight in weights.items():
            batch = round(1_000 * weight)
            yes[variant] += int(rng.binomial(batch, rates[variant]))
            n[variant] += batch
    assert weights["b"] > 0.75
    assert n["b"] > 6_000
    with pytest.raises(ValueError, match="floor"):
        thompson_weights(posteriors, floor=0.4)
    with pytest.raises(ValueError, match="floor"):
        thompson_weights({})


# --- several tests, validity, guardrails, segments ------------------------------------------------------------------

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(P_VALUES, st.randoms())
def test_adjusted_p_values_keep_order_and_are_no_smaller(p_values, random):
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p_values)
        assert (adjusted >= np.array(p_values) - 1e-15).all()
        assert (adjusted <= 1).all()
        order = np.argsort(p_values, kind="stable")
        assert (np.diff(adjusted[order]) >= -1e-12).all()
        shuffled = list(range(len(p_values)))
        random.shuffle(shuffled)
        assert adjust(np.array(p_values)[shuffled]) == pytest.approx(adjusted[shuffled])
        with_nan = adjust([*p_values, float("nan")])
        assert with_nan[:-1] == pytest.approx(adjusted)
        assert math.isnan(with_nan[-1])
    assert (benjamini_hochberg(p_values) <= holm(p_values) + 1e-12).all()


def test_adjusted_p_values_of_known_examples():
    # Holm 1979 and Benjamini and Hochberg 1995 by hand
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([]).tolist() == benjamini_hochberg([]).tolist() == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.5])


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=200))
def test_the_sequential_ratio_check_is_a_product_of_predictions(assigned):
    weights = {"a": 1.0, "b": 2.0, "c": 1.0}
    shares = np.array([0.25, 0.5, 0.25])
    seen, log_evidence = 50.0 * shares, 0.0
    for variant in assigned:
        log_evidence += math.log(seen[variant] / seen.sum() / shares[variant])
        seen[variant] += 1
    counts = {name: assigned.count(i) for i, name in enumerate(weights)}
    found = sample_ratio(counts, weights, concentration=50.0)
    assert found.anytime_p_value == pytest.approx(min(1.0, math.exp(-log_evidence)), rel=1e-6)


def test_ratio_checks_find_a_mismatch_and_nothing_else():
    assert sample_ratio({"a": 5_000, "b": 5_000}, {"a": 1, "b": 1}).anytime_p_value == 1
    broken = {"a": 52_000, "b": 48_000}
    for is_final in (False, True):
        assert sample_ratio(broken, {"a": 1, "b": 1}, is_final=is_final).is_broken
        assert not sample_ratio(broken, {"a": 52, "b": 48}, is_final=is_final).is_broken
        assert not sample_ratio({}, {"a": 1, "b": 1}, is_final=is_final).is_broken
    assert sample_ratio({"a": 4_000}, {"a": 1, "b": 1}).is_broken
    with pytest.raises(ValueError, match="without a weight: c"):
        sample_ratio({"c": 1}, {"a": 1})
    with pytest.raises(ValueError, match="above 0"):
        sample_ratio({"a": 1}, {"a": 0})
    with pytest.raises(ValueError, match="negative"):
        sample_ratio({"a": -1}, {"a": 1})


def test_balance_p_values_are_uniform_and_find_targeting():
    rng = np.random.default_rng(9)
    p_values = []
    for _ in range(400):
        x = rng.gamma(1, 1, (600, 3)) @ np.array([[1, 1, 0], [0, 1, 0.5], [0, 0, 1.0]])
        t = rng.random(600) < 0.3
        arms = [Sums.of_arrays(a=x[m, 0], b=x[m, 1], c=x[m, 2], d=2 * x[m, 0]) for m in (~t, t)]
        p_values.append(covariate_balance(arms[0], {"t": arms[1]}, ["a", "b", "c", "d"]).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    x = rng.normal(size=4_000)
    t = rng.random(4_000) < 1 / (1 + np.exp(-0.3 * x))
    found = covariate_balance(Sums.of_arrays(x=x[~t]), {"t": Sums.of_arrays(x=x[t])}, ["x"])
    assert found.is_unbalanced
    assert found.differences["t"]["x"] == pytest.approx(0.3, abs=0.1)


def test_covariates_that_tell_variants_apart_are_infinitely_unbalanced():
    found = covariate_balance(Sums.of_arrays(x=np.zeros(50)), {"t": Sums.of_arrays(x=np.ones(50))}, ["x"])
    assert found.is_unbalanced
    assert found.differences["t"]["x"] == np.inf


def test_balance_without_anything_to_compare():
    empty, constant = Sums.of_row(None, ("x",)), Sums.of_arrays(x=np.ones(10))
    for pair in ((empty, constant), (constant, constant), (empty, empty)):
        found = covariate_balance(pair[0], {"t": pair[1]}, ["x"])
        assert math.isnan(found.p_value)
        assert not found.is_unbalanced


UNSUBSCRIBED = Metric("value", "proportion", lower_is_better=True)


def rate(successes: int, n: int) -> Sums:
    return Sums.of_counts(successes, n)


def test_guardrails_tell_safe_from_harmed_from_unknown():
    relative, absolute = Guardrail(UNSUBSCRIBED, 0.2), Guardrail(UNSUBSCRIBED, 0.001, is_relative=False)
    base = rate(2_000, 500_000)
    assert check_guardrail(base, rate(2_050, 500_000), relative).status == "safe"
    assert check_guardrail(base, rate(2_400, 500_000), relative).status == "harmed"
    assert check_guardrail(rate(20, 5_000), rate(21, 5_000), relative).status == "undecided"
    assert check_guardrail(base, rate(2_050, 500_000), absolute).status == "safe"
    assert check_guardrail(base, rate(2_600, 500_000), absolute).status == "harmed"
    # nobody at all: a relative harm cannot be spoken of, an absolute one can
    nobody = rate(0, 50_000)
    assert check_guardrail(nobody, nobody, relative).status == "undecided"
    assert check_guardrail(nobody, nobody, absolute).status == "safe"
    assert check_guardrail(rate(0, 5), rate(0, 5), absolute).status == "undecided"
    assert check_guardrail(rate(0, 0), rate(0, 0), absolute).status == "undecided"
    # before the end it takes more
    assert check_guardrail(base, rate(2_260, 500_000), relative).status == "safe"
    assert check_guardrail(base, rate(2_260, 500_000), relative, is_final=False).status != "safe"
    # complaints where there were none: too few for the normal distribution, not for the exact sequence or Newcombe's
    few = rate(30, 5_000)
    for is_final in (False, True):
        assert check_guardrail(rate(0, 5_000), few, relative, is_final=is_final).status == "harmed"
        assert (
            check_guardrail(rate(0, 5_000), rate(1, 5_000), relative, is_final=is_final).status == "undecided"
        )
    with pytest.raises(ValueError, match="margin"):
        Guardrail(UNSUBSCRIBED, 0)


def test_guardrails_of_revenue_look_the_other_way():
    rng = np.random.default_rng(1)
    base, less = rng.gamma(2, 10, 20_000), rng.gamma(2, 8, 20_000)
    guardrail = Guardrail(Metric("value"), 0.05)
    found = check_guardrail(Sums.of_arrays(value=base), Sums.of_arrays(value=less), guardrail)
    assert found.status == "harmed"
    assert found.harm == pytest.approx(0.2, abs=0.03)
    assert check_guardrail(Sums.of_arrays(value=less), Sums.of_arrays(value=base), guardrail).status == "safe"


@pytest.mark.slow
@pytest.mark.parametrize("is_relative", [True, False])
def test_harm_at_the_margin_is_called_safe_at_most_as_often_as_promised(is_relative):
    rng = np.random.default_rng(12)
    guardrail = Guardrail(UNSUBSCRIBED, 0.2 if is_relative else 0.004, is_relative=is_relative)
    n, calls = 8_000, 1_000
    a, b = rng.binomial(n, 0.02, calls), rng.binomial(n, 0.024, calls)
    safe = [
        check_guardrail(rate(x, n), rate(y, n), guardrail).status == "safe"
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert np.mean(safe) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / calls))


def segments_of(
    effects: dict[str, float], rng: np.random.Generator, n: int = 2_000
) -> dict[str, tuple[Sums, Sums]]:
    return {
        name: tuple(Sums.of_arrays(value=rng.normal(5 + shift, 2, n)) for shift in (0, effect))  # type: ignore[misc]
        for name, effect in effects.items()
    }


def test_segments_that_differ_are_found_and_named():
    rng = np.random.default_rng(21)
    found = segment_effects(segments_of(dict.fromkeys("abcdef", 0.2) | {"odd": 1.0}, rng), VALUE)
    assert found.is_heterogeneous
    assert found.i_squared > 0.5
    first = found.frame.sort("difference_p_adjusted").row(0, named=True)
    assert first["segment"] == "odd"
    assert first["difference_p_adjusted"] < 1e-6
    assert first["difference"] == pytest.approx(0.8, abs=0.3)
    assert (found.frame["p_adjusted"] >= found.frame["p_value"]).all()


@pytest.mark.slow
def test_segments_that_do_not_differ_are_rarely_said_to():
    rng = np.random.default_rng(22)
    found = [segment_effects(segments_of(dict.fromkeys("abcd", 0.3), rng, 200), VALUE) for _ in range(400)]
    assert np.mean([f.is_heterogeneous for f in found]) == pytest.approx(0.05, abs=0.045)
    assert covered([f.combined for f in found], 0.3) == pytest.approx(0.95, abs=0.045)
    named = [(f.frame["difference_p_adjusted"] < 0.05).any() for f in found]
    assert np.mean(named) < 0.095


def test_segments_without_data_stand_aside():
    rng = np.random.default_rng(23)
    some = segments_of({"a": 0.2, "b": 0.2}, rng)
    empty = {"empty": (Sums.of_row(None, ("value",)), Sums.of_row(None, ("value",)))}
    found, without = segment_effects(some | empty, VALUE), segment_effects(some, VALUE)
    assert found.heterogeneity_p_value == without.heterogeneity_p_value
    assert found.frame.filter(segment="empty")["effect"].to_list() == [None]
    assert not segment_effects(empty, VALUE).combined.is_known
    assert math.isnan(segment_effects({}, VALUE).heterogeneity_p_value)
    one = segment_effects({"a": some["a"]}, VALUE, is_relative=True)
    assert math.isnan(one.heterogeneity_p_value)
    assert one.combined.is_known
    assert one.frame["difference"].to_list() == [None]


def test_sums_of_the_engine_are_those_of_polars(warehouse_server: MailhouseSettings):
    rng = np.random.default_rng(5)
    n = 3_000
    frame = pl.DataFrame(
        {
            "contact_id": np.arange(n),
            "variant": rng.choice(["a", "b"], n),
            "exposed_at": pl.datetime_range(
                pl.datetime(2026, 3, 1), pl.datetime(2026, 3, 1) + pl.duration(minutes=n - 1), "1m",
                time_unit="ms", time_zone="UTC", eager=True,
            ),
            "ordered": rng.random(n) < 0.1,
            "revenue": rng.gamma(2, 20, n),
            "orders": rng.poisson(2, n),
            "before": rng.normal(size=n),
        }
    )  # fmt: skip
    metrics = [
        Metric("ordered", "proportion"),
        Metric("order_value", "ratio", column="revenue", denominator="orders", covariates=("before",)),
    ]
    of_polars = aggregate(frame, metrics, balance=["before"])
    with Warehouse.connect(warehouse_server, comment="test") as engine:
        sums = aggregate_sql(metrics, balance=["before"])
        of_engine = engine.frame(
            f"select variant, {sums} from contacts group by variant order by variant",
            external={"contacts": frame},
        )
    assert of_engine.columns == of_polars.columns
    for name in of_polars.columns[1:-2]:
        assert of_engine[name].to_list() == pytest.approx(of_polars[name].to_list(), rel=1e-12)
    assert of_engine["last_exposed_at"].to_list() == of_polars["last_exposed_at"].to_list()
