"""Interactions of contacts with products, as sparse matrices."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl
from scipy import sparse

INTERACTION_COLUMNS = ("contact_id", "product_id", "ordered_at", "quantity")
"""What an interactions frame has: Int64, String, Datetime and any number; a row is a line of an order."""


def validated_interactions(interactions: pl.DataFrame) -> pl.DataFrame:
    """The columns of an interactions frame, in order and with their types.

    Args:
        interactions: contact_id (integers), product_id (text), ordered_at (times) and quantity (numbers
            above 0); other columns are dropped.

    Raises:
        ValueError: a column is missing, has another type or holds nulls, or a quantity is not above 0.
    """
    missing = [name for name in INTERACTION_COLUMNS if name not in interactions.columns]
    if missing:
        raise ValueError(
            f"interactions lack {', '.join(missing)}; they need columns {', '.join(INTERACTION_COLUMNS)}"
        )
    frame = interactions.select(INTERACTION_COLUMNS)
    if not frame.height:
        return frame.cast(
            {
                "contact_id": pl.Int64,
                "product_id": pl.String,
                "ordered_at": pl.Datetime("ms", "UTC"),
                "quantity": pl.Float64,
            }
        )
    schema = frame.schema
    for name, is_right, wanted in (
        ("contact_id", schema["contact_id"].is_integer(), "integers"),
        ("product_id", schema["product_id"] in (pl.String, pl.Categorical, pl.Enum), "texts"),
        ("ordered_at", schema["ordered_at"] == pl.Datetime, "times"),
        ("quantity", schema["quantity"].is_numeric(), "numbers"),
    ):
        if not is_right:
            raise ValueError(f"interactions: {name} must hold {wanted}, not {schema[name]}")
        if nulls := frame[name].null_count():
            raise ValueError(f"interactions: {name} is null in {nulls} rows; drop them first")
    frame = frame.with_columns(
        pl.col("contact_id").cast(pl.Int64),
        pl.col("product_id").cast(pl.String),
        pl.col("quantity").cast(pl.Float64),
        _in_utc(schema["ordered_at"]).alias("ordered_at"),
    )
    if not frame["quantity"].is_finite().all() or not (frame["quantity"] > 0).all():
        raise ValueError("interactions: quantity must be a number above 0; leave out cancelled lines")
    return frame


def _in_utc(dtype: pl.DataType) -> pl.Expr:
    column = pl.col("ordered_at")
    is_naive = getattr(dtype, "time_zone", None) is None
    column = column.dt.replace_time_zone("UTC") if is_naive else column.dt.convert_time_zone("UTC")
    return column.dt.cast_time_unit("ms")


@dataclass(frozen=True)
class InteractionMatrix:
    """Contacts x products, sparse.

    Attributes:
        contact_ids: (n_contacts,) int64, ascending.
        product_ids: (n_products,) text, most bought first (by distinct contacts; ties by product_id).
        weights: (n_contacts, n_products) CSR float32; above 0 where the contact bought the product.
    """

    contact_ids: np.ndarray
    product_ids: np.ndarray
    weights: sparse.csr_matrix

    @classmethod
    def from_interactions(
        cls,
        interactions: pl.DataFrame,
        *,
        half_life: timedelta | None = None,
        products: Collection[str] | None = None,
    ) -> InteractionMatrix:
        """Count what was bought, each contact and product once.

        Args:
            interactions: see `validated_interactions`.
            half_life: the weight of a purchase halves with each such time before the newest interaction; the
                newest purchase of a pair counts. None weighs all 1.
            products: leave out all others; None keeps all.
        """
        frame = validated_interactions(interactions)
        if products is not None:
            frame = frame.filter(pl.col("product_id").is_in(list(products)))
        pairs = frame.group_by("contact_id", "product_id").agg(pl.col("ordered_at").max())
        ranked = (
            pairs.group_by("product_id")
            .len()
            .sort(["len", "product_id"], descending=[True, False])
            .with_row_index("column")
        )
        contacts = pairs.select(pl.col("contact_id").unique().sort()).with_row_index("row")
        pairs = pairs.join(ranked, on="product_id").join(contacts, on="contact_id").sort("row", "column")
        if half_life is None or not pairs.height:
            weights = np.ones(pairs.height, dtype=np.float32)
        else:
            if half_life <= timedelta(0):
                raise ValueError("half_life must be longer than nothing")
            time = pl.col("ordered_at")
            newest = frame["ordered_at"].max()
            age = pairs.select((pl.lit(newest) - time).dt.total_milliseconds()).to_series().to_numpy()
            halvings = age / (half_life / timedelta(milliseconds=1))
            # beyond 60 halvings a weight would vanish, and with it the fact of the purchase
            weights = np.exp2(-np.minimum(halvings, 60)).astype(np.float32)
        matrix = sparse.csr_matrix(
            (weights, (pairs["row"].to_numpy(), pairs["column"].to_numpy())),
            shape=(contacts.height, ranked.height),
            dtype=np.float32,
        )
        return cls(contacts["contact_id"].to_numpy(), ranked["product_id"].to_numpy().astype(object), matrix)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_contacts, n_products)."""
        return len(self.contact_ids), len(self.product_ids)

    def rows_of(self, contact_ids: np.ndarray) -> np.ndarray:
        """(n,) row of each contact, -1 for a contact without interactions."""
        if not len(self.contact_ids):
            return np.full(len(contact_ids), -1, dtype=np.int64)
        position = np.minimum(np.searchsorted(self.contact_ids, contact_ids), len(self.contact_ids) - 1)
        return np.where(self.contact_ids[position] == contact_ids, position, -1)

    def rows(self, positions: np.ndarray) -> sparse.csr_matrix:
        """(n, n_products) weights of the rows at the positions; an empty row for -1."""
        known = positions >= 0
        if not self.shape[0]:
            return sparse.csr_matrix((len(positions), self.shape[1]), dtype=np.float32)
        filled = self.weights[positions[known]]
        # columns stay in their order: sums in another order differ in the last digit
        lengths = np.zeros(len(positions), dtype=np.int64)
        lengths[known] = np.diff(filled.indptr)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        return sparse.csr_matrix((filled.data, filled.indices, indptr), shape=(len(positions), self.shape[1]))
