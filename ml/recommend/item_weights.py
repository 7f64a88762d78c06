"""Recommenders whose score is a contact's purchases times weights between products."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ml.recommend.base import Recommender


class ItemWeightsRecommender(Recommender):
    """A linear model over products: the score of j is the sum of weights_ij over the products i bought.

    Attributes:
        weights_: (n_products, n_products) CSR float32, row i: what having bought i says about each j; no diagonal.
    """

    weights_: sparse.csr_matrix

    def _history(self, positions: np.ndarray) -> sparse.csr_matrix:
        """(n, n_products) what each contact bought, weighted."""
        return self.interactions_.rows(positions, self._half_life)

    def _affinities(self, positions: np.ndarray) -> np.ndarray | None:
        scores: Any = self._history(positions) @ self.weights_
        return scores.toarray()

    def _pull(self, bought: np.ndarray, found: np.ndarray) -> np.ndarray | None:
        if not self.weights_.nnz:
            return None
        return np.asarray(self.weights_[bought, found], dtype=np.float32).ravel()

    def _largest_pull(self) -> float:
        return float(np.abs(self.weights_.data).max(initial=0.0))
