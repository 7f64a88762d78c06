"""What all recommenders have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator

import numpy as np
import polars as pl
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ml.dataset import InteractionMatrix

RECOMMENDATION_SCHEMA = pl.Schema(
    {
        "contact_id": pl.Int64(),
        "rank": pl.UInt16(),
        "product_id": pl.String(),
        "score": pl.Float64(),
        "reason": pl.String(),
    }
)
"""What `recommend` returns: a row a contact and rank, rank 1 is best, scores never rise with the rank."""

POPULAR = "popular"
"""Reason: many buy it; nothing of the contact's own spoke for another product."""

_CELLS = 8_000_000  # dense scores held at a time: 32 MB


class Recommender(BaseEstimator, ABC):
    """An estimator that ranks products for contacts.

    Subclasses set `interactions_` (an `InteractionMatrix`) and `popular_` in `fit`, and say in `_affinities`
    what speaks for a product. Products for which nothing speaks follow in the order of `popular_`, score 0.

    Attributes:
        interactions_: what was learnt from.
        popular_: (n_products,) positions of the products, most popular first.
    """

    interactions_: InteractionMatrix
    popular_: np.ndarray

    @abstractmethod
    def fit(self, interactions: pl.DataFrame, y: None = None) -> Recommender:
        """Learn from interactions (see `ml.dataset`). Without any, `recommend` returns no rows.

        Args:
            interactions: contact_id, product_id, ordered_at and quantity.
            y: not used; for scikit-learn's sake.
        """

    @abstractmethod
    def _affinities(self, history: sparse.csr_matrix) -> np.ndarray | None:
        """(n, n_products) float32 scores for rows of the interaction matrix, above 0 where something speaks
        for the product; None if nothing ever does."""

    @property
    @abstractmethod
    def _reason(self) -> str:
        """Why a product with an affinity is recommended."""

    def recommend(
        self,
        contact_ids: Collection[int] | np.ndarray | pl.Series,
        k: int = 10,
        *,
        exclude_bought: bool = True,
        candidates: Collection[str] | None = None,
    ) -> pl.DataFrame:
        """The k best products for each contact.

        Args:
            contact_ids: distinct contacts; those without interactions get what is popular.
            k: products a contact, 1 to 1,000. Fewer come back where there are not so many.
            exclude_bought: leave out what the contact bought in the interactions learnt from.
            candidates: recommend only these products, such as those in stock; None allows all.

        Returns:
            A frame of `RECOMMENDATION_SCHEMA`, contacts in the order given.

        Raises:
            ValueError: k is out of range, or a contact is given twice.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        frames = list(
            self.recommend_batches(contact_ids, k, exclude_bought=exclude_bought, candidates=candidates)
        )
        return pl.concat(frames) if frames else RECOMMENDATION_SCHEMA.to_frame()

    def recommend_batches(
        self,
        contact_ids: Collection[int] | np.ndarray | pl.Series,
        k: int = 10,
        *,
        exclude_bought: bool = True,
        candidates: Collection[str] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """`recommend` a chunk of contacts at a time, in bounded memory; the same rows in the same order."""
        check_is_fitted(self, "interactions_")
        if not 1 <= k <= 1_000:
            raise ValueError("k must be between 1 and 1,000")
        contacts = np.asarray(list(contact_ids) if isinstance(contact_ids, (set, frozenset)) else contact_ids)
        contacts = contacts.astype(np.int64)
        if len(np.unique(contacts)) != len(contacts):
            raise ValueError("a contact is given twice")
        n_products = self.interactions_.shape[1]
        if not n_products:
            return
        # minus the place in the order of popularity: below every affinity, and different for each product
        by_popularity = np.empty(n_products, dtype=np.float32)
        by_popularity[self.popular_] = -np.arange(1, n_products + 1, dtype=np.float32)
        refused = None
        if candidates is not None:
            refused = ~np.isin(
                self.interactions_.product_ids.astype(str), np.array(sorted(candidates), dtype=str)
            )
        rows = max(1, _CELLS // n_products)
        for first in range(0, len(contacts), rows):
            chunk = contacts[first : first + rows]
            history = self.interactions_.rows(self.interactions_.rows_of(chunk))
            affinities = self._affinities(history)
            if affinities is None:
                keys = np.tile(by_popularity, (len(chunk), 1))
            else:
                keys = np.where(affinities > 0, affinities, by_popularity)
            if exclude_bought:
                bought = history.tocoo()
                keys[bought.row[bought.data > 0], bought.col[bought.data > 0]] = -np.inf
            if refused is not None:
                keys[:, refused] = -np.inf
            yield self._best(chunk, keys, k)

    def _best(self, contacts: np.ndarray, keys: np.ndarray, k: int) -> pl.DataFrame:
        n_products = keys.shape[1]
        if k < n_products:
            top = np.argpartition(keys, n_products - k, axis=1)[:, n_products - k :]
            # where equals lie on both sides of the limit, the partition chose between them at will
            limit = np.take_along_axis(keys, top, axis=1).min(axis=1, keepdims=True)
            tied = np.isfinite(limit[:, 0]) & ((keys >= limit).sum(axis=1) > k)
            top[tied] = np.argsort(-keys[tied], axis=1, kind="stable")[:, :k]
        else:
            top = np.tile(np.arange(n_products), (len(contacts), 1))
        top_keys = np.take_along_axis(keys, top, axis=1)
        # columns are in order of popularity, so of equals the more popular comes first
        order = np.lexsort((top, -top_keys), axis=1)
        top = np.take_along_axis(top, order, axis=1)
        top_keys = np.take_along_axis(top_keys, order, axis=1).ravel()
        width = top.shape[1]
        frame = pl.DataFrame(
            {
                "contact_id": np.repeat(contacts, width),
                "rank": np.tile(np.arange(1, width + 1, dtype=np.uint16), len(contacts)),
                "product_id": pl.Series(self.interactions_.product_ids, dtype=pl.String).gather(top.ravel()),
                "score": np.maximum(top_keys, 0.0).astype(np.float64),
                "reason": np.where(top_keys > 0, self._reason, POPULAR).astype(object),
            },
            schema=RECOMMENDATION_SCHEMA,
        )
        return frame.filter(pl.Series(np.isfinite(top_keys)))
