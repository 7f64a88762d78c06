"""Whether the people that are scored are still like those that were learnt from.

The population stability index of a number is sum_b (a_b - e_b) ln(a_b / e_b), over bins b, with e_b the share
of the training data and a_b that of today; a symmetric Kullback-Leibler divergence. Below 0.1 little has
changed, above 0.25 much has: rules of thumb of credit scoring (Siddiqi, Credit Risk Scorecards, 2006). With
few rows it is not small by itself: if nothing changed, it is about (1 / n + 1 / m) times chi-squared with bins
    - 1 degrees of freedom (Yurdakul, Statistical properties
of the population stability index, 2018), and what chance alone would give once in a hundred is no drift here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import chdtri

MODERATE, LARGE = 0.1, 0.25
_FLOOR = 1e-4
"""Share that an empty bin counts as: a logarithm of nothing is not to be had."""
DRIFT_SCHEMA = pl.Schema(
    {"feature": pl.String(), "psi": pl.Float64(), "chance": pl.Float64(), "verdict": pl.String()}
)


@dataclass(frozen=True)
class Bins:
    """How one number was spread in the training data.

    Attributes:
        edges: inner edges of the bins, rising; a value equal to an edge is in the bin above it.
        shares: of the bins, the last one of those without a value; they add up to 1.
        rows: how many there were.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    rows: int

    @classmethod
    def of(cls, values: pl.Series | np.ndarray, bins: int = 10) -> Bins:
        """Bins of equal shares; fewer where many values are equal.

        Args:
            values: (n,) numbers, null or NaN where there is none; n at least 1.

        Raises:
            ValueError: no values, or fewer than two bins.
        """
        if bins < 2:
            raise ValueError("there must be at least 2 bins")
        numbers = _numbers(values)
        if not len(numbers):
            raise ValueError("no rows to take bins of")
        known = numbers[~np.isnan(numbers)]
        edges = (
            np.unique(np.quantile(known, np.arange(1, bins) / bins, method="higher")) if len(known) else known
        )
        edges = edges[edges > known.min()] if len(known) else edges
        return cls(
            tuple(edges.tolist()), tuple((_counts(numbers, edges) / len(numbers)).tolist()), len(numbers)
        )

    def stability(self, values: pl.Series | np.ndarray) -> tuple[float, float]:
        """The index of other rows, and what chance alone would reach once in a hundred.

        Raises:
            ValueError: no values.
        """
        numbers = _numbers(values)
        if not len(numbers):
            raise ValueError("no rows to compare")
        expected = np.array(self.shares)
        actual = _counts(numbers, np.array(self.edges)) / len(numbers)
        used = (expected > 0) | (actual > 0)
        expected, actual = np.maximum(expected[used], _FLOOR), np.maximum(actual[used], _FLOOR)
        index = float(np.sum((actual - expected) * np.log(actual / expected)))
        freedom = max(int(used.sum()) - 1, 1)
        return index, float((1 / self.rows + 1 / len(numbers)) * chdtri(freedom, 0.01))


def reference_bins(frame: pl.DataFrame, columns: Sequence[str]) -> dict[str, Bins]:
    """`Bins` of each column, to be kept with the model."""
    return {name: Bins.of(frame[name]) for name in columns}


def drift_table(reference: dict[str, Bins], frame: pl.DataFrame) -> pl.DataFrame:
    """How far each column has moved, furthest first.

    Args:
        reference: as `reference_bins` gave it.
        frame: rows of today, at least one.

    Returns:
        A frame of `DRIFT_SCHEMA`; verdict is `stable`, `moderate` (from 0.1) or `large` (from 0.25), the last
        two only where `chance` does not explain them.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    missing = [name for name in reference if name not in frame.columns]
    if missing:
        raise ValueError(f"the frame lacks {', '.join(missing)}")
    rows = []
    for name, bins in reference.items():
        index, chance = bins.stability(frame[name])
        verdict = "stable"
        if index > chance and index >= MODERATE:
            verdict = "large" if index >= LARGE else "moderate"
        rows.append({"feature": name, "psi": index, "chance": chance, "verdict": verdict})
    return pl.DataFrame(rows, schema=DRIFT_SCHEMA).sort("psi", descending=True)


def _numbers(values: pl.Series | np.ndarray) -> np.ndarray:
    return pl.Series(values).cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _counts(numbers: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(len(edges) + 2,) rows of each bin, last those without a value."""
    known = numbers[~np.isnan(numbers)]
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    return np.append(counts, len(numbers) - len(known)).astype(np.float64)
