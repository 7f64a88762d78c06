"""What people write in `content/sources/*.yaml` about a database: which table or query, and which column means what.

A source is about a database if it says `database:`. `docs/crm-sql.md` is the reference.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from crm.specs import Columns, ContactColumns, Moment, Name, Value, Word, is_database
from warehouse.errors import InputError
from warehouse.yaml_specs import Duration, Problem, Spec, load_spec, problems_error, read_document


class RecordColumns(Columns):
    """Fields of a company, deal or task; all other columns keep their names."""

    external_id: Value
    updated_at: Moment | None = None
    is_deleted: Value | None = None


class SqlSource(Spec):
    """One file of `content/sources` about a database.

    Attributes:
        name: the YAML file's name: source and object, as `erp_contacts`.
        source: where the rows come from; sources that share it share external ids, and one database.
        object: what a row is.
        database: name of an address in MAILHOUSE_SQL_URLS.
        table: `table` or `schema.table`. query: instead of it, a SELECT of one's own.
        ignore: columns that are not kept.
        writes: columns that may be written, from our field to the column; nothing else is ever written.
        erases: whether `mailhouse gdpr erase --in-crms` may delete a person's rows.
        overlap: before the newest time that was read, from where reading starts again: transactions that take long
            bring changes with an earlier time.
    """

    name: Name
    source: Name
    object: Literal["contacts", "companies", "deals", "tasks"]
    description: str = ""
    database: Name
    table: Word | None = Field(default=None, description="a table, as customers or sales.customers.")
    query: Word | None = Field(default=None, description="a SELECT.")
    ignore: list[str] = Field(default_factory=list)
    writes: dict[str, Word] = Field(default_factory=dict)
    erases: bool = Field(default=False, description="true or false")
    overlap: Duration = timedelta(minutes=5)

    @model_validator(mode="after")
    def _one(self) -> SqlSource:
        if (self.table is None) == (self.query is None):
            raise ValueError("needs exactly one of table and query")
        if self.writes and self.table is None:
            raise ValueError("writes into a query; name the table instead, or take writes: out")
        if self.erases and self.table is None:
            raise ValueError("deletes rows of a query; name the table instead, or take erases: out")
        if self.name != f"{self.source}_{self.object}":
            # so is its asset called, and no other source must be
            raise ValueError(f"is not called as what it reads; rename it to {self.source}_{self.object}")
        columns = self.mapping
        for name in ("external_id", "updated_at"):
            value: Value | None = getattr(columns, name)
            if value is not None and value.column is None:
                raise ValueError(
                    f"reads {name} from no column; write {name}: Column, rows are read in its order"
                )
        for name, value in columns.mapped().items():
            if isinstance(value, Moment) and value.format is not None:
                raise ValueError(
                    f"gives {name} a format; a database has times, or convert the column in a query"
                )
        fixed = {columns.external_id.column, columns.updated_at.column if columns.updated_at else None}
        for name, column in self.writes.items():
            if column in fixed:
                raise ValueError(
                    f"writes {name} into {column}, which tells rows apart; take it out of writes:"
                )
        return self

    @property
    def mapping(self) -> ContactColumns | RecordColumns:
        """The column mapping."""
        columns: ContactColumns | RecordColumns = getattr(self, "columns")  # noqa: B009 - of the classes below
        return columns


class SqlContacts(SqlSource):
    """People: one row a person."""

    columns: ContactColumns


class SqlRecords(SqlSource):
    """Companies, deals or tasks."""

    columns: RecordColumns


def load_sql_sources(content_dir: Path) -> dict[str, SqlSource]:
    """Those of `content_dir/sources/*.yaml` that are about databases; from names, in order, to sources.

    Raises:
        InputError: lists the mistakes of all files, each with its line and what is allowed.
    """
    folder = content_dir / "sources"
    sources: dict[str, SqlSource] = {}
    problems: list[Problem] = []
    for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
        try:
            if is_database(path):
                kind: Any = read_document(path).values.get("object")
                sources[path.stem] = load_spec(
                    path, SqlContacts if kind == "contacts" else SqlRecords, name_key="name"
                )
        except InputError as error:
            problems.append(Problem("", error.message, error.fix))
    databases: dict[str, SqlSource] = {}
    for one in sources.values():
        other = databases.setdefault(one.source, one)
        if other.database != one.database:
            hint = "Let sources of one name share a database, or give them different source:."
            problems.append(
                Problem(
                    one.place("database"), f"{other.name} reads {one.source} from {other.database}.", hint
                )
            )
    if problems:
        raise problems_error(problems)
    return sources
