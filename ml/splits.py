"""Splitting interactions by time: a model is judged on what came after all it has seen."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl


@dataclass(frozen=True)
class TemporalSplit:
    """Past and future of a moment.

    Attributes:
        train: interactions before `cutoff`.
        test: interactions from `cutoff` on and before `cutoff + horizon`.
        cutoff: the moment.
        horizon: how far the future reaches.
    """

    train: pl.DataFrame
    test: pl.DataFrame
    cutoff: datetime
    horizon: timedelta


def temporal_split(
    interactions: pl.DataFrame, *, cutoff: datetime, horizon: timedelta, time_column: str = "ordered_at"
) -> TemporalSplit:
    """Split at a moment: nothing at or after it is in `train`, nothing before it in `test`.

    Args:
        interactions: a frame with a time column.
        cutoff: the moment; in the time zone of the column.
        horizon: how long after it the test lasts.
        time_column: name of the time column.

    Raises:
        ValueError: the horizon is not longer than nothing, or the column is missing or holds nulls.
    """
    if horizon <= timedelta(0):
        raise ValueError("horizon must be longer than nothing")
    if time_column not in interactions.columns:
        raise ValueError(f"interactions lack {time_column}")
    if interactions[time_column].null_count():
        # a row without a time is on neither side, and would vanish unnoticed
        raise ValueError(f"{time_column} holds nulls; drop them first")
    time = pl.col(time_column)
    return TemporalSplit(
        interactions.filter(time < cutoff),
        interactions.filter((time >= cutoff) & (time < cutoff + horizon)),
        cutoff,
        horizon,
    )


def temporal_folds(
    interactions: pl.DataFrame, *, horizon: timedelta, folds: int = 1, time_column: str = "ordered_at"
) -> list[TemporalSplit]:
    """Rolling-origin folds, oldest first: each tests one horizon, and the last one ends with the newest row.

    Folds without a single row to train on are left out, so fewer than `folds` may come back, or none.

    Raises:
        ValueError: as `temporal_split`; or folds is below 1.
    """
    if folds < 1:
        raise ValueError("folds must be at least 1")
    if not interactions.height:
        return []
    newest = interactions[time_column].max()
    assert isinstance(newest, datetime)
    end = newest + timedelta(milliseconds=1)
    splits = [
        temporal_split(interactions, cutoff=end - horizon * back, horizon=horizon, time_column=time_column)
        for back in range(folds, 0, -1)
    ]
    return [split for split in splits if split.train.height]
