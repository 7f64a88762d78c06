"""What goes with what a contact has bought."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy import sparse

from ml.dataset import InteractionMatrix
from ml.recommend.item_weights import ItemWeightsRecommender
from ml.recommend.topk import best_of_rows

BOUGHT_TOGETHER = "bought_together"
"""Reason: those who bought what the contact bought, bought this too."""

_CELLS = 8_000_000  # pairs of products held at a time


class ItemToItemRecommender(ItemWeightsRecommender):
    """Item-to-item collaborative filtering on co-purchase, filled up with what is popular.

    With c_ij the contacts who bought both i and j, and n_i = c_ii those who bought i, two products
    are as similar as

        s_ij = c_ij / (n_i^damping * n_j^(1 - damping)) * c_ij / (c_ij + shrinkage)

    for i bought and j to be recommended. damping 1/2 is the cosine (Sarwar et al., Item-based collaborative
    filtering recommendation algorithms, WWW 2001); nearer to 1 it is the conditional probability of j given i
    (Deshpande and Karypis, Item-based top-N recommendation algorithms, ACM TOIS 22(1), 2004), which favours
    popular products; nearer to 0 it favours special ones. Shrinkage draws similarities that rest on few
    contacts to 0 (Koren, Factor in the neighbors, ACM TKDD 4(1), 2010). A contact's score for j is the sum of
    s_ij over the products i bought, each times the weight of its age. The defaults did best on the last but
    one month of Online Retail; docs/recommendations.md has the figures of the last.

    With similarity "jaccard", c_ij / (n_i + n_j - c_ij), and repeats, this is what is known as SAR, the smart adaptive
    recommendations of Microsoft's Recommenders: affinities decay with time, and each purchase adds its own.

    Args:
        similarity: "damped" as above, or "jaccard" (times the same shrinkage).
        damping: see above, 0 to 1; of "damped" only.
        shrinkage: see above, in contacts, 0 or more.
        neighbours: how many similar products each product keeps.
        half_life: days in which a purchase loses half its weight in a contact's score and in popularity; None
            weighs all alike. Similarities count every purchase fully.
        repeats: whether all purchases of a product add to what it says, each by its age, or the newest alone counts.

    Attributes:
        weights_: (n_products, n_products) CSR float32, row i: s_ij of the nearest j; no diagonal.
    """

    def __init__(
        self,
        similarity: Literal["damped", "jaccard"] = "damped",
        damping: float = 0.3,
        shrinkage: float = 30.0,
        neighbours: int = 30,
        half_life: float | None = 60.0,
        repeats: bool = False,
    ) -> None:
        self.similarity = similarity
        self.damping = damping
        self.shrinkage = shrinkage
        self.neighbours = neighbours
        self.half_life = half_life
        self.repeats = repeats

    def _validate(self) -> None:
        if not 0 <= self.damping <= 1 or self.shrinkage < 0 or self.neighbours < 1:
            raise ValueError("damping must be 0 to 1, shrinkage 0 or more, neighbours 1 or more")
        if self.similarity not in ("damped", "jaccard"):
            raise ValueError("similarity must be damped or jaccard")

    def _fit(self, interactions: InteractionMatrix) -> None:
        self.affinities_ = interactions.repeated_weights(self.half_life) if self.repeats else None
        self.weights_ = self._similarities(interactions.weights())

    def _history(self, positions: np.ndarray) -> sparse.csr_matrix:
        return self.interactions_.rows(positions, self.half_life, self.affinities_)

    def _similarities(self, bought: sparse.csr_matrix) -> sparse.csr_matrix:
        """The nearest of each product, a block of products at a time: all pairs at once may be billions."""
        of_products: Any = bought.T.tocsr()
        n_products = of_products.shape[0]
        # nobody bought a product of the catalogue: it has no similarities, whatever they are divided by
        buyers = np.maximum(np.diff(of_products.indptr), 1).astype(np.float32)
        # per product: what its buyers divide by, as the one bought and as the one recommended
        as_bought, as_found = buyers**self.damping, buyers ** (1 - self.damping)
        size = max(1, min(1024, _CELLS // max(1, n_products)))
        blocks = []
        for first in range(0, n_products, size):
            count = (of_products[first : first + size] @ bought).toarray()
            rows = np.arange(len(count))
            if self.similarity == "jaccard":
                divisor = buyers[first + rows, None] + buyers - count
            else:
                divisor = as_bought[first + rows, None] * as_found
            np.multiply(divisor, count + np.float32(self.shrinkage), out=divisor)
            is_pair = count > 0
            is_pair[rows, first + rows] = False
            similarity = np.full_like(count, -np.inf)
            np.divide(count * count, divisor, out=similarity, where=is_pair)
            columns, values = best_of_rows(similarity, self.neighbours)
            row, place = np.nonzero(columns >= 0)
            blocks.append(
                sparse.csr_matrix(
                    (values[row, place].astype(np.float32), (row, columns[row, place])),
                    shape=(len(count), n_products),
                )
            )
        if not blocks:
            return sparse.csr_matrix((0, 0), dtype=np.float32)
        return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))

    @property
    def _reason(self) -> str:
        return BOUGHT_TOGETHER
