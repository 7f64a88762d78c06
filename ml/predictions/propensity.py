"""How likely a contact is to do something within a horizon: buy, or, for churn, not buy.

Both come from `contact_features`: rows of contacts as of past days, each with what happened in the horizon
after it. **Churn is no order within a fixed horizon**, the same for everybody, so that a score is the
probability of one plain event, can be checked against what happened, and 0.7 means the same of two people. A
contact's own rhythm is not in the definition but among the features (`silence`: days since the last order in
multiples of the usual gap).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import NamedTuple

import numpy as np
import polars as pl
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from ml.predictions.base import NotEnoughData

FEATURES = (
    "orders_count",
    "frequency",
    "recency_days",
    "age_days",
    "days_since_order",
    "days_between_orders",
    "silence",
    "revenue",
    "monetary_value",
    "revenue_90d",
    "orders_30d",
    "orders_90d",
    "orders_365d",
    "visits_30d",
    "carts_30d",
    "days_since_visit",
    "opens_90d",
    "clicks_90d",
    "messages_30d",
    "messages_90d",
    "days_since_read",
    "days_since_message",
)
"""Columns of `contact_features` that models learn from; null means that there is none."""

MIN_ROWS = 200
MIN_OF_EACH = 30
"""Rows a fit needs in all, and of each outcome: less, and its probabilities are guesses."""
ISOTONIC_FROM = 1_000
"""Rows of the rarer outcome from which calibration may take any rising shape; with fewer it would fit
chance.
"""

_LEAST = 0.01
"""Probability below which no event is called: nobody is that certain of a person."""
_THREADS_FROM = 4_000_000
"""Numbers in a matrix from which several threads are worth their while."""


class TemporalPlan(NamedTuple):
    """As of which days to learn, and as of which to judge.

    Attributes:
        train: days, newest first; each has seen its whole horizon by `test`.
        test: the last day whose horizon is over.
    """

    train: list[date]
    test: date


def temporal_plan(
    days: Sequence[date], *, today: date, horizon: timedelta, first: date, most: int = 4, step: int = 14
) -> TemporalPlan:
    """Choose the days to learn from and the one to judge by, so that the judged model could have been made on
    that day.

    Args:
        days: as of which features are to be had.
        today: the first day that is not over.
        horizon: how long after a day outcomes are looked at.
        first: the first day with anything in it; no model learns from days less than a horizon's third after
            it.
        most: how many days to learn from.
        step: days that lie between two of them, at least.

    Raises:
        NotEnoughData: history is too short for a day to judge by and one to learn from before it.
    """
    judged = [day for day in sorted(days, reverse=True) if day + horizon <= today]
    early = first + horizon / 3
    if judged:
        test = judged[0]
        train: list[date] = []
        for day in judged:
            if day + horizon <= test and day >= early and (not train or (train[-1] - day).days >= step):
                train.append(day)
        if train:
            return TemporalPlan(train[:most], test)
    needed = 2 * horizon.days + horizon.days // 3 + 7
    raise NotEnoughData(
        f"not enough data: a horizon of {horizon.days} days needs {needed} days of history, and there are "
        f"{max((today - first).days, 0)}"
    )


def feature_matrix(features: pl.DataFrame) -> np.ndarray:
    """(n, n_features) float64, -1 where there is none: below every value, so trees can tell it apart.

    Raises:
        ValueError: a feature is missing.
    """
    missing = [name for name in FEATURES if name not in features.columns]
    if missing:
        raise ValueError(f"features lack {', '.join(missing)}")
    return features.select(pl.col(FEATURES).cast(pl.Float64).fill_null(-1.0)).to_numpy()


class PropensityModel(ClassifierMixin, BaseEstimator):
    """Gradient-boosted trees (scikit-learn's, histograms) whose scores are made probabilities.

    Scores are calibrated on contacts that the scoring trees had not seen: three folds by contact, so that the
    same person as of another day is never on both sides. The shape is isotonic from 1,000 rows of the
    rarer outcome on, a sigmoid (Platt) below.

    Args:
        max_iter: trees.
        seed: of the trees.

    Attributes:
        classes_: 0 and 1.
        base_rate_: share of 1 in what was learnt from.
        method_: `isotonic` or `sigmoid`.
        n_rows_: rows learnt from.
    """

    def __init__(self, *, max_iter: int = 60, seed: int = 0) -> None:
        self.max_iter = max_iter
        self.seed = seed

    def fit(self, features: pl.DataFrame, outcome: Sequence[int] | np.ndarray) -> PropensityModel:
        """Learn.

        Args:
            features: contact_id and `FEATURES`, a row a contact and day.
            outcome: (n,) 1 if it happened, else 0.

        Raises:
            ValueError: a feature is missing, lengths differ or an outcome is neither 0 nor 1.
            NotEnoughData: fewer than 200 rows, or 30 of an outcome.
        """
        x, y = feature_matrix(features), checked_outcome(outcome, features.height)
        contacts = features["contact_id"].to_numpy()
        rarer = int(min(y.sum(), len(y) - y.sum()))
        enough_to_learn(y)
        self.method_ = "isotonic" if rarer >= ISOTONIC_FROM else "sigmoid"
        # equal ids fall into one fold; the golden ratio spreads ids that lie close together
        spread = (contacts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)
        fold = (spread % np.uint64(3)).astype(int)
        splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(3)]
        if any(len(test) == 0 or len(np.unique(y[train])) < 2 for train, test in splits):
            raise NotEnoughData(
                "not enough data: too few contacts to calibrate on others than were learnt from"
            )
        trees = HistGradientBoostingClassifier(
            max_iter=self.max_iter,
            learning_rate=0.08,
            max_leaf_nodes=12,
            min_samples_leaf=max(20, min(200, len(y) // 100)),
            l2_regularization=1.0,
            max_bins=63,
            early_stopping=False,  # pyright: ignore[reportArgumentType]
            random_state=self.seed,
        )
        # on little data threads wait for each other, at twenty times the work, most of all on a busy machine
        with threadpool_limits(1 if x.size < _THREADS_FROM else None):
            self.calibrated_ = CalibratedClassifierCV(
                trees,
                method=self.method_,
                cv=splits,
                ensemble=False,  # pyright: ignore[reportArgumentType]
            ).fit(x, y)
        self.classes_ = np.array([0, 1])
        self.base_rate_ = float(y.mean())
        self.n_rows_ = len(y)
        return self

    def predict_proba(self, features: pl.DataFrame) -> np.ndarray:
        """(n, 2) probabilities of 0 and of 1."""
        check_is_fitted(self, "calibrated_")
        if not features.height:
            return np.empty((0, 2))
        x = feature_matrix(features)
        with threadpool_limits(1 if x.size < _THREADS_FROM else None):
            happens = self.calibrated_.predict_proba(x)[:, 1]
        # isotonic calibration says 0 and 1 where all of a few rows went one way
        happens = np.clip(happens, _LEAST, 1 - _LEAST)
        return np.column_stack([1 - happens, happens])

    def predict(self, features: pl.DataFrame) -> np.ndarray:
        """(n,) 1 where it is likelier than not."""
        return (self.predict_proba(features)[:, 1] >= 0.5).astype(int)


class RecencyModel(ClassifierMixin, BaseEstimator):
    """The baseline that a model has to beat: logistic in the logarithm of days since the last order, nothing
    else.
    """

    def fit(self, features: pl.DataFrame, outcome: Sequence[int] | np.ndarray) -> RecencyModel:
        """Learn; arguments and errors as for `PropensityModel`."""
        y = checked_outcome(outcome, features.height)
        enough_to_learn(y)
        self.logistic_ = make_pipeline(StandardScaler(), LogisticRegression()).fit(self._matrix(features), y)
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, features: pl.DataFrame) -> np.ndarray:
        """(n, 2) probabilities of 0 and of 1."""
        check_is_fitted(self, "logistic_")
        if not features.height:
            return np.empty((0, 2))
        return self.logistic_.predict_proba(self._matrix(features))

    @staticmethod
    def _matrix(features: pl.DataFrame) -> np.ndarray:
        days = pl.col("days_since_order").cast(pl.Float64)
        return features.select(
            days.log1p().fill_null(0.0), days.is_null().cast(pl.Float64).alias("never")
        ).to_numpy()


def checked_outcome(outcome: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """(n,) int 0 or 1.

    Raises:
        ValueError: another length or value.
    """
    y = np.asarray(outcome)
    if y.shape != (n,):
        raise ValueError(f"outcome has shape {y.shape}, features have {n} rows")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("outcome must be 0 or 1")
    return y.astype(int)


def enough_to_learn(outcome: np.ndarray) -> None:
    """Raise `NotEnoughData` unless there are rows enough, of both outcomes."""
    happened = int(outcome.sum())
    if len(outcome) < MIN_ROWS:
        raise NotEnoughData(f"not enough data: {len(outcome)} rows to learn from; {MIN_ROWS} are needed")
    if min(happened, len(outcome) - happened) < MIN_OF_EACH:
        raise NotEnoughData(
            f"not enough data: it happened {happened} times in {len(outcome)} rows; {MIN_OF_EACH} of each outcome "
            "are needed"
        )
