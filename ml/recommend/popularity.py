"""What most people buy."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
from scipy import sparse

from ml.dataset import InteractionMatrix
from ml.recommend.base import POPULAR, Recommender


def popularity(interactions: InteractionMatrix) -> np.ndarray:
    """(n_products,) sum of the weights of a product's buyers: each contact counts once, recent ones more."""
    return np.asarray(interactions.weights.sum(axis=0), dtype=np.float64).ravel()


def by_popularity(interactions: InteractionMatrix) -> np.ndarray:
    """(n_products,) positions of the products, most popular first; of equals, the one with more buyers."""
    return np.argsort(-popularity(interactions), kind="stable")


class PopularityRecommender(Recommender):
    """The same products for everybody: those with most buyers, recent buyers counting more.

    Args:
        half_life: days in which a purchase loses half its weight; None weighs all alike.

    Attributes:
        popularity_: (n_products,) weighted buyers of each product.
    """

    def __init__(self, half_life: float | None = None) -> None:
        self.half_life = half_life

    def fit(self, interactions: pl.DataFrame, y: None = None) -> PopularityRecommender:  # noqa: ARG002
        half_life = None if self.half_life is None else timedelta(days=self.half_life)
        self.interactions_ = InteractionMatrix.from_interactions(interactions, half_life=half_life)
        self.popularity_ = popularity(self.interactions_)
        self.popular_ = by_popularity(self.interactions_)
        return self

    def _affinities(self, history: sparse.csr_matrix) -> np.ndarray | None:
        scores = self.popularity_.astype(np.float32)
        return np.tile(scores, (len(history.indptr) - 1, 1))

    @property
    def _reason(self) -> str:
        return POPULAR
