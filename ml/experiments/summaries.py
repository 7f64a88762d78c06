"""Sufficient statistics: what an experiment's rows come to, in one pass, in polars or in ClickHouse.

All tests of this package need of a variant is how many contacts it has, and sums of the metrics' columns and of
products of two of them. They add up: over days, over segments, over machines. In a frame of sums a row is a variant
(and a day or a segment, if wanted), with the columns

- `contacts`: how many,
- `sum__<a>`: sum of column a,
- `sum__<a>__<b>`: sum of a times b, with a not after b in the alphabet (`sum__revenue__revenue` is the sum of squares),
- `first_exposed_at`, `last_exposed_at`: of the contacts' exposures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

_NOISE = 1e-11
"""A variance below this part of the mean square is what rounding leaves of a constant column."""


@dataclass(frozen=True)
class Metric:
    """What is measured on each contact.

    Args:
        name: how it is called.
        kind: `proportion` (the column is 0 or 1), `mean` (any number a contact, such as revenue), or `ratio` (sum of
            the column over sum of the denominator, such as revenue an order, with the contact as the unit).
        column: the column with its values; left out, the name.
        denominator: the column below the line of a ratio.
        covariates: columns known before the exposure (the same metric in the weeks before, say), by which the
            metric is adjusted (CUPED).
        lower_is_better: as for unsubscribes.

    Raises:
        ValueError: kind and denominator do not go together, or a column's name holds `__`.
    """

    name: str
    kind: Literal["proportion", "mean", "ratio"] = "mean"
    column: str = ""
    denominator: str | None = None
    covariates: tuple[str, ...] = ()
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("proportion", "mean", "ratio"):
            raise ValueError(f"metric {self.name}: kind {self.kind!r} is none of proportion, mean, ratio")
        if (self.denominator is not None) != (self.kind == "ratio"):
            raise ValueError(f"metric {self.name}: a ratio, and nothing else, has a denominator")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"metric {self.name} names a column twice")
        _check_columns(self.columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Column, denominator if there is one, covariates."""
        above = (self.column or self.name,)
        return above + ((self.denominator,) if self.denominator else ()) + self.covariates


@dataclass(frozen=True, eq=False)
class Sums:
    """Count, means and centred second moments of some columns over the contacts of one variant.

    Args:
        columns: (k,) names.
        n: contacts.
        means: (k,) means.
        comoments: (k, k) sums of (a - mean a) (b - mean b).
    """

    columns: tuple[str, ...]
    n: int
    means: np.ndarray
    comoments: np.ndarray

    @classmethod
    def of_arrays(cls, **values: Any) -> Sums:
        """From arrays of (n,) numbers, one a column.

        Raises:
            ValueError: lengths differ, or a value is not finite.
        """
        matrix = np.stack([np.asarray(column, dtype=np.float64) for column in values.values()], axis=1)
        if not np.isfinite(matrix).all():
            raise ValueError("a value is NaN or infinite; a contact without one has 0, or no row")
        n = len(matrix)
        means = matrix.mean(axis=0) if n else np.zeros(matrix.shape[1])
        centred = matrix - means
        return cls(tuple(values), n, means, _without_noise(centred.T @ centred, n, means))

    @classmethod
    def of_counts(cls, successes: int, n: int, column: str = "value") -> Sums:
        """From how many of n contacts did something.

        Raises:
            ValueError: there are more successes than contacts, or negative ones.
        """
        if not 0 <= successes <= n:
            raise ValueError(f"{successes} of {n} cannot be")
        return cls.of_totals(n, {column: successes}, {(column, column): successes})

    @classmethod
    def of_totals(
        cls, n: int, totals: Mapping[str, float], products: Mapping[tuple[str, str], float]
    ) -> Sums:
        """From a count, sums, and sums of products; each pair of columns once, in either order.

        Raises:
            ValueError: a number is not finite, or no values could have these sums.
        """
        columns = tuple(totals)
        sums = np.array([totals[name] for name in columns], dtype=np.float64)
        raw = np.zeros((len(columns), len(columns)))
        for (i, a), (j, b) in itertools.combinations_with_replacement(enumerate(columns), 2):
            product = products[a, b] if (a, b) in products else products[b, a]
            raw[i, j] = raw[j, i] = product
        if not (np.isfinite(sums).all() and np.isfinite(raw).all()):
            raise ValueError("a sum is NaN or infinite; leave contacts without a value out of the rows")
        if n < 0 or (n == 0 and (sums.any() or raw.any())):
            raise ValueError("sums without contacts")
        means = sums / n if n else np.zeros(len(columns))
        comoments = _without_noise(raw - n * np.outer(means, means), n, means)
        if (np.diag(comoments) < 0).any():
            raise ValueError("a sum of squares is below what the sum allows: they are not of the same rows")
        return cls(columns, int(n), means, comoments)

    @classmethod
    def of_row(cls, row: Mapping[str, Any] | None, columns: Sequence[str]) -> Sums:
        """From a row of a frame of sums; None is a variant without contacts.

        Raises:
            ValueError: the row lacks a sum of these columns, or see `of_totals`.
        """
        pairs = list(itertools.combinations_with_replacement(columns, 2))
        if row is None:
            return cls.of_totals(0, dict.fromkeys(columns, 0.0), dict.fromkeys(pairs, 0.0))
        wanted = ["contacts", *map(_sum_name, columns), *(_product_name(*pair) for pair in pairs)]
        if missing := [name for name in wanted if row.get(name) is None]:
            raise ValueError(f"the frame of sums lacks {', '.join(missing)}")
        return cls.of_totals(
            int(row["contacts"]),
            {name: float(row[_sum_name(name)]) for name in columns},
            {pair: float(row[_product_name(*pair)]) for pair in pairs},
        )

    def __add__(self, other: Sums) -> Sums:
        """Of both together (Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983)."""
        if self.columns != other.columns:
            raise ValueError(f"sums of {self.columns} and of {other.columns} do not add up")
        n = self.n + other.n
        if not n:
            return self
        apart = other.means - self.means
        return Sums(
            self.columns,
            n,
            self.means + apart * (other.n / n),
            self.comoments + other.comoments + np.outer(apart, apart) * (self.n * other.n / n),
        )

    def select(self, columns: Sequence[str]) -> Sums:
        """Of these columns alone, in this order."""
        at = [self.columns.index(name) for name in columns]
        return Sums(tuple(columns), self.n, self.means[at], self.comoments[np.ix_(at, at)])

    def mean(self, column: str) -> float:
        """Mean of a column; NaN without contacts."""
        return float(self.means[self.columns.index(column)]) if self.n else float("nan")

    def total(self, column: str) -> float:
        """Sum of a column."""
        return float(self.means[self.columns.index(column)]) * self.n

    def covariance(self, *, binary: bool = False) -> np.ndarray:
        """(k, k) covariances, divided by n - 1, or by n if the first column is binary (p (1 - p)); NaN if n < 2."""
        if self.n < 2:
            return np.full_like(self.comoments, np.nan)
        return self.comoments / (self.n if binary else self.n - 1)


def aggregate(
    frame: pl.DataFrame | pl.LazyFrame,
    metrics: Sequence[Metric],
    *,
    balance: Sequence[str] = (),
    by: Sequence[str] = (),
) -> pl.DataFrame:
    """Sums of rows of contacts, in one pass.

    Args:
        frame: `variant`, the columns of the metrics and of `balance`, and if there are such, `contact_id`
            (a contact may have one row), `exposed_at`, and the columns of `by`. A row is a contact.
        metrics: what is measured.
        balance: columns known before the exposure, whose means should be alike in all variants.
        by: further columns to sum by, such as a segment or a day.

    Returns:
        See the module's text; a row for each variant and value of `by`, in their order.

    Raises:
        ValueError: a column is missing, holds nulls, NaN or infinite numbers, a proportion is neither 0 nor 1, or a
            contact has several rows (see `first_exposures`).
    """
    rows = frame.lazy()
    have = rows.collect_schema()
    columns, pairs = _needed(metrics, balance)
    if missing := [name for name in ("variant", *by, *columns) if name not in have]:
        raise ValueError(f"the frame of contacts lacks {', '.join(missing)}")
    binary = sorted({metric.columns[0] for metric in metrics if metric.kind == "proportion"})
    number = {name: pl.col(name).cast(pl.Float64) for name in columns}
    exposed = pl.col("exposed_at") if "exposed_at" in have else pl.lit(None, dtype=pl.Datetime("ms", "UTC"))
    is_bad = [(~number[name].is_finite()).fill_null(True).sum().alias(f"bad__{name}") for name in columns]
    is_bad += [(~number[name].is_in([0.0, 1.0])).sum().alias(f"not_binary__{name}") for name in binary]
    sums = (
        rows.group_by("variant", *by)
        .agg(
            pl.len().cast(pl.Int64).alias("contacts"),
            *(number[name].sum().alias(_sum_name(name)) for name in columns),
            *((number[a] * number[b]).sum().alias(_product_name(a, b)) for a, b in pairs),
            exposed.min().alias("first_exposed_at"),
            exposed.max().alias("last_exposed_at"),
            *is_bad,
        )
        .sort("variant", *by)
        .collect(engine="streaming")
    )
    for name in columns:
        if bad := sums[f"bad__{name}"].sum():
            raise ValueError(
                f"{name} is null, NaN or infinite for {bad} contacts; a contact who did nothing has 0, one who "
                "cannot be measured has no row"
            )
    for name in binary:
        if bad := sums[f"not_binary__{name}"].sum():
            raise ValueError(f"{name} of a proportion is neither 0 nor 1 for {bad} contacts")
    if "contact_id" in have:
        contacts = rows.select(pl.len(), pl.col("contact_id").n_unique().alias("distinct")).collect()
        total, distinct = contacts.row(0)
        if total != distinct:
            raise ValueError(
                f"{total} rows of {distinct} contacts: a contact may have one row; see first_exposures"
            )
    return sums.drop(pl.selectors.starts_with("bad__", "not_binary__"))


def aggregate_sql(
    metrics: Sequence[Metric], *, balance: Sequence[str] = (), exposed_at: str = "exposed_at"
) -> str:
    """The select list, for a query `group by variant`, that makes the columns of a frame of sums in ClickHouse.

    SQL passes over nulls in sums, so that they count as 0 where `aggregate` refuses them: make them 0 or leave the
    contact out, whichever is true. NaN is refused when the sums are analysed.

    Args:
        metrics, balance: as for `aggregate`; column names are put into the text as quoted identifiers.
        exposed_at: an SQL expression of when the contact was exposed.
    """
    columns, pairs = _needed(metrics, balance)
    number = {name: f"toFloat64({_quoted(name)})" for name in columns}
    parts = ["toInt64(count()) as contacts"]
    parts += [f"sum({number[name]}) as {_quoted(_sum_name(name))}" for name in columns]
    parts += [f"sum({number[a]} * {number[b]}) as {_quoted(_product_name(a, b))}" for a, b in pairs]
    parts += [f"min({exposed_at}) as first_exposed_at", f"max({exposed_at}) as last_exposed_at"]
    return ",\n".join(parts)


def roll_up(sums: pl.DataFrame, by: Sequence[str] = ("variant",)) -> pl.DataFrame:
    """Add up a frame of sums: daily ones to one of all days, segments to all contacts.

    Args:
        sums: see the module's text.
        by: columns to keep apart.

    Raises:
        ValueError: a column of `by` is missing.
    """
    if missing := [name for name in by if name not in sums.columns]:
        raise ValueError(f"the frame of sums lacks {', '.join(missing)}")
    return (
        sums.group_by(*by)
        .agg(
            pl.col("contacts").sum(),
            pl.selectors.starts_with("sum__").sum(),
            pl.col("first_exposed_at").min(),
            pl.col("last_exposed_at").max(),
        )
        .sort(*by)
    )


@dataclass(frozen=True)
class Exposures:
    """First exposures, and how many contacts were left out because they saw several variants."""

    frame: pl.DataFrame
    mixed: int


def first_exposures(frame: pl.DataFrame | pl.LazyFrame) -> Exposures:
    """One row a contact: its first exposure. Contacts who saw several variants are left out and counted.

    To leave them out is safe where who gets mixed up has nothing to do with the variant; the sample-ratio check finds
    most cases where it has.

    Args:
        frame: contact_id, variant, exposed_at, anything else.
    """
    ordered = frame.lazy().sort("contact_id", "exposed_at", maintain_order=True).collect()
    is_same = (ordered["contact_id"] == ordered["contact_id"].shift(1)).fill_null(False)
    changes = is_same & (ordered["variant"] != ordered["variant"].shift(1))
    mixed = ordered.filter(changes).select(pl.col("contact_id").unique())
    return Exposures(ordered.filter(~is_same).join(mixed, on="contact_id", how="anti"), mixed.height)


def _needed(metrics: Iterable[Metric], balance: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    groups = [metric.columns for metric in metrics] + [tuple(balance)]
    for group in groups:
        _check_columns(group)
    columns = sorted({name for group in groups for name in group})
    pairs = {pair for group in groups for pair in itertools.combinations_with_replacement(sorted(group), 2)}
    return columns, sorted(pairs)


def _check_columns(columns: Iterable[str]) -> None:
    for name in columns:
        if not name or "__" in name or "`" in name or "\\" in name:
            raise ValueError(f"column {name!r}: a name may hold neither two underscores in a row, ` nor \\")


def _sum_name(column: str) -> str:
    return f"sum__{column}"


def _product_name(a: str, b: str) -> str:
    return f"sum__{min(a, b)}__{max(a, b)}"


def _quoted(name: str) -> str:
    return f"`{name}`"


def _without_noise(comoments: np.ndarray, n: int, means: np.ndarray) -> np.ndarray:
    squares = np.diag(comoments) + n * means**2
    is_constant = np.abs(np.diag(comoments)) <= _NOISE * squares
    cleaned = comoments.copy()
    cleaned[is_constant, :] = 0.0
    cleaned[:, is_constant] = 0.0
    return cleaned
