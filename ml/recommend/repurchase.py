"""What a contact is about to need again."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from ml.dataset import InteractionMatrix
from ml.recommend.base import Recommender

BUY_AGAIN = "buy_again"
"""Reason: the contact buys it regularly, and it is about time."""

_OF_PRODUCT = 5.0  # intervals of all products that each product starts with
_OF_CONTACT = 2.0  # intervals of the product that each contact starts with
_BUYERS = 10.0  # buyers as faithful as those of all products that each product starts with
_HABIT = 1.0  # purchases as faithful as those of all buyers that each contact starts with
_SAME_DAYS = 1.0  # days within which purchases are one
_LEAST_SPREAD = 0.1


class RepurchaseRecommender(Recommender):
    """Products bought before, by how likely they are bought again within a horizon.

    Times between purchases of a product are taken as log-normal, as in the aggregate model of Bhagat et al. (Buy it
    again: modeling repeat purchase recommendations, KDD 2018). The mean of their logarithm is the contact's own,
    drawn to the product's, and that to all products', the more the fewer intervals there are; their spread is pooled.
    With S the survival function of the next purchase, and e days gone since the last, the score is

        P(habit) * (1 - S(e + horizon) / S(e)),

    P(habit) being the share of the product's buyers who came back for it, and nearer to 1 the more often the contact
    did. Only what was bought before has a score, so rules that exclude it leave nothing but what is popular.

    Args:
        horizon: days ahead.
        half_life: of popularity, in days.

    Attributes:
        spread_: standard deviation of the logarithm of days between purchases.
        habit_: (n_products,) share of buyers who came back, 0 to 1.
        log_interval_: (n_products,) mean logarithm of days between purchases.
        scores_: (n_pairs,) float32, as the pairs of `interactions_`.
    """

    def __init__(self, horizon: float = 28.0, half_life: float | None = 60.0) -> None:
        self.horizon = horizon
        self.half_life = half_life

    def _validate(self) -> None:
        if not self.horizon > 0:
            raise ValueError("horizon must be longer than nothing")

    def _fit(self, interactions: InteractionMatrix) -> None:
        matrix = interactions
        n_pairs, n_products = len(matrix.indices), matrix.shape[1]
        self.spread_ = 1.0
        self.habit_ = np.zeros(n_products)
        self.log_interval_ = np.zeros(n_products)
        self.scores_ = np.zeros(n_pairs, dtype=np.float32)
        # oldest first in a pair, so ages fall; between pairs they don't belong together
        days = matrix.purchase_ages[:-1] - matrix.purchase_ages[1:]
        is_interval = days >= _SAME_DAYS
        ends = matrix.purchase_starts[1:-1]
        is_interval[ends - 1] = False
        where = np.flatnonzero(is_interval)
        if not len(where):
            return
        logs = np.log(days[where].astype(np.float64))
        pair = np.searchsorted(matrix.purchase_starts, where, side="right") - 1
        product = matrix.indices[pair]
        count = np.bincount(product, minlength=n_products)
        total = np.bincount(product, logs, n_products)
        self.log_interval_ = (total + _OF_PRODUCT * logs.mean()) / (count + _OF_PRODUCT)
        self.spread_ = max(float((logs - self.log_interval_[product]).std()), _LEAST_SPREAD)
        own = np.bincount(pair, minlength=n_pairs)
        own_total = np.bincount(pair, logs, n_pairs)
        buyers = np.bincount(matrix.indices, minlength=n_products)
        faithful = np.bincount(matrix.indices[own > 0], minlength=n_products)
        overall = faithful.sum() / buyers.sum()
        self.habit_ = (faithful + _BUYERS * overall) / (buyers + _BUYERS)
        middle = (own_total + _OF_CONTACT * self.log_interval_[matrix.indices]) / (own + _OF_CONTACT)
        habit = (own + _HABIT * self.habit_[matrix.indices]) / (own + _HABIT)
        gone = np.maximum(matrix.ages.astype(np.float64), 1e-3)
        later = norm.logsf((np.log(gone + self.horizon) - middle) / self.spread_)
        now = norm.logsf((np.log(gone) - middle) / self.spread_)
        self.scores_ = (habit * -np.expm1(later - now)).astype(np.float32)

    def _affinities(self, positions: np.ndarray) -> np.ndarray | None:
        return self.interactions_.rows(positions, values=self.scores_).toarray()

    @property
    def _reason(self) -> str:
        return BUY_AGAIN
