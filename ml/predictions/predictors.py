"""What is trained, judged and stored as one thing: a predictor, with all that is needed to score and to watch
it.

A predictor is trained on days whose horizon was over by the day it is judged by, and is used as it was judged:
    nothing is
learnt from the judged day, so that it can be compared fairly with the one in place, which has not seen that
day either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from ml.predictions.base import NotEnoughData
from ml.predictions.drift import Bins, drift_table, reference_bins
from ml.predictions.evaluation import calibration_table, compare_probabilities, count_metrics
from ml.predictions.lifetime import BetaGeoModel, GammaGammaModel, discounted_value
from ml.predictions.propensity import FEATURES, PropensityModel, RecencyModel, enough_to_learn

CHURN, PURCHASE, LIFETIME, NEXT_ORDER = "churn", "purchase", "lifetime_value", "next_order"
ACTIVE_DAYS = 365
"""Churn is predicted for customers who ordered within so many days; all others are gone as it is."""
SCORE_SCHEMA = {"contact_id": pl.Int64, "score": pl.Float64, "properties": pl.String}
CLOCKS = ("age_days", "recency_days")
"""Features that grow with a young shop whatever its customers do; their drift is shown and is no alarm."""
MAX_BIAS = 0.05
"""How far the mean probability may be from what happened, beyond chance, before a calibration check warns."""
FORECAST_RANGE = (0.7, 1.4)
"""Orders or revenue forecast over what came: outside of it, the check of lifetime values warns."""
YEARLY_DISCOUNT = 0.1
LIFETIME_DAYS = 365


@dataclass(frozen=True)
class Judgement:
    """How a predictor did on the last day whose horizon is over.

    Attributes:
        day: that day.
        contacts: how many were judged.
        loss: what promotion goes by, lower is better: log loss, or the mean Poisson deviance of orders.
        baseline_loss: the same of the better baseline for probabilities (the base rate, and recency alone),
            and of the same number for everybody for lifetime values.
        evaluation: model, metric, value: the predictor under its own name, and the baselines.
        deciles: `ml.predictions.evaluation.DECILE_SCHEMA`; for lifetime values mean orders instead of shares.
        is_calibrated: whether forecasts and what came agree.
        statement: that agreement in words.
    """

    day: date
    contacts: int
    loss: float
    baseline_loss: float
    evaluation: pl.DataFrame
    deciles: pl.DataFrame
    is_calibrated: bool
    statement: str


@dataclass
class Predictor(ABC):
    """A model with what it needs to be scored, judged, compared and watched.

    Attributes:
        name: what is predicted.
        horizon_days: how far ahead.
        days: as of which it was trained, newest first.
        rows: how many rows it was trained on.
        reference: how features were spread in training.
        score_reference: how its scores were spread on the day it was judged by; empty before `judge`.
    """

    name: str
    horizon_days: int
    days: list[date] = field(default_factory=list)
    rows: int = 0
    reference: dict[str, Bins] = field(default_factory=dict)
    score_reference: dict[str, Bins] = field(default_factory=dict)

    @abstractmethod
    def population(self, features: pl.DataFrame) -> pl.DataFrame:
        """Those rows of `contact_features` for which this can be predicted."""

    @abstractmethod
    def train(self, rows: pl.DataFrame) -> Predictor:
        """Learn from features with `orders_within` and `revenue_within`, what came in the horizon.

        Raises:
            NotEnoughData: see the message.
        """

    @abstractmethod
    def score(self, features: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """Scores by the model's name, frames of `SCORE_SCHEMA`; properties is a JSON object."""

    @abstractmethod
    def judge(self, rows: pl.DataFrame, baselines: Mapping[str, Any]) -> Judgement:
        """Compare with what came; rows of one day with `orders_within` and `revenue_within`.

        Raises:
            NotEnoughData: nobody to judge by.
        """

    @abstractmethod
    def baselines(self, rows: pl.DataFrame) -> Mapping[str, Any]:
        """What to compare with, learnt from the same rows."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What it is, whom it is for and what it has learnt, for the model's card."""

    def drift(self, features: pl.DataFrame) -> pl.DataFrame:
        """`ml.predictions.drift.DRIFT_SCHEMA` of features, and of the score, against the training data.

        Raises:
            NotEnoughData: nobody to compare.
        """
        people = self.population(features)
        if not people.height:
            raise NotEnoughData("not enough data: nobody to compare with the training data")
        table = drift_table(self.reference, people)
        if self.score_reference:
            scores = self.score(people)[self.name]
            table = pl.concat([drift_table(self.score_reference, scores), table])
        return table


@dataclass
class PropensityPredictor(Predictor):
    """`churn` (no order within the horizon) or `purchase` (an order within it)."""

    model: PropensityModel | None = None

    def population(self, features: pl.DataFrame) -> pl.DataFrame:
        if self.name == CHURN:
            return features.filter((pl.col("orders_count") > 0) & (pl.col("days_since_order") < ACTIVE_DAYS))
        return features

    def _outcome(self, rows: pl.DataFrame) -> np.ndarray:
        ordered = (rows["orders_within"] > 0).to_numpy()
        return (~ordered if self.name == CHURN else ordered).astype(int)

    def train(self, rows: pl.DataFrame) -> PropensityPredictor:
        people = self.population(rows)
        outcome = self._outcome(people)
        enough_to_learn(outcome)
        self.model = PropensityModel().fit(people, outcome)
        self.reference = reference_bins(people, FEATURES)
        self.rows, self.days = people.height, _days(people)
        return self

    def probabilities(self, features: pl.DataFrame) -> np.ndarray:
        """(n,) probability that it happens."""
        assert self.model is not None
        return self.model.predict_proba(features)[:, 1]

    def score(self, features: pl.DataFrame) -> dict[str, pl.DataFrame]:
        people = self.population(features)
        return {
            self.name: pl.DataFrame(
                {
                    "contact_id": people["contact_id"].cast(pl.Int64),
                    "score": self.probabilities(people),
                    "properties": pl.repeat(
                        f'{{"horizon_days": {self.horizon_days}}}', people.height, eager=True
                    ),
                },
                schema=SCORE_SCHEMA,
            )
        }

    def baselines(self, rows: pl.DataFrame) -> Mapping[str, Any]:
        people = self.population(rows)
        outcome = self._outcome(people)
        return {"base_rate": float(outcome.mean()), "recency": RecencyModel().fit(people, outcome)}

    def judge(self, rows: pl.DataFrame, baselines: Mapping[str, Any]) -> Judgement:
        people = self.population(rows)
        if not people.height:
            raise NotEnoughData("not enough data: nobody to judge by")
        outcome = self._outcome(people)
        scores = self.probabilities(people)
        compared = {self.name: scores}
        if baselines:
            compared |= {
                "recency": baselines["recency"].predict_proba(people)[:, 1],
                "base_rate": np.full(len(outcome), baselines["base_rate"]),
            }
        evaluation = compare_probabilities(outcome, compared)
        self.score_reference = {"score": Bins.of(scores)}
        bias = float(scores.mean() - outcome.mean())
        chance = 2 * float(np.sqrt((scores * (1 - scores)).sum())) / len(scores)
        return Judgement(
            day=people["as_of"][0],
            contacts=people.height,
            loss=_value(evaluation, self.name, "log_loss"),
            baseline_loss=min(_value(evaluation, name, "log_loss") for name in ("base_rate", "recency"))
            if baselines
            else float("inf"),
            evaluation=evaluation,
            deciles=calibration_table(outcome, scores),
            is_calibrated=abs(bias) <= MAX_BIAS + chance,
            statement=f"{scores.mean():.1%} were expected, to {outcome.mean():.1%} it happened",
        )

    def describe(self) -> dict[str, str]:
        model = self.model
        assert model is not None
        churn = self.name == CHURN
        return {
            "predicts": f"probability of {'no' if churn else 'an'} order within {self.horizon_days} days",
            "for": f"customers who ordered within {ACTIVE_DAYS} days"
            if churn
            else "everybody of whom anything has happened",
            "method": f"gradient-boosted trees, calibrated by contact ({model.method_})",
            "learnt from": f"{self.rows:,} rows as of {', '.join(map(str, sorted(self.days)))}",
            "share in training": f"{model.base_rate_:.1%}",
        }


@dataclass
class LifetimePredictor(Predictor):
    """`lifetime_value`, and `next_order` from the same parameters: BG/NBD with Gamma-Gamma, in days."""

    purchases: BetaGeoModel | None = None
    values: GammaGammaModel | None = None

    def population(self, features: pl.DataFrame) -> pl.DataFrame:
        return features.filter(pl.col("orders_count") > 0)

    @staticmethod
    def _summaries(people: pl.DataFrame) -> pl.DataFrame:
        return people.select(
            pl.col("frequency").cast(pl.Float64),
            pl.col("recency_days").cast(pl.Float64).alias("recency"),
            pl.col("age_days").cast(pl.Float64).alias("age"),
            pl.col("monetary_value").cast(pl.Float64),
        )

    def train(self, rows: pl.DataFrame) -> LifetimePredictor:
        people = self.population(rows)
        summaries = self._summaries(people)
        self.purchases = BetaGeoModel().fit(summaries)
        self.values = GammaGammaModel().fit(summaries)
        if self.values.parameters_["q"] <= 1:
            raise NotEnoughData(
                "not enough data: spending is so uneven that no mean can be told (q of the Gamma-Gamma model is "
                f"{self.values.parameters_['q']:.2f}; it must be above 1)"
            )
        self.reference = reference_bins(
            people, ("frequency", "recency_days", "age_days", "days_since_order", "monetary_value")
        )
        self.rows, self.days = people.height, _days(people)
        return self

    def score(self, features: pl.DataFrame) -> dict[str, pl.DataFrame]:
        assert self.purchases is not None and self.values is not None
        people = self.population(features)
        summaries = self._summaries(people)
        alive = self.purchases.alive_probability(summaries)
        # beyond a century a date is no forecast, and beyond the calendar it is no date
        until_next = np.minimum(self.purchases.next_purchase(summaries), 36_500.0)
        value = discounted_value(
            self.purchases, self.values, summaries, horizon=LIFETIME_DAYS, yearly_discount=YEARLY_DISCOUNT
        )
        frame = people.select(pl.col("contact_id").cast(pl.Int64)).with_columns(
            value=value,
            alive_probability=alive,
            expected_orders=self.purchases.expected_purchases(summaries, LIFETIME_DAYS),
            expected_order_value=self.values.expected_value(summaries),
            days_to_order=until_next,
        )
        return {
            LIFETIME: frame.select(
                "contact_id",
                pl.col("value").alias("score"),
                pl.struct(
                    pl.lit(LIFETIME_DAYS).alias("horizon_days"),
                    pl.col("alive_probability", "expected_orders", "expected_order_value").round(6),
                )
                .struct.json_encode()
                .alias("properties"),
            ),
            NEXT_ORDER: frame.select(
                "contact_id",
                pl.col("days_to_order").alias("score"),
                pl.struct(pl.col("alive_probability").round(6)).struct.json_encode().alias("properties"),
            ),
        }

    def baselines(self, rows: pl.DataFrame) -> Mapping[str, Any]:
        people = self._summaries(self.population(rows))
        # orders a day: of all together, and for each their own, drawn towards it by one horizon of it
        return {"rate": float(people["frequency"].sum()) / max(float(people["age"].sum()), 1.0)}

    def judge(self, rows: pl.DataFrame, baselines: Mapping[str, Any]) -> Judgement:
        assert self.purchases is not None
        people = self.population(rows)
        if not people.height:
            raise NotEnoughData("not enough data: nobody to judge by")
        summaries = self._summaries(people)
        actual = people["orders_within"].cast(pl.Float64).to_numpy()
        expected = self.purchases.expected_purchases(summaries, self.horizon_days)
        spent = discounted_value(
            self.purchases,
            self.values,  # pyright: ignore[reportArgumentType] - fitted together
            summaries,
            horizon=self.horizon_days,
            yearly_discount=0.0,
            steps=1,
        )
        forecasts = {self.name: expected}
        if baselines:
            everybody = baselines["rate"] * self.horizon_days
            own = (
                (summaries["frequency"] + everybody)
                / (summaries["age"] + self.horizon_days)
                * self.horizon_days
            ).to_numpy()
            forecasts |= {"own_rate": own, "everybody_alike": np.full(len(actual), everybody)}
        records = []
        for model, forecast in forecasts.items():
            measured = {f"orders_{k}": v for k, v in count_metrics(actual, forecast).items()}
            measured["orders_deviance"] = poisson_deviance(actual, forecast)
            if model == self.name:
                revenue = people["revenue_within"].cast(pl.Float64).to_numpy()
                measured |= {f"revenue_{k}": v for k, v in count_metrics(revenue, spent).items()}
                measured |= self._next_order_metrics(people, summaries)
            records += [{"model": model, "metric": k, "value": v} for k, v in measured.items()]
        evaluation = pl.DataFrame(
            records, schema={"model": pl.String, "metric": pl.String, "value": pl.Float64}
        )
        self.score_reference = {"score": Bins.of(self.score(people)[LIFETIME]["score"])}
        ratios = [_value(evaluation, self.name, f"{what}_total_ratio") for what in ("orders", "revenue")]
        low, high = FORECAST_RANGE
        return Judgement(
            day=people["as_of"][0],
            contacts=people.height,
            loss=_value(evaluation, self.name, "orders_deviance"),
            baseline_loss=_value(evaluation, "everybody_alike", "orders_deviance")
            if baselines
            else float("inf"),
            evaluation=evaluation,
            deciles=_count_deciles(actual, expected),
            # if nothing came, a ratio says nothing, and a forecast of next to nothing is right
            is_calibrated=all(low <= ratio <= high for ratio in ratios)
            if actual.sum()
            else bool(expected.sum() < 10),
            statement=f"{expected.sum():,.0f} days with an order were forecast, {actual.sum():,.0f} came, "
            f"and {ratios[1]:.0%} of the revenue",
        )

    def _next_order_metrics(self, people: pl.DataFrame, summaries: pl.DataFrame) -> dict[str, float]:
        """Whether a next order comes at all, as a probability, beside how often it did."""
        assert self.purchases is not None
        returned = (people["orders_within"] > 0).to_numpy().astype(int)
        likely = np.clip(self.purchases.order_probability(summaries, self.horizon_days), 0, 1)
        found = compare_probabilities(returned, {"x": likely})
        return {
            f"next_order_{name}": _value(found, "x", name)
            for name in ("log_loss", "auc", "calibration_error")
        } | {"next_order_expected": float(likely.mean()), "next_order_came": float(returned.mean())}

    def describe(self) -> dict[str, str]:
        assert self.purchases is not None and self.values is not None
        bought, worth = self.purchases.parameters_, self.values.parameters_
        return {
            "predicts": f"what customers will buy within {LIFETIME_DAYS} days, discounted by "
            f"{YEARLY_DISCOUNT:.0%} a year; and when they order next, if they are still there",
            "for": "customers",
            "method": "BG/NBD and Gamma-Gamma, maximum likelihood, in days",
            "learnt from": f"{self.rows:,} customers as of {', '.join(map(str, self.days))}",
            "BG/NBD": ", ".join(f"{name} {value:.4g}" for name, value in bought.items()),
            "Gamma-Gamma": ", ".join(f"{name} {value:.4g}" for name, value in worth.items()),
            "frequency and value": f"correlation {self.values.correlation_:.2f}; the model takes it for 0",
            "limits": "knows no seasons; forecasts too little of long futures (12 % of CDNOW's 39 weeks)"
            + (
                "; saw nobody leave, so everybody counts as still there"
                if bought["a"] < 1e-3 * bought["b"]
                else ""
            ),
        }


def poisson_deviance(actual: np.ndarray, expected: np.ndarray) -> float:
    """Mean of 2 (y ln(y / f) - (y - f)), 0 for perfect forecasts; expectations below 1e-9 count as that."""
    f = np.maximum(expected, 1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(actual > 0, actual * np.log(actual / f), 0.0)
    return float(np.mean(2 * (own - actual + f)))


def _count_deciles(actual: np.ndarray, expected: np.ndarray) -> pl.DataFrame:
    """Mean forecast and mean of what came by tenths of the forecast, with the interval of the mean's two
    standard errors.
    """
    frame = pl.DataFrame({"score": expected, "actual": actual}).with_columns(
        decile=((pl.col("score").rank("average") - 0.5) / len(actual) * 10).cast(pl.Int64).clip(0, 9) + 1
    )
    mean, error = (
        pl.col("actual").mean(),
        (pl.col("actual").std().fill_null(0.0) / pl.len().sqrt()).fill_nan(0.0),
    )
    overall = float(actual.mean())
    return (
        frame.group_by("decile")
        .agg(
            pl.len().cast(pl.Int64).alias("contacts"),
            pl.col("score").mean().alias("mean_score"),
            mean.alias("happened"),
            (mean - 1.96 * error).clip(0.0).alias("low"),
            (mean + 1.96 * error).alias("high"),
        )
        .sort("decile")
        .with_columns(
            lift=pl.col("happened") / overall if overall > 0 else pl.lit(None, pl.Float64),
        )
    )


def _days(rows: pl.DataFrame) -> list[date]:
    return sorted(rows["as_of"].unique().to_list(), reverse=True)


def _value(evaluation: pl.DataFrame, model: str, metric: str) -> float:
    return float(evaluation.filter((pl.col("model") == model) & (pl.col("metric") == metric))["value"].item())
