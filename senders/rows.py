"""Rows of an audience as plain Python values, column by column: what a window of messages carries.

The coordinator reads frames, workers fill templates in. Between them go columns of texts and numbers, which cost a
tenth of what a dict a row and a list of dicts a recommendation do; workers need no data frame library for them. What
Python has a costly object for (decimals, instants, days) goes as a text or a number, and becomes that object only
where something looks at it.
"""

from __future__ import annotations

import itertools
import marshal
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    import polars as pl

#: Columns of an audience that are not the contact's profile.
NOT_PROFILE = frozenset(
    {
        "skip_reason",
        "consent_id",
        "suppression_event_id",
        "recommendations",
        "recommendation_version",
        "variant",
    }
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)
_DAY = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one column.

    Attributes:
        values: one a row, None where there is none.
        kind: what they are. `text` and `integer`: just that, and nothing else among them. `decimal`: numbers as texts.
            `instant ZONE`: microseconds since 1970 UTC, shown in the zone; without a zone a time on some clock.
            `day`: days since 1970. Empty: any Python objects.
    """

    values: list[Any]
    kind: str = ""

    @property
    def decode(self) -> Callable[[Any], Any] | None:
        """From a value, not None, to the object that it stands for; None where it is that itself."""
        return _decoder(self.kind)

    @property
    def objects(self) -> list[Any]:
        """The objects that the values stand for."""
        decode = self.decode
        if decode is None:
            return self.values
        return [None if value is None else decode(value) for value in self.values]


@cache
def _decoder(kind: str) -> Callable[[Any], Any] | None:
    name, _, zone = kind.partition(" ")
    if name == "decimal":
        return Decimal
    if name == "day":
        return lambda days: date.fromordinal(_DAY + days)
    if name == "instant" and not zone:
        return lambda value: _NAIVE_EPOCH + timedelta(microseconds=value)
    if name == "instant":
        there = ZoneInfo(zone)
        return lambda value: (_EPOCH + timedelta(microseconds=value)).astimezone(there)
    return None


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of an audience.

    Attributes:
        height: how many.
        columns: by name.
        counts: how many recommendations each row has.
        items: fields of the recommendations of all rows, one after the other.
    """

    height: int
    columns: Mapping[str, Column]
    counts: Sequence[int] = ()
    items: Mapping[str, Column] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        frame: pl.DataFrame,
        names: Sequence[str] | None = None,
        fields: frozenset[str] | None = None,
    ) -> Rows:
        """Rows of a frame.

        Args:
            names: columns that are needed, `recommendations` among them; None for all.
            fields: of the recommendations, those that are needed; None for all.
        """
        columns = {
            name: _column(frame[name])
            for name in frame.columns
            if name != "recommendations" and (names is None or name in names)
        }
        if "recommendations" not in frame.columns or (names is not None and "recommendations" not in names):
            return cls(frame.height, columns)
        counts, items = _items(frame["recommendations"], fields)
        return cls(frame.height, columns, counts, items)

    def only(self, positions: Sequence[int]) -> Rows:
        """Some of the rows, in the order given."""
        begin, number = (positions[0] if positions else 0), len(positions)
        if positions == range(begin, begin + number) or list(positions) == list(range(begin, begin + number)):
            part = slice(begin, begin + number)
            columns = {name: Column(one.values[part], one.kind) for name, one in self.columns.items()}
            if not self.counts:
                return Rows(number, columns)
            first = sum(self.counts[:begin])
            counts = self.counts[part]
            there = slice(first, first + sum(counts))
            return Rows(
                number, columns, counts,
                {name: Column(one.values[there], one.kind) for name, one in self.items.items()},
            )  # fmt: skip
        columns = {
            name: Column([one.values[at] for at in positions], one.kind) for name, one in self.columns.items()
        }
        if not self.counts:
            return Rows(number, columns)
        starts = [0, *itertools.accumulate(self.counts)]
        places = [place for at in positions for place in range(starts[at], starts[at + 1])]
        return Rows(
            number, columns, [self.counts[at] for at in positions],
            {name: Column([one.values[at] for at in places], one.kind) for name, one in self.items.items()},
        )  # fmt: skip

    def texts(self, name: str) -> list[str]:
        """A column of texts, empty where there is none; all empty if there is no such column."""
        if name not in self.columns:
            return [""] * self.height
        return ["" if value is None else str(value) for value in self.columns[name].objects]

    def contacts(self) -> list[dict[str, Any]]:
        """One dict a row: the columns of the profile."""
        names = [name for name in self.columns if name not in NOT_PROFILE]
        if not names:
            return [{} for _ in range(self.height)]
        return [
            dict(zip(names, row, strict=True))
            for row in zip(*(self.columns[name].objects for name in names), strict=True)
        ]

    def recommendations(self) -> list[list[dict[str, Any]]]:
        """A list of dicts a row."""
        if not self.counts:
            return [[] for _ in range(self.height)]
        names = list(self.items)
        made = iter(
            [
                dict(zip(names, row, strict=True))
                for row in zip(*(one.objects for one in self.items.values()), strict=True)
            ]
            or [{} for _ in range(sum(self.counts))]
        )
        return [list(itertools.islice(made, count)) for count in self.counts]

    def packed(self) -> bytes:
        """The rows for another process of ours, which runs the same Python."""
        plain = (
            self.height,
            {name: (one.values, one.kind) for name, one in self.columns.items()},
            list(self.counts),
            {name: (one.values, one.kind) for name, one in self.items.items()},
        )
        try:
            # a third of pickle's cost; it knows plain values only
            return b"m" + marshal.dumps(plain)
        except ValueError:
            return b"p" + pickle.dumps(plain)

    @classmethod
    def unpacked(cls, content: bytes | memoryview) -> Rows:
        """What `packed` was given; of trusted bytes only."""
        body = memoryview(content)[1:]
        load = marshal.loads if content[:1] == b"m" else pickle.loads
        height, columns, counts, items = load(body)
        return cls(
            height,
            {name: Column(*one) for name, one in columns.items()},
            counts,
            {name: Column(*one) for name, one in items.items()},
        )


def _column(series: pl.Series) -> Column:
    import polars as pl

    kind = series.dtype
    if isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        return Column(series.to_list(), "text")
    if kind.is_integer():
        return Column(series.to_list(), "integer")
    if isinstance(kind, pl.Decimal):
        return Column(series.cast(pl.String).to_list(), "decimal")
    if isinstance(kind, pl.Datetime):
        values = series.dt.cast_time_unit("us").to_physical().to_list()
        return Column(values, f"instant {kind.time_zone}" if kind.time_zone else "instant")
    if isinstance(kind, pl.Date):
        return Column(series.to_physical().to_list(), "day")
    return Column(series.to_list())


def _items(series: pl.Series, fields: frozenset[str] | None) -> tuple[list[int], dict[str, Column]]:
    """How many items each list of a column has, and the fields of all of them."""
    import polars as pl

    counts: list[int] = series.list.len().fill_null(0).to_list()
    items = series.list.explode(keep_nulls=False, empty_as_null=False)
    if not isinstance(items.dtype, pl.Struct):
        return counts, {}
    return counts, {
        one.name: _column(one)
        for one in items.struct.unnest().get_columns()
        if fields is None or one.name in fields
    }


def columns_of(contacts: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """Columns of Python values, given as such or as one dict each."""
    if isinstance(contacts, Mapping):
        return {name: _known(list(values)) for name, values in contacts.items()}
    names = dict.fromkeys(name for row in contacts for name in row)
    return {name: _known([row.get(name) for row in contacts]) for name in names}


def items_of(recommendations: Sequence[Sequence[Mapping[str, Any]] | None]) -> dict[str, Column]:
    """Fields of recommendations that are given as dicts."""
    every = [item for items in recommendations for item in items or ()]
    return columns_of(every)


def _known(values: list[Any]) -> Column:
    kinds = set(map(type, values)) - {type(None)}
    return Column(values, "text" if kinds == {str} else "integer" if kinds == {int} else "")
