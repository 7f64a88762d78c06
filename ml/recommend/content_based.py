"""What is like what a contact has bought."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ml.dataset import InteractionMatrix
from ml.recommend.content import content_vectors, nearest_of_vectors
from ml.recommend.item_weights import ItemWeightsRecommender

SIMILAR = "similar"
"""Reason: name and attributes are like those of what the contact bought."""


class ContentRecommender(ItemWeightsRecommender):
    """Products whose names and attributes are like those bought; reaches products that nobody has bought yet.

    The score of j is the sum over products i bought of the cosine of their TF-IDF vectors (see
    `ml.recommend.content`), each times the weight of its age. `fit` needs a catalogue, else it raises ValueError.

    Args:
        neighbours: how many similar products each product keeps.
        half_life: days in which a purchase loses half its weight; None weighs all alike.
    """

    def __init__(self, neighbours: int = 50, half_life: float | None = 60.0) -> None:
        self.neighbours = neighbours
        self.half_life = half_life

    def _validate(self) -> None:
        if self.neighbours < 1:
            raise ValueError("neighbours must be 1 or more")

    def _fit(self, interactions: InteractionMatrix) -> None:
        if self.catalogue_ is None:
            raise ValueError("ContentRecommender needs a catalogue; give one to fit")
        vectors = content_vectors(self.catalogue_, interactions.product_ids)
        n_products = interactions.shape[1]
        if vectors.shape[1]:  # pyright: ignore[reportOptionalSubscript]
            self.weights_ = nearest_of_vectors(vectors, self.neighbours)
        else:
            self.weights_ = sparse.csr_matrix((n_products, n_products), dtype=np.float32)

    @property
    def _reason(self) -> str:
        return SIMILAR
