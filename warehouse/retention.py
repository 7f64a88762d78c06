"""How long raw rows are kept: `content/retention.yaml`, a rule or more for each raw table, exhaustive.

A rule keeps rows for a time after a column, then deletes them or takes the personal data out of them. Whole partitions
that are over are dropped; the rest is a mutation that is waited for, so that rows are gone when a run says so. What was
done is a row of `raw.retention_runs`.

Two things are never deleted by age, whatever a rule says: stops (unsubscribed, complained, bounced, and what lifts
them), because people who left would be written to again; and consents, which prove what was right to send.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

import polars as pl
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.yaml_specs import (
    Problem,
    Spec,
    format_duration,
    load_spec,
    nearest,
    parse_duration,
    problems_error,
)

FILE: Final = "retention.yaml"
PROTECTED: Final[Mapping[str, str]] = {
    "raw.events": "type not in ('unsubscribed', 'subscribed', 'complained', 'bounced')",
}
"""Rows that rules may delete, where not all may be deleted."""
UNDELETABLE: Final[Mapping[str, str]] = {
    "raw.consents": "it is the proof of what was agreed to, and of what was withdrawn",
    "raw.consent_texts": "consents refer to its words",
    "raw.retention_runs": "it is the record of what was deleted",
}
"""Tables whose rows no rule deletes, and why."""
_BOOKKEEPING: Final = frozenset({"raw.schema_migrations"})
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MONTH_DAYS: Final = 31  # of `13 months`: rather a day more than one less


def _kept(value: object) -> object:
    if value is None or value == "forever":
        return None
    if isinstance(value, str) and (months := re.fullmatch(r"\s*(\d{1,3})\s*(?:months?|mo)\s*", value)):
        return parse_duration(f"{int(months[1]) * _MONTH_DAYS}d")
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f"{error}; or months, such as 13 months, or forever") from None


def _list(value: object) -> object:
    return value if isinstance(value, list) else [value]


class Rule(Spec):
    """What becomes of rows of one table.

    Attributes:
        keep: None: forever.
        after: the column from which the time runs.
        action: `pseudonymise` empties `columns`; ids stay.
        only: rows whose column has one of these values.
    """

    keep: Annotated[
        timedelta | None,
        BeforeValidator(_kept),
        PlainSerializer(lambda value: format_duration(value) if value else "forever", return_type=str),
    ] = Field(description="such as 90d, 13 months, or forever")
    after: str | None = Field(default=None, description="a column with a time, such as loaded_at")
    action: Literal["delete", "pseudonymise"] = Field(default="delete", description="delete or pseudonymise")
    columns: list[str] = Field(default_factory=list, description="what pseudonymise empties")
    only: dict[str, Annotated[list[str], BeforeValidator(_list)]] = Field(
        default_factory=dict, description="a column and the values of rows that it concerns"
    )

    @model_validator(mode="after")
    def _whole(self) -> Rule:
        if self.keep is None and (self.after or self.columns or self.only):
            raise ValueError("keeps forever, so it has nothing else; remove the other keys")
        if self.keep is not None and self.after is None:
            raise ValueError("says not from when: add after, a column with a time")
        if (self.action == "pseudonymise") != bool(self.columns):
            raise ValueError("columns and action: pseudonymise go together")
        return self


class RetentionSpec(Spec):
    """`content/retention.yaml`: rules by table."""

    tables: dict[str, Annotated[list[Rule], BeforeValidator(_list), Field(min_length=1)]]

    @classmethod
    def load(cls, content_dir: Path) -> RetentionSpec:
        """Read the file of a content folder.

        Raises:
            InputError: it is missing, or does not say what it must; names the line.
        """
        return load_spec(content_dir / FILE, cls)


@dataclass(frozen=True)
class Due:
    """What a rule comes to at a moment.

    Attributes:
        until: rows before it are concerned.
        partitions: ids of those that go as a whole.
        rows: how many go or are changed, those of partitions among them.
    """

    table: str
    rule: Rule
    until: datetime
    rows: int
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Column:
    kind: str
    is_key: bool


def check_rules(warehouse: Warehouse, spec: RetentionSpec) -> None:
    """Check that every raw table has its rule, and that rules name what there is and may be done.

    Raises:
        InputError: names each mistake, and what is allowed.
        WarehouseError: the warehouse does not answer.
    """
    tables = _tables(warehouse)
    problems: list[Problem] = [
        Problem(
            spec.place("tables"),
            f"tables: {name} has no rule.",
            f"Say how long it is kept: `{name}: {{keep: forever}}`.",
        )
        for name in sorted(tables.keys() - spec.tables.keys() - _BOOKKEEPING)
    ]
    for name, rules in spec.tables.items():
        if name not in tables:
            what = f"tables: there is no table {name}."
            problems.append(Problem(spec.place("tables", name), what, nearest(name, sorted(tables))))
            continue
        for index, rule in enumerate(rules):
            for what, hint in _wrong(name, rule, tables[name]):
                place = spec.place("tables", name, *([index] if len(rules) > 1 else []))
                problems.append(Problem(place, f"tables.{name}: {what}", hint))
    if problems:
        raise problems_error(problems)


def due(warehouse: Warehouse, spec: RetentionSpec, now: datetime) -> list[Due]:
    """What is over by now, in the file's order; changes nothing.

    Raises:
        InputError: as `check_rules`.
        WarehouseError: the warehouse does not answer.
    """
    check_rules(warehouse, spec)
    found: list[Due] = []
    for table, rules in spec.tables.items():
        for rule in rules:
            if rule.keep is None:
                continue
            until = now.astimezone(UTC) - rule.keep
            condition, parameters = _condition(table, rule, until)
            rows = int(
                warehouse.value(f"select count() from {table} where {condition}", parameters)  # noqa: S608
            )
            if rows:
                found.append(Due(table, rule, until, rows, _whole_partitions(warehouse, table, rule, until)))
    return found


def apply(warehouse: Warehouse, spec: RetentionSpec, now: datetime, *, run_id: str = "") -> list[Due]:
    """Delete and pseudonymise what is over; when it returns, it is gone. Doing it twice does nothing the second time.

    Raises:
        InputError: as `check_rules`; nothing was deleted then.
        WarehouseError: ClickHouse refused; what was done before is in `raw.retention_runs`.
    """
    done = due(warehouse, spec, now)
    for one in done:
        for partition in one.partitions:
            warehouse.execute(f"alter table {one.table} drop partition id '{partition}'")
        condition, parameters = _condition(one.table, one.rule, one.until)
        if warehouse.value(f"select count() from {one.table} where {condition}", parameters):  # noqa: S608
            # not `delete from`, which only hides rows until parts are merged
            what = "delete" if one.rule.action == "delete" else f"update {_blanks(one.rule)}"
            warehouse.execute(
                f"alter table {one.table} {what} where {condition} settings mutations_sync = 2", parameters
            )
        _note(warehouse, one, now, run_id)
    return done


def summary(found: Iterable[Due]) -> list[str]:
    """What is due or done, in lines."""
    lines: list[str] = []
    for one in found:
        word = "deleted" if one.rule.action == "delete" else "pseudonymised"
        whole = f", {len(one.partitions)} whole partitions" if one.partitions else ""
        lines.append(f"{one.table}: {one.rows:,} rows before {one.until:%Y-%m-%d %H:%M} UTC {word}{whole}")
    return lines


def _tables(warehouse: Warehouse) -> dict[str, dict[str, _Column]]:
    rows = warehouse.frame(
        """
        select concat(database, '.', table) as table_name, name, type,
            is_in_partition_key or is_in_sorting_key as is_key
        from system.columns where database = 'raw' order by table_name, position
        """
    )
    found: dict[str, dict[str, _Column]] = {}
    for table, name, kind, is_key in rows.iter_rows():
        found.setdefault(table, {})[name] = _Column(kind, bool(is_key))
    return found


def _wrong(table: str, rule: Rule, columns: Mapping[str, _Column]) -> list[tuple[str, str]]:
    """What is wrong with a rule, and what to do."""
    named = [*([rule.after] if rule.after else []), *rule.columns, *rule.only]
    problems = [
        (f"there is no column {name}.", nearest(name, list(columns)))
        for name in named
        if name not in columns or not _NAME.fullmatch(name)
    ]
    if problems or rule.keep is None:
        return problems
    assert rule.after is not None
    if "DateTime" not in columns[rule.after].kind:
        times = [name for name, column in columns.items() if "DateTime" in column.kind]
        problems.append((f"{rule.after} is no time.", f"Allowed: {', '.join(times)}."))
    if rule.action == "delete" and table in UNDELETABLE:
        hint = "Keep it forever, or pseudonymise columns; `mailhouse gdpr erase` is for one person."
        problems.append((f"its rows are not deleted by age: {UNDELETABLE[table]}.", hint))
    for name in rule.columns:
        column = columns[name]
        if column.is_key:
            problems.append(
                (f"{name} is a part of the table's key, which nothing changes.", "Delete the rows.")
            )
        elif column.kind not in ("String", "LowCardinality(String)", "JSON"):
            problems.append((f"{name} is {column.kind}; texts and JSON can be emptied.", ""))
    return problems


def _condition(table: str, rule: Rule, until: datetime) -> tuple[str, dict[str, object]]:
    """SQL of what a rule concerns, and its parameters."""
    parameters: dict[str, object] = {"until": until.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]}
    parts = [f"{rule.after} < toDateTime64({{until:String}}, 3, 'UTC')"]
    for index, (name, values) in enumerate(rule.only.items()):
        parts.append(f"toString({name}) in {{only{index}:Array(String)}}")
        parameters[f"only{index}"] = values
    if rule.action == "delete" and table in PROTECTED:
        parts.append(PROTECTED[table])
    if rule.action == "pseudonymise":
        parts.append(f"({' or '.join(f'not ({_is_blank(name)})' for name in rule.columns)})")
    return " and ".join(parts), parameters


def _is_blank(column: str) -> str:
    return f"toString({column}) in ('', '{{}}')"


def _blanks(rule: Rule) -> str:
    # an empty text of a JSON column is an empty object
    return ", ".join(f"{name} = defaultValueOfTypeName(toTypeName({name}))" for name in rule.columns)


def _whole_partitions(warehouse: Warehouse, table: str, rule: Rule, until: datetime) -> tuple[str, ...]:
    """Partitions of which all rows go."""
    if rule.action != "delete" or rule.only:
        return ()
    condition, parameters = _condition(table, rule, until)
    rows = warehouse.frame(
        f"""
        select _partition_id as id from {table} group by id having countIf(not ({condition})) = 0 order by id
        """,  # noqa: S608 - names are those of columns
        parameters,
    )
    # a table without partitions is one, named all: dropping it spares the mutation, too
    return tuple(str(one) for one in rows["id"])


def _note(warehouse: Warehouse, one: Due, now: datetime, run_id: str) -> None:
    warehouse.insert(
        "raw.retention_runs",
        pl.DataFrame(
            {
                "table_name": [one.table],
                "action": [one.rule.action],
                "rule": [
                    f"keep {format_duration(one.rule.keep)} after {one.rule.after}" if one.rule.keep else ""
                ],
                "until": [one.until],
                "rows_count": [one.rows],
                "partitions_count": [len(one.partitions)],
                "ran_at": [now],
                "run_id": [run_id],
            },
            schema_overrides={
                "until": pl.Datetime("ms", "UTC"), "ran_at": pl.Datetime("ms", "UTC"), "rows_count": pl.UInt64,
                "partitions_count": pl.UInt32,
            },
        ),
    )  # fmt: skip


__all__ = ["Due", "InputError", "RetentionSpec", "Rule", "apply", "check_rules", "due", "summary"]
