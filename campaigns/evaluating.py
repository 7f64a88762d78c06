"""Conditions judged in process, exactly as ClickHouse would judge them, or not at all.

Planning one query over fifty conditions costs ClickHouse more than an event may take. So the SQL of a `Predicate` is
compiled once into a Python function over columns (`campaigns.native_sql`), and judges a row in less than a microsecond.

What is not known to come out the same is declined, in one of two ways: a whole condition when it is compiled, or single
rows while they are judged (a decimal that overflows, a division of whole numbers by zero, a property that reads as a
number only by rules of ClickHouse's own, a text beyond ASCII under `ilike`). ClickHouse is asked for what was declined,
and raises what it has always raised. `NATIVE` says of each function of `predicates.FUNCTIONS` what is judged here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import polars as pl

from campaigns.event_properties import Documents
from campaigns.native_sql import NATIVE, TEXT, Compiled, NotNative, column_type, compiled_sql
from campaigns.predicates import Predicate


@lru_cache(maxsize=4096)
def compiled(sql: str, types: tuple[tuple[str, str], ...], *, is_condition: bool = True) -> Compiled | None:
    """An expression as a function, None if it is not judged here. Remembered by what it is and by its types.

    Args:
        sql: as `Predicate.sql`.
        types: names and ClickHouse types of the columns that it may read, without the event's (`EVENT_TYPES`).
        is_condition: it is to be true or false: null is false.
    """
    try:
        return compiled_sql(sql, {**EVENT_TYPES, **dict(types)}, is_condition=is_condition)
    except NotNative:
        return None


EVENT_TYPES: Final = {
    "event_type": "String",
    "event_source": "String",
    "event_occurred_at": "DateTime64(3, 'UTC')",
    "message_kind": "String",
    "message_name": "String",
    "message_template": "String",
    "message_occurrence": "String",
}
"""Types of the columns that every event has."""


_FEW_ROWS = 64
_BOOLEAN = pl.Boolean()
_STRING = pl.String()


@dataclass
class Judged:
    """What was judged in process.

    Attributes:
        values: by name, a verdict or a text for each row; of those that were declined, it means nothing.
        declined: by name, the rows that ClickHouse must judge.
        schema: types of the values.
    """

    values: dict[str, list[Any]] = field(default_factory=dict)
    declined: dict[str, Collection[int]] = field(default_factory=dict)
    schema: dict[str, pl.DataType] = field(default_factory=dict)

    def frame(self, row: pl.Series) -> pl.DataFrame:
        """The values behind a first column."""
        if len(row) > _FEW_ROWS:
            columns = (pl.Series(name, self.values[name], dtype) for name, dtype in self.schema.items())
            return pl.DataFrame([row, *columns])
        # making a column costs more than reading a row
        rows = list(zip(row.to_list(), *self.values.values(), strict=True))
        return pl.DataFrame(rows, {row.name: row.dtype, **self.schema}, orient="row")


class Rows:
    """A batch of rows, of which columns and properties are read when they are asked for, and once.

    Args:
        frames: where the columns are, all of the same rows in the same order; of two of a name the first counts.
        types: ClickHouse types of columns that are not an event's.
    """

    def __init__(self, frames: Sequence[pl.DataFrame], types: Mapping[str, str]) -> None:
        self._places = {name: frame for frame in reversed(frames) for name in frame.columns}
        self._types = {**EVENT_TYPES, **types, "as_of": "DateTime64(3, 'UTC')"}
        self.count = frames[0].height
        self._columns: dict[tuple[str, str], tuple[list[Any], Collection[int]]] = {}
        self._documents: Documents | None = None

    def column(self, key: tuple[str, str]) -> tuple[list[Any], Collection[int]]:
        """Values as the compiled functions take them, and rows in which they are not known."""
        found = self._columns.get(key)
        if found is None:
            reader, name = key
            found = self._read(name) if reader == "column" else self._property(reader, name)
            self._columns[key] = found
        return found

    def _property(self, reader: str, path: str) -> tuple[list[Any], Collection[int]]:
        if self._documents is None:
            texts = self._series("event_properties").to_list()
            self._documents = Documents(texts)
        return self._documents.read(path, reader)

    def _series(self, name: str) -> pl.Series:
        return self._places[name].get_column(name)

    def _read(self, name: str) -> tuple[list[Any], Collection[int]]:
        node_type, is_nullable = column_type(self._types[name])
        series = self._series(name)
        everything = range(self.count)
        dtype = series.dtype
        kind = node_type.name
        if kind in ("uint", "int"):
            if not dtype.is_integer():
                return [None] * self.count, everything
        elif kind == "text":
            series = series if dtype == pl.String else series.cast(pl.String)
        elif kind == "list":
            if not isinstance(dtype, pl.List):
                return [None] * self.count, everything
            inner = pl.String() if node_type.element == TEXT else pl.Float64()
            series = series if dtype.inner == inner else series.cast(pl.List(inner))
        else:
            expected = {
                "bool": dtype == pl.Boolean,
                "float": dtype == pl.Float64,
                "decimal": isinstance(dtype, pl.Decimal) and dtype.scale == node_type.scale,
                "moment": isinstance(dtype, pl.Datetime)
                and dtype.time_unit == "ms"
                and dtype.time_zone == "UTC",
                "date": dtype in (pl.Date, pl.UInt16),
            }
            if not expected.get(kind, False):
                return [None] * self.count, everything
            if kind == "decimal":
                series = series.to_physical()
            elif kind in ("moment", "date"):
                series = series.cast(pl.Int64)
        values = series.to_list()
        declined: set[int] = set()
        if not is_nullable and series.null_count():
            declined.update(place for place, value in enumerate(values) if value is None)
        if kind in ("uint", "int"):
            low, high = (
                (0, 2**node_type.bits)
                if kind == "uint"
                else (-(2 ** (node_type.bits - 1)), 2 ** (node_type.bits - 1))
            )
            declined.update(
                place for place, value in enumerate(values) if value is not None and not low <= value < high
            )
        return values, declined


def judged(
    rows: Rows, conditions: Mapping[str, Predicate], types: Mapping[str, str], paths: Iterable[str] = ()
) -> Judged:
    """Judge conditions over rows, and read properties as texts.

    Args:
        rows: what they read.
        conditions: from names to conditions.
        types: ClickHouse types of columns that are not an event's.
        paths: of properties, as `cart.value`; their names are `event.cart.value`.
    """
    result = Judged()
    column = rows.column
    for name, predicate in conditions.items():
        result.schema[name] = _BOOLEAN
        # in the order of the sets, which is always the same of the same condition
        read = tuple([(one, types[one]) for one in predicate.columns if one in types])
        if predicate.calls:
            read += tuple([(call.column, types[call.column]) for call in predicate.calls])
        function = compiled(predicate.sql, read)
        if function is None:
            result.values[name], result.declined[name] = [False] * rows.count, range(rows.count)
            continue
        columns = [column(key) for key in function.keys]
        result.values[name], declined = function.judge(rows.count, *[values for values, _ in columns])
        for _, missing in columns:
            if missing:
                declined.extend(missing)
        if declined:
            result.declined[name] = set(declined)
    for path in paths:
        values, missing = rows.column(("text", path))
        result.schema[f"event.{path}"] = _STRING
        result.values[f"event.{path}"] = list(values)
        if missing:
            result.declined[f"event.{path}"] = missing
    return result


__all__ = ["NATIVE", "Judged", "Rows", "compiled", "judged"]
