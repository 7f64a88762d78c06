"""Matrix factorisation for purchases, which say what people like and never what they don't."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ml.dataset import InteractionMatrix
from ml.recommend.base import Recommender

TASTE = "taste"
"""Reason: those with a similar taste buy it."""


class ALSRecommender(Recommender):
    """Matrix factorisation by alternating least squares on implicit feedback.

    Vectors x_u of contacts and y_i of products minimise
    sum c_ui (p_ui - x_u . y_i)^2 + regularisation (sum |x_u|^2 + sum |y_i|^2), with p_ui 1 where u bought i, else
    0, and confidence c_ui = 1 + alpha r_ui (Hu, Koren and Volinsky, Collaborative filtering for implicit feedback
    datasets, ICDM 2008); r_ui is the weight of the pair's age. Solved by the library `implicit`, by conjugate
    gradients.

    Args:
        factors: length of the vectors.
        alpha: how much surer a purchase is than none, above 0.
        regularisation: above 0.
        iterations: passes over both sides.
        half_life: days in which a purchase loses half its confidence and its part in popularity; None weighs all alike.
        n_jobs: threads of the fit; None takes all cores.
        seed: of the vectors' first values.

    Attributes:
        contact_vectors_: (n_contacts, factors) float32.
        product_vectors_: (n_products, factors) float32; zeros for products that nobody bought.
    """

    def __init__(
        self,
        factors: int = 64,
        alpha: float = 4.0,
        regularisation: float = 15.0,
        iterations: int = 10,
        half_life: float | None = 60.0,
        n_jobs: int | None = None,
        seed: int = 0,
    ) -> None:
        self.factors = factors
        self.alpha = alpha
        self.regularisation = regularisation
        self.iterations = iterations
        self.half_life = half_life
        self.n_jobs = n_jobs
        self.seed = seed

    def _validate(self) -> None:
        if self.factors < 1 or self.iterations < 1 or not self.alpha > 0 or not self.regularisation > 0:
            raise ValueError("factors and iterations must be 1 or more, alpha and regularisation above 0")

    def _fit(self, interactions: InteractionMatrix) -> None:
        n_contacts, n_products = interactions.shape
        self.contact_vectors_ = np.zeros((n_contacts, self.factors), dtype=np.float32)
        self.product_vectors_ = np.zeros((n_products, self.factors), dtype=np.float32)
        if not len(interactions.indices):
            return
        # its import takes a while, and reads BLAS's settings
        with threadpool_limits(1, "blas"):
            from implicit.cpu.als import AlternatingLeastSquares

            model: Any = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.regularisation,
                alpha=self.alpha,
                iterations=self.iterations,
                num_threads=self.n_jobs or os.cpu_count() or 1,
                random_state=self.seed,
            )
            model.fit(interactions.weights(self.half_life), show_progress=False)
        self.contact_vectors_ = np.asarray(model.user_factors, dtype=np.float32)
        self.product_vectors_ = np.asarray(model.item_factors, dtype=np.float32)
        # nobody bought them, so what is left there is where the search began
        self.product_vectors_[np.bincount(interactions.indices, minlength=n_products) == 0] = 0.0

    def _affinities(self, positions: np.ndarray) -> np.ndarray | None:
        vectors = self.contact_vectors_[np.maximum(positions, 0)] if len(self.contact_vectors_) else None
        if vectors is None:
            return None
        vectors[positions < 0] = 0.0
        return vectors @ self.product_vectors_.T

    def _pull(self, bought: np.ndarray, found: np.ndarray) -> np.ndarray | None:
        lengths = np.linalg.norm(self.product_vectors_, axis=1, keepdims=True)
        unit = self.product_vectors_ / np.where(lengths > 0, lengths, 1.0)
        pull = np.empty(len(bought), dtype=np.float32)
        for first in range(0, len(bought), 100_000):
            part = slice(first, first + 100_000)
            pull[part] = np.einsum("ij,ij->i", unit[bought[part]], unit[found[part]])
        return pull

    @property
    def _reason(self) -> str:
        return TASTE
