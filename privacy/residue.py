# ruff: noqa: S608  (queries are put together from the warehouse's own catalogue)
"""Searching for what is left of a person: every text column of every table, ledger, streams, files byte by byte.

Two things are looked for: rows that a person key leads to (`privacy.stores`), and texts that name the person wherever
they stand (`Person.needles`), without regard to case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from privacy.person import Person
from privacy.stores import StoreTable, counted, quoted
from warehouse.client import Warehouse

NEEDLES_A_QUERY: Final = 200
_TEXT = re.compile(r"String|JSON|Map|Dynamic|Variant|Object")
_NEEDLES: Final = "(select groupArray(needle) from needles)"
_OWN: Final = ("raw.erasures", "raw.audit_log")
_LOGS: Final = re.compile(r"_log(_\d+)?$")


@dataclass(frozen=True)
class Residue:
    """Something that is left.

    Attributes:
        store: a table, a file, a stream.
        place: column or line; never what stands there.
        rows: how many.
    """

    store: str
    place: str
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.store}: {self.place}" + (f" ({self.rows:,})" if self.rows > 1 else "")


def text_columns(table: StoreTable) -> list[str]:
    """Columns that may hold text, JSON included; states of aggregate functions hold none that could be read."""
    return [
        name
        for name, kind in table.columns.items()
        if _TEXT.search(kind) and not kind.startswith("AggregateFunction")
    ]


def found_sql(columns: Sequence[str], types: dict[str, str] | None = None) -> str:
    """SQL: whether any needle stands in any of these columns; needs the table `needles`."""
    texts = [
        f"toJSONString(`{name}`)"
        if types and not re.fullmatch(r"(LowCardinality\()?(Nullable\()?String\)*", types[name])
        else f"ifNull(toString(`{name}`), '')"
        for name in columns
    ]
    return " or ".join(f"multiSearchAnyCaseInsensitive({text}, {_NEEDLES})" for text in texts)


def in_warehouse(warehouse: Warehouse, tables: Iterable[StoreTable], person: Person) -> Iterator[Residue]:
    """What is left in the warehouse, its own logs of queries included."""
    tables = [one for one in tables if one.name not in _OWN]
    for name, rows in counted(warehouse, tables, person).items():
        yield Residue(name, "rows that a key of the person leads to", rows)
    needles = person.needles()
    for table in tables:
        columns = text_columns(table)
        if columns:
            for column, rows in _columns_with(warehouse, table, columns, needles).items():
                yield Residue(table.name, f"column {column}", rows)
    yield from _in_logs(warehouse, needles)
    detached = warehouse.frame(
        "select concat(database, '.', table) as name, count() as parts from system.detached_parts group by name"
    )
    for name, parts in detached.iter_rows():
        yield Residue(name, "detached parts, which cannot be searched: attach or drop them", parts)


def _columns_with(
    warehouse: Warehouse, table: StoreTable, columns: Sequence[str], needles: Sequence[str]
) -> dict[str, int]:
    """Columns in which a needle stands, with the number of rows; one pass over the table a part of the needles."""
    found: dict[str, int] = {}
    types = dict(table.columns)
    for start in range(0, len(needles), NEEDLES_A_QUERY):
        counts = ", ".join(
            f"countIf({found_sql([name], types)}) as c{place}" for place, name in enumerate(columns)
        )
        row = warehouse.frame(
            f"select {counts} from {quoted(table.name)}",
            external={"needles": frame_of_needles(needles[start : start + NEEDLES_A_QUERY])},
            settings={"log_queries": "0"},
        ).row(0)
        for name, rows in zip(columns, row, strict=True):
            if rows:
                found[name] = found.get(name, 0) + int(rows)
    return found


def log_tables(warehouse: Warehouse) -> list[tuple[str, list[str]]]:
    """The server's own logs (`system.query_log` ...) that are tables, with their text columns."""
    rows = warehouse.frame(
        """
        select t.name as name, groupArray(c.name) as columns
        from system.tables as t
        inner join system.columns as c on c.database = t.database and c.table = t.name
        where t.database = 'system' and t.engine like '%MergeTree' and c.type like '%String%'
        group by name order by name
        """
    )
    return [(name, columns) for name, columns in rows.iter_rows() if _LOGS.search(name)]


def _in_logs(warehouse: Warehouse, needles: Sequence[str]) -> Iterator[Residue]:
    for name, columns in log_tables(warehouse):
        rows = 0
        for start in range(0, len(needles), NEEDLES_A_QUERY):
            texts = " or ".join(
                f"multiSearchAnyCaseInsensitive(toString(`{column}`), {_NEEDLES})" for column in columns
            )
            found = warehouse.frame(
                f"select count() from system.`{name}` where {texts}",
                external={"needles": frame_of_needles(needles[start : start + NEEDLES_A_QUERY])},
                settings={"log_queries": "0"},
            )
            rows += int(found.item())
        if rows:
            yield Residue(f"system.{name}", "queries that name the person", rows)


def any_needle(needles: Sequence[str]) -> re.Pattern[bytes]:
    """A pattern of all needles for bytes, without regard to case."""
    return re.compile(b"|".join(re.escape(one.encode()) for one in needles) or rb"(?!)", re.IGNORECASE)


def frame_of_needles(needles: Sequence[str]) -> pl.DataFrame:
    """Needles as a table that travels with a query."""
    return pl.DataFrame({"needle": list(needles)}, schema={"needle": pl.String()})
