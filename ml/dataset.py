"""Interactions of contacts with products, as sparse matrices."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

INTERACTION_COLUMNS = ("contact_id", "product_id", "ordered_at", "quantity")
"""What an interactions frame has: Int64, String, Datetime and any number; a row is a line of an order."""

DAY_MS = 86_400_000

_MAX_HALVINGS = 60.0
"""Beyond these a weight would vanish, and with it the fact of the purchase."""


def validated_interactions(interactions: pl.DataFrame) -> pl.DataFrame:
    """The columns of an interactions frame, in order and with their types.

    Args:
        interactions: contact_id (integers), product_id (text), ordered_at (times) and quantity (numbers
            above 0); other columns are dropped.

    Raises:
        ValueError: a column is missing, has another type or holds nulls, or a quantity is not above 0.
    """
    frame = _checked(interactions)
    return frame.with_columns(
        pl.col("contact_id").cast(pl.Int64),
        pl.col("product_id").cast(pl.String),
        pl.col("quantity").cast(pl.Float64),
        _in_utc(frame.schema["ordered_at"]).alias("ordered_at"),
    )


def _checked(interactions: pl.DataFrame) -> pl.DataFrame:
    """The columns, checked and not yet cast: of many millions of rows, casts are most of the memory."""
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
    is_right_quantity = frame.select(
        ((pl.col("quantity") > 0) & pl.col("quantity").is_finite()).all()
        if schema["quantity"].is_float()
        else (pl.col("quantity") > 0).all()
    ).item()
    if not is_right_quantity:
        raise ValueError("interactions: quantity must be a number above 0; leave out cancelled lines")
    return frame


def _in_utc(dtype: pl.DataType) -> pl.Expr:
    column = pl.col("ordered_at")
    is_naive = getattr(dtype, "time_zone", None) is None
    column = column.dt.replace_time_zone("UTC") if is_naive else column.dt.convert_time_zone("UTC")
    return column.dt.cast_time_unit("ms")


def decay(ages: np.ndarray, half_life: float | None) -> np.ndarray:
    """float32 2^(-age / half_life), never 0; ones without a half-life.

    Args:
        ages: days, any shape.
        half_life: days, above 0.

    Raises:
        ValueError: half_life is not above 0.
    """
    if half_life is None:
        return np.ones(len(ages), dtype=np.float32)
    if not half_life > 0:
        raise ValueError("half_life must be longer than nothing")
    return np.exp2(-np.minimum(ages / np.float32(half_life), np.float32(_MAX_HALVINGS)), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class InteractionMatrix:
    """Contacts x products, sparse, with when each product was bought.

    A pair is a contact and a product that it bought; pairs lie in CSR order, columns of a row ascending. Half a
    gigabyte for 50 million pairs bought once.

    Attributes:
        contact_ids: (n_contacts,) int64, ascending.
        product_ids: (n_products,) text, most bought first (by distinct contacts; ties by product_id). Products
            of the catalogue that nobody bought come last.
        indptr: (n_contacts + 1,) where each contact's pairs begin.
        indices: (n_pairs,) int32 columns.
        ages: (n_pairs,) float32 days from the pair's newest purchase to `until`.
        purchase_starts: (n_pairs + 1,) where each pair's purchases begin.
        purchase_ages: (n_purchases,) float32 days from each purchase to `until`, oldest first in a pair; lines
            of the same instant are one purchase.
        until: the moment that ages count from; None without interactions.
    """

    contact_ids: np.ndarray
    product_ids: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    ages: np.ndarray
    purchase_starts: np.ndarray
    purchase_ages: np.ndarray
    until: datetime | None

    @classmethod
    def from_interactions(
        cls,
        interactions: pl.DataFrame,
        *,
        products: Collection[str] | None = None,
        until: datetime | None = None,
    ) -> InteractionMatrix:
        """Encode interactions.

        One sort of one integer a row (contact, product, time from high bits to low); with so many contacts and
        products that seconds do not fit 64 bits beside them, times are cut to what fits.

        Args:
            interactions: see `validated_interactions`; product_id as Categorical or Enum saves memory.
            products: of the catalogue, bought or not; those that only `interactions` knows are kept too.
            until: the moment that ages count from, the newest interaction if left out; later purchases count
                as made then.

        Raises:
            ValueError: as `validated_interactions`.
        """
        frame = _checked(interactions)
        contact_ids, rows = _codes_of_integers(frame["contact_id"].to_numpy())
        names, columns = _codes_of_texts(frame["product_id"])
        unbought = sorted(set(products or ()) - set(names.tolist()))
        at = frame.select(_in_utc(frame.schema["ordered_at"]))["ordered_at"].to_physical().to_numpy()
        n_contacts, n_products = len(contact_ids), len(names)
        if not len(rows):
            everything = np.array(unbought, dtype=object)
            none = np.zeros(0, dtype=np.float32)
            return cls(contact_ids, everything, np.zeros(1, np.int32), np.zeros(0, np.int32), none,
                       np.zeros(1, np.int64), none, until)  # fmt: skip
        column_bits = max(1, n_products - 1).bit_length()
        pairs = rows.astype(np.uint64)
        pairs <<= np.uint64(column_bits)
        pairs |= columns
        pairs.sort()
        is_first = np.empty(len(pairs), dtype=bool)
        is_first[0] = True
        np.not_equal(pairs[1:], pairs[:-1], out=is_first[1:])
        buyers = np.bincount(
            (pairs[is_first] & np.uint64((1 << column_bits) - 1)).astype(np.int64), minlength=n_products
        )
        del pairs, is_first
        order = np.lexsort((np.argsort(np.argsort(names.astype(str))), -buyers))
        place = np.empty(n_products, dtype=np.uint64)
        place[order] = np.arange(n_products, dtype=np.uint64)

        newest = int(at.max()) if until is None else int(until.timestamp() * 1_000)
        oldest = min(int(at.min()), newest)
        time_bits = 64 - column_bits - max(1, n_contacts - 1).bit_length()
        unit = max(1_000, -(-(newest - oldest + 1) // (1 << time_bits)))
        time_bits = max(1, ((newest - oldest) // unit).bit_length())
        keys = rows.astype(np.uint64)
        keys <<= np.uint64(column_bits)
        keys |= place[columns]
        keys <<= np.uint64(time_bits)
        # counted back from the newest, so that the newest is exact; falling, so that the oldest comes first
        back = np.minimum(at, newest)
        np.subtract(newest, back, out=back)
        back //= unit
        np.subtract((1 << time_bits) - 1, back, out=back)
        keys |= back.view(np.uint64)
        del rows, columns, at, back, frame
        keys.sort()
        is_new = np.empty(len(keys), dtype=bool)
        is_new[0] = True
        np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
        if not is_new.all():
            keys = keys[is_new]
        last = np.uint64((1 << time_bits) - 1)
        purchase_ages = ((last - (keys & last)).astype(np.float64) * (unit / DAY_MS)).astype(np.float32)
        keys >>= np.uint64(time_bits)
        is_new = np.empty(len(keys), dtype=bool)
        is_new[0] = True
        np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
        starts = np.append(np.flatnonzero(is_new), len(keys))
        if len(starts) - 1 < len(keys):
            keys = keys[is_new]
            ages = purchase_ages[starts[1:] - 1]
        else:
            ages = purchase_ages
        indices = (keys & np.uint64((1 << column_bits) - 1)).astype(np.int32)
        keys >>= np.uint64(column_bits)
        indptr = np.searchsorted(keys, np.arange(n_contacts + 1, dtype=np.uint64))
        product_ids = np.concatenate([names[order], np.array(unbought, dtype=object)])
        moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=newest) if until is None else until
        if len(indices) < 2**31:
            indptr = indptr.astype(np.int32)
        return cls(contact_ids, product_ids, indptr, indices, ages, starts, purchase_ages, moment)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_contacts, n_products)."""
        return len(self.contact_ids), len(self.product_ids)

    def weights(self, half_life: float | None = None) -> sparse.csr_matrix:
        """(n_contacts, n_products) CSR float32: 2^(-age / half_life) of each pair's newest purchase, else ones."""
        return sparse.csr_matrix(
            (decay(self.ages, half_life), self.indices, self.indptr), shape=self.shape, copy=False
        )

    def repeated_weights(self, half_life: float | None) -> np.ndarray:
        """(n_pairs,) float32 sum of 2^(-age / half_life) over a pair's purchases; their count without one."""
        if not len(self.ages):
            return self.ages
        return np.add.reduceat(decay(self.purchase_ages, half_life), self.purchase_starts[:-1])

    def column_sums(self, half_life: float | None) -> np.ndarray:
        """(n_products,) float64 sum of `weights` over contacts."""
        sums = np.zeros(self.shape[1])
        for first in range(0, len(self.indices), 4_000_000):
            part = slice(first, first + 4_000_000)
            sums += np.bincount(self.indices[part], decay(self.ages[part], half_life), self.shape[1])
        return sums

    def rows_of(self, contact_ids: np.ndarray) -> np.ndarray:
        """(n,) row of each contact, -1 for a contact without interactions."""
        if not len(self.contact_ids):
            return np.full(len(contact_ids), -1, dtype=np.int64)
        position = np.minimum(np.searchsorted(self.contact_ids, contact_ids), len(self.contact_ids) - 1)
        return np.where(self.contact_ids[position] == contact_ids, position, -1)

    def pairs_of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of the rows at the positions: indptr (n + 1,), and where in the matrix each pair lies.

        -1 is an empty row.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if not self.shape[0]:
            return np.zeros(len(positions) + 1, dtype=np.int64), np.zeros(0, dtype=np.int64)
        known = np.maximum(positions, 0)
        begin = self.indptr[known].astype(np.int64)
        lengths = np.where(positions >= 0, self.indptr[known + 1] - begin, 0)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        return indptr, np.arange(indptr[-1]) + np.repeat(begin - indptr[:-1], lengths)

    def rows(
        self, positions: np.ndarray, half_life: float | None = None, values: np.ndarray | None = None
    ) -> sparse.csr_matrix:
        """(n, n_products) CSR float32 of the rows at the positions; an empty row for -1.

        Args:
            positions: rows of the matrix.
            half_life: of the weights, as in `weights`.
            values: (n_pairs,) what to take in place of these weights.
        """
        indptr, pairs = self.pairs_of(positions)
        data = decay(self.ages[pairs], half_life) if values is None else values[pairs]
        return sparse.csr_matrix(
            (data, self.indices[pairs], indptr), shape=(len(positions), self.shape[1]), copy=False
        )

    def purchases(self, positions: np.ndarray | None = None) -> pl.DataFrame:
        """The interactions again, of all rows or those at the positions: a row a purchase, quantity 1.

        Times are of the precision of the ages, minutes.
        """
        where = np.arange(self.shape[0]) if positions is None else np.asarray(positions)
        indptr, pairs = self.pairs_of(where)
        begin = self.purchase_starts[pairs]
        lengths = self.purchase_starts[pairs + 1] - begin
        ends = np.cumsum(lengths)
        purchases = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - (ends - lengths), lengths)
        until = self.until or datetime.fromtimestamp(0, UTC)
        ages = (self.purchase_ages[purchases].astype(np.float64) * DAY_MS).astype(np.int64)
        contacts = np.repeat(np.repeat(self.contact_ids[where], np.diff(indptr)), lengths)
        names = pl.Series(self.product_ids, dtype=pl.String)
        return pl.DataFrame(
            {
                "contact_id": contacts,
                "product_id": names.gather(np.repeat(self.indices[pairs], lengths)),
                "ordered_at": pl.Series(int(until.timestamp() * 1_000) - ages)
                .cast(pl.Datetime("ms"))
                .dt.replace_time_zone("UTC"),
                "quantity": np.ones(len(purchases)),
            }
        )


def _codes_of_integers(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values, ascending, and the place of each value among them (int32)."""
    values = values.astype(np.int64, copy=False)
    if not len(values):
        return values, np.zeros(0, dtype=np.int32)
    low, high = int(values.min()), int(values.max())
    if high - low > 4 * len(values) + 1_000_000:
        distinct, places = np.unique(values, return_inverse=True)
        return distinct, places.astype(np.int32)
    # numbers that lie close together need no sort
    seen = np.zeros(high - low + 1, dtype=bool)
    offsets = values - low
    seen[offsets] = True
    places = (np.cumsum(seen) - 1).astype(np.int32)
    return np.flatnonzero(seen) + low, places[offsets]


def _codes_of_texts(values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Distinct texts, and the place of each value among them (uint32)."""
    coded = values if isinstance(values.dtype, pl.Enum | pl.Categorical) else values.cast(pl.Categorical)
    distinct = coded.unique()
    codes: Any = coded.to_physical().to_numpy()
    if not len(codes):
        return np.zeros(0, dtype=object), np.zeros(0, dtype=np.uint32)
    place = np.zeros(int(codes.max()) + 1, dtype=np.uint32)
    place[distinct.to_physical().to_numpy()] = np.arange(len(distinct), dtype=np.uint32)
    return distinct.cast(pl.String).to_numpy().astype(object), place[codes]
