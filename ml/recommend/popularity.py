"""What most people buy."""

from __future__ import annotations

import numpy as np

from ml.dataset import InteractionMatrix
from ml.recommend.base import POPULAR, Recommender


class PopularityRecommender(Recommender):
    """The same products for everybody, or for everybody of a group: those with most buyers, recent ones counting more.

    Args:
        half_life: days in which a purchase loses half its weight; None weighs all alike.

    Attributes:
        shares_: (n_groups + 1, n_products) weighted buyers of each product; the last row is everybody. A group
            starts with the tastes of everybody, 100 buyers strong, so that a small one has an answer.
    """

    _is_personal = False

    def __init__(self, half_life: float | None = None) -> None:
        self.half_life = half_life

    def _fit(self, interactions: InteractionMatrix) -> None:
        """The base class has counted."""

    def _affinities(self, positions: np.ndarray) -> np.ndarray | None:
        contacts = np.full(len(positions), np.iinfo(np.int64).min)
        known = positions >= 0
        contacts[known] = self.interactions_.contact_ids[positions[known]]
        return self.shares_[self._groups_of(contacts)].astype(np.float32)

    @property
    def _reason(self) -> str:
        return POPULAR
