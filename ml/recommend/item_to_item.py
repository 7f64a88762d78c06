"""What goes with what a contact has bought."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from ml.dataset import InteractionMatrix
from ml.recommend.base import Recommender
from ml.recommend.popularity import by_popularity

BOUGHT_TOGETHER = "bought_together"
"""Reason: those who bought what the contact bought, bought this too."""


_BLOCK = 1024
"""Products whose neighbours are found at a time."""


class ItemToItemRecommender(Recommender):
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
    one month of Online Retail; docs/campaigns.md has the figures of the last.

    Args:
        damping: see above, 0 to 1.
        shrinkage: see above, in contacts, 0 or more.
        neighbours: how many similar products each product keeps.
        half_life: days in which a purchase loses half its weight in a contact's score and in popularity; None
            weighs all alike. Similarities count every purchase fully.

    Attributes:
        similarities_: (n_products, n_products) CSR float32, row i: s_ij of the nearest j; no diagonal.
    """

    def __init__(
        self,
        damping: float = 0.3,
        shrinkage: float = 30.0,
        neighbours: int = 30,
        half_life: float | None = 60.0,
    ) -> None:
        self.damping = damping
        self.shrinkage = shrinkage
        self.neighbours = neighbours
        self.half_life = half_life

    def fit(self, interactions: pl.DataFrame, y: None = None) -> ItemToItemRecommender:  # noqa: ARG002
        if not 0 <= self.damping <= 1 or self.shrinkage < 0 or self.neighbours < 1:
            raise ValueError("damping must be 0 to 1, shrinkage 0 or more, neighbours 1 or more")
        half_life = None if self.half_life is None else timedelta(days=self.half_life)
        self.interactions_ = InteractionMatrix.from_interactions(interactions, half_life=half_life)
        self.popular_ = by_popularity(self.interactions_)
        bought = sparse.csr_matrix(self.interactions_.weights, dtype=np.float32, copy=True)
        bought.data = np.ones_like(bought.data)
        self.similarities_ = self._similarities(bought)
        return self

    def _similarities(self, bought: sparse.csr_matrix) -> sparse.csr_matrix:
        """The nearest of each product, a block of products at a time: all pairs at once may be billions."""
        of_products: Any = bought.T.tocsr()
        buyers = np.asarray(bought.sum(axis=0), dtype=np.float64).ravel()
        # per product: what its buyers divide by, as the one bought and as the one recommended
        as_bought, as_found = buyers**self.damping, buyers ** (1 - self.damping)
        blocks = []
        for first in range(0, len(buyers), _BLOCK):
            together: Any = sparse.csr_matrix(of_products[first : first + _BLOCK] @ bought)
            row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
            count = together.data.astype(np.float64)
            similarity = count / (as_bought[first + row] * as_found[together.indices])
            together.data = (similarity * count / (count + self.shrinkage)).astype(np.float32)
            together.data[together.indices == first + row] = 0.0
            blocks.append(_largest_of_rows(together, row, self.neighbours))
        if not blocks:
            return sparse.csr_matrix((0, 0), dtype=np.float32)
        return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))

    def _affinities(self, history: sparse.csr_matrix) -> np.ndarray | None:
        scores: Any = history @ self.similarities_
        return scores.toarray()

    @property
    def _reason(self) -> str:
        return BOUGHT_TOGETHER


def _largest_of_rows(matrix: Any, rows: np.ndarray, count: int) -> sparse.csr_matrix:
    """The `count` largest values above 0 of each row; of equals, the column further left.

    One sort of one integer a value: row, then the value from large to small, then the column. The bits of
    floating point numbers that are not negative are in the order of the numbers.

    Args:
        matrix: CSR float32, no value below 0, at most `_BLOCK` rows and 2**22 columns.
        rows: the row of each stored value.
        count: how many to keep.
    """
    width = max(1, matrix.shape[1] - 1).bit_length()
    falling = np.uint64(0xFFFF_FFFF) - matrix.data.view(np.uint32)
    keys = (rows.astype(np.uint64) << np.uint64(32 + width)) | (falling << np.uint64(width))
    keys |= matrix.indices.astype(np.uint64)
    keys.sort()
    place = np.arange(len(keys)) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    keys = keys[place < count]
    values = np.uint64(0xFFFF_FFFF) - ((keys >> np.uint64(width)) & np.uint64(0xFFFF_FFFF))
    values = values.astype(np.uint32).view(np.float32)
    row = (keys >> np.uint64(32 + width)).astype(np.int64)
    column = (keys & np.uint64((1 << width) - 1)).astype(np.int64)
    above = values > 0
    return sparse.csr_matrix((values[above], (row[above], column[above])), shape=matrix.shape)
