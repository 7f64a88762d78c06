"""A linear model over products, solved in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg.lapack import spotrf, spotri  # pyright: ignore[reportAttributeAccessIssue]
from threadpoolctl import threadpool_limits

from ml.dataset import InteractionMatrix
from ml.recommend.item_to_item import BOUGHT_TOGETHER
from ml.recommend.item_weights import ItemWeightsRecommender

_BLOCK = 512
_SMALL = 4_000


class EASERecommender(ItemWeightsRecommender):
    """EASE: the linear model that best predicts each product of a contact from its others.

    With X the (n_contacts, n_products) 0/1 matrix of who bought what, the weights B minimise
    ||X - XB||^2 + lambda ||B||^2 with diag(B) = 0. With P = (X'X + lambda I)^-1 they are B_ij = -P_ij / P_jj
    (Steck, Embarrassingly shallow autoencoders for sparse data, WWW 2019, equation 8). A contact's score for j is the
    sum of B_ij over the products i bought, each times the weight of its age.

    The matrix is inverted in place by Cholesky in float32: 4 n^2 bytes for n products, 400 MB for 10,000, and n^3
    multiplications, some tens of seconds for 10,000 on two cores.

    Args:
        regularisation: lambda, in multiples of the mean number of buyers of a product; above 0.
        neighbours: how many weights each product keeps, the largest by amount.
        half_life: days in which a purchase loses half its weight in a contact's score and in popularity; None
            weighs all alike. The weights are learnt from every purchase alike.
        max_products: learn about the most bought products only; others have no weights.
    """

    def __init__(
        self,
        regularisation: float = 10.0,
        neighbours: int = 200,
        half_life: float | None = 60.0,
        max_products: int = 12_000,
    ) -> None:
        self.regularisation = regularisation
        self.neighbours = neighbours
        self.half_life = half_life
        self.max_products = max_products

    def _validate(self) -> None:
        if not self.regularisation > 0 or self.neighbours < 1 or self.max_products < 1:
            raise ValueError("regularisation must be above 0, neighbours and max_products 1 or more")

    def _fit(self, interactions: InteractionMatrix) -> None:
        n_products = interactions.shape[1]
        # columns are in order of popularity
        bought: Any = interactions.weights()
        of_products: Any = bought.T.tocsr()
        n = min(self.max_products, int(np.count_nonzero(np.diff(of_products.indptr))))
        if not n:
            self.weights_ = sparse.csr_matrix((n_products, n_products), dtype=np.float32)
            return
        gram = _gram(of_products[:n])
        diagonal = gram.diagonal()
        gram[np.diag_indices(n)] = diagonal + self.regularisation * diagonal.mean()
        # threads of BLAS wait for each other in a loop, which costs more than a small matrix has to share
        with threadpool_limits(1 if n < _SMALL else None, "blas"):
            inverse = _inverse(gram)
        self.weights_ = self._largest(inverse, n_products)

    def _largest(self, inverse: np.ndarray, n_products: int) -> sparse.csr_matrix:
        """The weights of largest amount in each row, rows and columns of products left out being empty."""
        n = len(inverse)
        count = min(self.neighbours, n - 1)
        diagonal = inverse.diagonal().copy()
        values, columns = np.zeros((n, count), dtype=np.float32), np.zeros((n, count), dtype=np.int32)
        for first in range(0, n if count else 0, _BLOCK):
            rows = inverse[first : first + _BLOCK] / -diagonal
            rows[np.arange(len(rows)), np.arange(first, first + len(rows))] = 0.0
            nearest = np.argpartition(-np.abs(rows), count - 1, axis=1)[:, :count]
            nearest.sort(axis=1)
            columns[first : first + len(rows)] = nearest
            values[first : first + len(rows)] = np.take_along_axis(rows, nearest, axis=1)
        indptr = np.minimum(np.arange(n_products + 1), n) * count
        return sparse.csr_matrix((values.ravel(), columns.ravel(), indptr), shape=(n_products, n_products))

    @property
    def _reason(self) -> str:
        return BOUGHT_TOGETHER


def _gram(of_products: Any) -> np.ndarray:
    """(n, n) float32 contacts who bought both products, of a CSR (n, n_contacts) of ones; a block at a time."""
    n = of_products.shape[0]
    of_contacts = of_products.T.tocsr()
    gram = np.empty((n, n), dtype=np.float32)
    for first in range(0, n, _BLOCK):
        (of_products[first : first + _BLOCK] @ of_contacts).toarray(out=gram[first : first + _BLOCK])
    return gram


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a symmetric positive definite matrix, written into it.

    Raises:
        ValueError: in float32 it is not positive definite: more regularisation is needed.
    """
    # LAPACK counts columns first: of a symmetric matrix the transposed view is the same, and is not copied
    factor, info = spotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
    if info == 0:
        factor, info = spotri(factor, lower=1, overwrite_c=1)
    if info:
        raise ValueError("EASE: the matrix of co-purchases cannot be inverted; raise regularisation")
    inverse = factor.T  # upper triangle, in the memory of `matrix`
    for first in range(0, len(inverse), _BLOCK):
        last = first + _BLOCK
        inverse[last:, first:last] = inverse[first:last, last:].T
        corner = inverse[first:last, first:last]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
    return inverse
