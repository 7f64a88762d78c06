"""Whom a message moves: models of the effect of a treatment on each contact, and how well they rank.

- T-learner and X-learner: Künzel, Sekhon, Bickel and Yu, Metalearners for estimating heterogeneous treatment effects
  using machine learning, PNAS 116, 2019.
- Qini: Radcliffe, Using control groups to target on predicted lift, Direct Marketing Analytics Journal, 2007.

Train on one half of the contacts of a randomised test and rank the other: on its own contacts any flexible model has
a fine curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.utils.validation import check_is_fitted


class TLearner(BaseEstimator):
    """The difference of two models of the outcome, one fitted on the treated, one on the control.

    Args:
        outcome: a scikit-learn classifier (for outcomes of 0 and 1) or regressor; None takes gradient-boosted trees of
            the right kind. It is cloned.
        seed: of the default models.

    Attributes:
        control_, treated_: the fitted models.
    """

    def __init__(self, outcome: Any = None, *, seed: int = 0) -> None:
        self.outcome = outcome
        self.seed = seed

    def fit(self, features: Any, treatment: ArrayLike, outcome: ArrayLike) -> TLearner:
        """Learn from a randomised test.

        Args:
            features: (n, k) numbers, an array or a polars frame, known before the exposure.
            treatment: (n,) 0 or 1.
            outcome: (n,) 0 or 1, or numbers.

        Raises:
            ValueError: a variant is empty, lengths differ, or a value is NaN.
        """
        x, t, y = _checked(features, treatment, outcome)
        model = _default(y, self.seed) if self.outcome is None else self.outcome
        self.control_ = _fitted(model, x[~t], y[~t])
        self.treated_ = _fitted(model, x[t], y[t])
        return self

    def predict(self, features: Any) -> np.ndarray:
        """(n,) how much the treatment raises the expected outcome."""
        check_is_fitted(self, "treated_")
        x = _matrix(features)
        return _expected(self.treated_, x) - _expected(self.control_, x)


class XLearner(BaseEstimator):
    """Models of the imputed effects; better than the T-learner where one variant is small or effects are simple.

    tau(x) = g tau_control(x) + (1 - g) tau_treated(x), where tau_treated is fitted on y - mu_control(x) of the treated,
    tau_control on mu_treated(x) - y of the control, and g is the treated share.

    Args:
        outcome: as for `TLearner`.
        effect: a regressor of the imputed effects; None takes gradient-boosted trees.
        propensity: probability of the treatment, by design; None takes the share in the data.
        seed: of the default models.

    Attributes:
        control_effect_, treated_effect_: the fitted models of the effect.
        propensity_: as used.
    """

    def __init__(
        self, outcome: Any = None, effect: Any = None, *, propensity: float | None = None, seed: int = 0
    ) -> None:
        self.outcome = outcome
        self.effect = effect
        self.propensity = propensity
        self.seed = seed

    def fit(self, features: Any, treatment: ArrayLike, outcome: ArrayLike) -> XLearner:
        """Learn from a randomised test; arguments and errors as for `TLearner.fit`."""
        x, t, y = _checked(features, treatment, outcome)
        if self.propensity is not None and not 0 < self.propensity < 1:
            raise ValueError(f"propensity must be between 0 and 1, not {self.propensity}")
        self.propensity_ = float(t.mean()) if self.propensity is None else self.propensity
        model = _default(y, self.seed) if self.outcome is None else self.outcome
        effect = _boosted(self.seed) if self.effect is None else self.effect
        imputed_treated = y[t] - _expected(_fitted(model, x[~t], y[~t]), x[t])
        imputed_control = _expected(_fitted(model, x[t], y[t]), x[~t]) - y[~t]
        self.treated_effect_ = _fitted(effect, x[t], imputed_treated)
        self.control_effect_ = _fitted(effect, x[~t], imputed_control)
        return self

    def predict(self, features: Any) -> np.ndarray:
        """(n,) how much the treatment raises the expected outcome."""
        check_is_fitted(self, "treated_effect_")
        x = _matrix(features)
        by_control, by_treated = _expected(self.control_effect_, x), _expected(self.treated_effect_, x)
        return self.propensity_ * by_control + (1 - self.propensity_) * by_treated


@dataclass(frozen=True)
class Qini:
    """How well a ranking finds those whom the treatment moves.

    Args:
        curve: share (of contacts treated, best first), gain (additional outcomes a contact of all contacts, if only
            they are treated), random (the same for contacts drawn at random).
        area: between both, a number of additional outcomes a contact.
        coefficient: area over that of the best ranking there could be, for outcomes of 0 and 1; else NaN. Small numbers
            are normal: the best ranking knows each contact's outcome.
        p_value: share of random rankings with as large an area.
    """

    curve: pl.DataFrame
    area: float
    coefficient: float
    p_value: float


def qini(
    uplift: ArrayLike,
    treatment: ArrayLike,
    outcome: ArrayLike,
    *,
    permutations: int = 200,
    points: int = 100,
    seed: int = 0,
) -> Qini:
    """The Qini curve of a ranking, its coefficient, and whether chance would do as well.

    gain at k contacts = (sum of outcomes of the treated among them - of the control among them times treated / control
    among them) / all treated. Contacts with one score enter together. The best ranking has the treated who did it and
    the control who did not first.

    Args:
        uplift: (n,) scores, higher is treated first.
        treatment: (n,) 0 or 1, as randomised.
        outcome: (n,) numbers.
        permutations: random rankings for the p-value; 0 gives NaN.
        points: of the curve that is returned; the area uses all.
        seed: of the permutations.

    Raises:
        ValueError: a variant is empty, lengths differ, or a value is NaN.
    """
    scores, t, y = _checked(np.asarray(uplift, dtype=np.float64).reshape(-1, 1), treatment, outcome)
    score = scores[:, 0]
    if np.isnan(score).any():
        raise ValueError("an uplift is NaN")
    share, gain = _gains(score, t, y)
    area = _area(share, gain)
    coefficient = float("nan")
    if np.isin(y, (0, 1)).all():
        is_persuadable = np.where(t, y == 1, y == 0)
        # the treated who did it are counted first, the control who did it last
        best = np.where(t & (y == 1), 3.0, np.where(~t & is_persuadable, 2.0, np.where(t, 1.0, 0.0)))
        ideal = _area(*_gains(best, t, y))
        coefficient = area / ideal if ideal > 0 else float("nan")
    p_value = float("nan")
    if permutations > 0:
        random = np.random.default_rng(seed)
        areas = [_area(*_gains(random.permutation(score), t, y)) for _ in range(permutations)]
        # Phipson and Smyth 2010: the ranking itself counts as one
        p_value = float((1 + np.sum(np.asarray(areas) >= area)) / (permutations + 1))
    at = np.linspace(0, 1, points + 1)
    curve = pl.DataFrame({"share": at, "gain": np.interp(at, share, gain), "random": at * gain[-1]})
    return Qini(curve, area, coefficient, p_value)


def _gains(score: np.ndarray, t: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    t_sorted, y_sorted = t[order], y[order]
    treated = np.cumsum(t_sorted)[ends]
    control = ends + 1 - treated
    treated_sum = np.cumsum(y_sorted * t_sorted)[ends]
    control_sum = np.cumsum(y_sorted * ~t_sorted)[ends]
    ratio = np.divide(treated, control, out=np.zeros(len(ends)), where=control > 0)
    gain = (treated_sum - control_sum * ratio) / t.sum()
    return np.append(0.0, (ends + 1) / len(order)), np.append(0.0, gain)


def _area(share: np.ndarray, gain: np.ndarray) -> float:
    return float(np.trapezoid(gain, share) - gain[-1] / 2)


def _boosted(seed: int) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(
        max_iter=100, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=50, random_state=seed
    )


def _default(y: np.ndarray, seed: int) -> Any:
    if np.isin(y, (0, 1)).all():
        return HistGradientBoostingClassifier(
            max_iter=100, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=50, random_state=seed
        )
    return _boosted(seed)


def _fitted(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    if len(np.unique(y)) == 1:  # nothing to learn, which classifiers refuse
        return DummyRegressor().fit(x, y)
    return cast(Any, clone(model)).fit(x, y)


def _expected(model: Any, x: np.ndarray) -> np.ndarray:
    if not len(x):
        return np.empty(0)
    if is_classifier(model):
        return model.predict_proba(x)[:, 1]
    return np.asarray(model.predict(x), dtype=np.float64)


def _matrix(features: Any) -> np.ndarray:
    values = features.to_numpy() if isinstance(features, pl.DataFrame) else features
    matrix = np.asarray(values, dtype=np.float64)
    return matrix.reshape(-1, 1) if matrix.ndim == 1 else matrix


def _checked(
    features: Any, treatment: ArrayLike, outcome: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, t, y = _matrix(features), np.asarray(treatment), np.asarray(outcome, dtype=np.float64)
    if not len(x) == len(t) == len(y):
        raise ValueError(f"{len(x)} features, {len(t)} treatments and {len(y)} outcomes")
    if not np.isin(t, (0, 1)).all():
        raise ValueError("a treatment is 0 or 1")
    t = t.astype(bool)
    if t.all() or not t.any():
        raise ValueError("a variant is empty: there must be treated contacts and a control")
    if not np.isfinite(y).all():
        raise ValueError("an outcome is NaN or infinite")
    return x, t, y
