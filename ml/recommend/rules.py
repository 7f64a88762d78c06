"""What may be recommended, and how varied a list has to be: rules of the business, not of a model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl
from scipy import sparse


@dataclass(frozen=True)
class Rules:
    """Rules that every list keeps, whatever model ranks it.

    Attributes:
        exclude_bought: True leaves out what the contact bought in the interactions learnt from, False nothing; a
            time leaves out what it bought within that time (counted back from `InteractionMatrix.until`).
        candidates: recommend only these products, such as those in stock; None allows all.
        per_category: at most so many products of one category of the catalogue; products without category are not
            counted. None sets no limit.
        diversity: 0 ranks by score alone, 1 by difference alone: maximal marginal relevance (Carbonell and
            Goldstein, The use of MMR, SIGIR 1998). The next product is the one with most of
            (1 - diversity) * score / best score of the list - diversity * likeness to the nearest one already on it,
            likeness being the cosine of names and attributes.
        pool: how many of the best the last two rules choose from. A list gets shorter if they leave fewer than k.
    """

    exclude_bought: bool | timedelta = True
    candidates: Collection[str] | None = None
    per_category: int | None = None
    diversity: float = 0.0
    pool: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1:
            raise ValueError("diversity must be 0 to 1")
        if self.per_category is not None and self.per_category < 1:
            raise ValueError("per_category must be at least 1, or None")
        if isinstance(self.exclude_bought, timedelta) and self.exclude_bought <= timedelta(0):
            raise ValueError("exclude_bought must be longer than nothing, or False")
        if self.pool < 1:
            raise ValueError("pool must be at least 1")

    @property
    def reranks(self) -> bool:
        """Whether a list needs more than the best scores."""
        return self.per_category is not None or self.diversity > 0

    def excludes(self, ages: np.ndarray) -> np.ndarray:
        """Bool, of the ages' shape: whether a pair bought so many days ago is left out."""
        if isinstance(self.exclude_bought, timedelta):
            return ages < self.exclude_bought / timedelta(days=1)
        return np.full(np.shape(ages), bool(self.exclude_bought))

    def unmasked(self, relevant: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
        """Of what contacts bought later, what a model that learnt from `train` may recommend.

        Args:
            relevant: contact_id and product_id.
            train: interactions learnt from.
        """
        if self.candidates is not None:
            relevant = relevant.filter(pl.col("product_id").is_in(list(self.candidates)))
        if self.exclude_bought is False or not train.height:
            return relevant
        bought = train
        if isinstance(self.exclude_bought, timedelta):
            bought = train.filter(pl.col("ordered_at") > pl.col("ordered_at").max() - self.exclude_bought)
        return relevant.join(bought, on=["contact_id", "product_id"], how="anti")

    def rerank(
        self,
        columns: np.ndarray,
        keys: np.ndarray,
        k: int,
        categories: np.ndarray,
        likeness: sparse.csr_matrix | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose k of each row's pool, one after another.

        Args:
            columns: (n, pool) products, best first; -1 fills up.
            keys: (n, pool) their scores, not above 0 where nothing speaks for the product.
            k: how many to choose.
            categories: (n_products,) number of each product's category, -1 for none.
            likeness: (n_products, n_products) CSR, 0 to 1; needed for diversity.

        Returns:
            Columns and keys, (n, at most k), in the order chosen.
        """
        n, pool = columns.shape
        rows = np.arange(n)
        best = np.maximum(keys[:, :1], 0.0)
        # what nothing speaks for keeps its order of popularity, below all else
        relevance = np.where(
            keys > 0, keys / np.where(best > 0, best, 1.0), 1e-3 * keys / (1.0 + np.abs(keys))
        )
        relevance[columns < 0] = -np.inf
        nearest = np.zeros((n, pool), dtype=np.float64)
        of_pool = np.where(columns >= 0, categories[np.maximum(columns, 0)], -1)
        is_taken = columns < 0
        taken_columns, taken_keys = [], []
        for _ in range(min(k, pool)):
            value = (1 - self.diversity) * relevance - self.diversity * nearest
            value[is_taken] = -np.inf
            chosen = value.argmax(axis=1)
            is_possible = np.isfinite(value[rows, chosen])
            if not is_possible.any():
                break
            column = np.where(is_possible, columns[rows, chosen], -1)
            taken_columns.append(column)
            taken_keys.append(np.where(is_possible, keys[rows, chosen], -np.inf))
            is_taken[rows[is_possible], chosen[is_possible]] = True
            if self.per_category is not None:
                so_far = np.stack(
                    [np.where(c >= 0, categories[np.maximum(c, 0)], -1) for c in taken_columns], axis=1
                )
                count = (so_far == so_far[:, -1:]).sum(axis=1)
                is_full = (count >= self.per_category) & (so_far[:, -1] >= 0)
                is_taken |= is_full[:, None] & (of_pool == so_far[:, -1:])
            if self.diversity > 0 and likeness is not None:
                pairs_i = np.repeat(np.maximum(column, 0), pool)
                alike = np.asarray(likeness[pairs_i, np.maximum(columns, 0).ravel()]).reshape(n, pool)
                np.maximum(nearest, np.where(is_possible[:, None], alike, 0.0), out=nearest)
        if not taken_columns:
            return np.full((n, 0), -1), np.zeros((n, 0))
        return np.stack(taken_columns, axis=1), np.stack(taken_keys, axis=1)
