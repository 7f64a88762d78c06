"""Any database that SQLAlchemy speaks to, as a CRM: rows are read in order of time, and listed columns written.

`content/sources/*.yaml` names the table or query and what its columns mean (`crm.sql_specs`); each `source` of them is
a connector of its own (`sql_connectors`).

Reading goes by pages in order of (time, id), each from where the last one ended, so that memory and the database's
transactions stay small. What is younger than two seconds by the database's clock is waited for, once: a time may stand
for a whole second, and a row that changes again in it would look unchanged. What was read last is read once more,
`overlap` back, because a transaction brings its changes later than their time. Without a column of times all rows are
read each time, and what equals the newest stored version is no news.

Writing changes columns that `writes` lists, of rows that are there, and nothing else: the rows of a batch are read and
locked, compared, and written where id and time are still what they were. A row that has changed is a conflict.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from datetime import time as clock_time
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
import pyarrow as pa
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchTableError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

from crm.base import (
    Capabilities,
    Change,
    Connector,
    CrmError,
    CrmRefusedError,
    CrmUnavailableError,
    Kind,
    Pulled,
    Pushed,
    PushStatus,
    Removed,
    Row,
    Scalar,
    Usage,
    require,
    table_of,
)
from crm.http import Pace
from crm.settings import CrmSettings
from crm.specs import Moment, Value
from crm.sql_specs import SqlSource, load_sql_sources
from warehouse.errors import InputError, SettingsError
from warehouse.yaml_specs import nearest

logger = logging.getLogger(__name__)

PAGE: Final = 5_000
"""Rows of a page, and of a batch that is yielded."""
CHANGES: Final = 500
"""Changes of one transaction."""
SETTLED: Final = timedelta(seconds=2)
"""How long a time must be over before rows of it are read."""
STRANGE: Final = timedelta(minutes=1)
"""Times further ahead of the database's clock than this are not waited for: they are of another zone."""

_KINDS: dict[str, Kind] = {"contacts": "contact", "companies": "company", "deals": "deal", "tasks": "task"}
# the time now, as UTC without a zone or with one
_NOW: dict[str, str] = {
    "postgresql": "select clock_timestamp()",
    "sqlite": "select strftime('%Y-%m-%d %H:%M:%f', 'now')",
    "mysql": "select utc_timestamp(6)",
    "mariadb": "select utc_timestamp(6)",
    "mssql": "select sysutcdatetime()",
    "oracle": "select sys_extract_utc(systimestamp) from dual",
}
_MISMATCH = "42804"  # datatype_mismatch
_TRUE = frozenset({"true", "t", "yes", "y", "1", "on"})
_FALSE = frozenset({"false", "f", "no", "n", "0", "off", ""})


def sql_connectors(settings: CrmSettings) -> dict[str, type[SqlConnector]]:
    """Connectors of the databases that `content/sources/*.yaml` names, by `source`.

    Raises:
        InputError: a source is wrong.
        SettingsError: a source names a database that MAILHOUSE_SQL_URLS does not.
    """
    by_source: dict[str, dict[Kind, SqlSource]] = {}
    for one in load_sql_sources(settings.content_dir).values():
        if one.database not in settings.sql_urls:
            known = nearest(one.database, settings.sql_urls) or "It names none."
            raise SettingsError(
                f"{one.place('database')}: MAILHOUSE_SQL_URLS has no database {one.database!r}. {known}",
                fix=f'Set MAILHOUSE_SQL_URLS=\'{{"{one.database}": "postgresql+psycopg://user:password@host/database"}}\'.',
            )
        by_source.setdefault(one.source, {})[_KINDS[one.object]] = one
    return {source: _connector(source, specs) for source, specs in by_source.items()}


def _connector(source: str, specs: Mapping[Kind, SqlSource]) -> type[SqlConnector]:
    capabilities = Capabilities(
        kinds=frozenset(specs),
        pushes=frozenset(kind for kind, spec in specs.items() if spec.writes),
        erases=frozenset(kind for kind, spec in specs.items() if spec.erases),
        tells_deletes=any(spec.mapping.is_deleted for spec in specs.values()),
        looks_up=True,
        most_per_push=CHANGES,
    )
    return type(
        f"Sql_{source}", (SqlConnector,), {"name": source, "capabilities": capabilities, "specs": dict(specs)}
    )


class SqlConnector(Connector):
    """One source of a database; made by `sql_connectors`.

    Args:
        url: SQLAlchemy's.
        sleep: how to wait.

    Raises:
        SettingsError: the URL is none, or its driver is not installed. Never tells the URL.
    """

    name: ClassVar[str] = "sql"
    capabilities: ClassVar[Capabilities] = Capabilities(kinds=frozenset())
    specs: ClassVar[Mapping[Kind, SqlSource]] = {}

    def __init__(self, url: SecretStr, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.usage = Usage()
        self._sleep = sleep
        self._database = next(iter(self.specs.values())).database if self.specs else self.name
        self._secrets, self._engine = _engine(url, self._database)
        self._tables: dict[Kind, _Table] = {}

    @classmethod
    def is_configured(cls, settings: CrmSettings) -> bool:
        """Whether the settings know this source's database."""
        return any(spec.database in settings.sql_urls for spec in cls.specs.values())

    @classmethod
    def from_settings(
        cls,
        settings: CrmSettings,
        *,
        pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Self:
        """See `Connector.from_settings`; a database has neither pace nor transport."""
        del pace, transport
        if not cls.specs:
            raise SettingsError(
                "No source of content/sources is about a database.",
                fix="Write one (docs/crm-sql.md), and ask `sql_connectors` for its connector.",
            )
        spec = next(iter(cls.specs.values()))
        url = settings.sql_urls.get(spec.database)
        if url is None:
            raise SettingsError(
                f"{spec.place('database')}: MAILHOUSE_SQL_URLS has no database {spec.database!r}.",
                fix="Add its URL to MAILHOUSE_SQL_URLS.",
            )
        return cls(url, sleep=sleep)

    def close(self) -> None:
        """Give connections back."""
        self._engine.dispose()

    def check(self) -> str:
        """See `Connector.check`."""
        with self._transaction("first look") as connection:
            connection.execute(sa.select(sa.literal(1)))
        return f"{self._engine.dialect.name}: {', '.join(spec.table or spec.name for spec in self.specs.values())}"

    def unwritable(self, names: Sequence[str]) -> Mapping[str, str]:
        """See `Connector.unwritable`. Asks nothing of the database."""
        spec = self.specs.get("contact")
        if spec is None:
            return {}
        hint = f"name its column under writes: of content/sources/{spec.name}.yaml"
        return {name: hint for name in names if name not in spec.writes}

    # Reading

    def pull(self, kind: Kind, since: str | None) -> Iterator[Pulled]:
        """See `Connector.pull`.

        Raises:
            InputError: table or columns are not what the source says.
        """
        require(self, pull=kind)
        table = self._table(kind)
        position = _Position.read(since, self.name)
        self._require_order(table, is_first=since is None)
        yield from self._by_time(table, position) if table.changed is not None else self._all(table, position)

    def _by_time(self, table: _Table, position: _Position) -> Iterator[Pulled]:
        has_waited = False
        while True:
            now = self._now()
            records = self._page(table, position)
            horizon = (now - SETTLED).replace(microsecond=0)
            over: list[Mapping[str, Any]] = []
            held: datetime | None = None
            for record in records:
                at = self._time(table, record)
                if at is not None and horizon <= at <= now + STRANGE:
                    held = at
                    break
                over.append(record)
            if over:
                at = over[-1][table.changed_column]
                position = _Position(at, over[-1][table.id_column], at)
            is_more = held is None and len(records) == PAGE
            is_again = held is not None and not has_waited
            if not is_more and not is_again and position.seen is not None:
                # at its end: from some time before, whatever the id
                position = _Position(_before(position.seen, table.spec.overlap), None, position.seen)
            yield self._pulled(table, over, position, now)
            if is_again and held is not None:
                has_waited = True
                self._sleep(max(0.0, (held - now + SETTLED).total_seconds()) + 1)
            elif not is_more:
                return

    def _all(self, table: _Table, position: _Position) -> Iterator[Pulled]:
        now = self._now()
        while True:
            records = self._page(table, position)
            if records:
                position = _Position(id=records[-1][table.id_column])
            if len(records) < PAGE:
                position = _Position()
            yield self._pulled(table, records, position, now)
            if len(records) < PAGE:
                return

    def look_up(self, kind: Kind, ids: Sequence[str]) -> Pulled:
        """See `Connector.look_up`."""
        require(self, pull=kind)
        table = self._table(kind)
        now = self._now()
        found: list[Mapping[str, Any]] = []
        for start in range(0, len(ids), CHANGES):
            part = [table.id_of(number) for number in ids[start : start + CHANGES]]
            query = table.select().where(
                table.id.in_([self._bound(value) for value in part if value is not None])
            )
            with self._transaction(f"look-up of {table.spec.object}") as connection:
                found += [dict(one) for one in connection.execute(query).mappings()]
        pulled = self._pulled(table, found, _Position(), now)
        there = set(pulled.rows["external_id"].to_pylist())
        # later than any version that was read: without times those are of the moment of reading
        over = (now - SETTLED).replace(microsecond=0) + timedelta(milliseconds=1)
        at = over if table.changed is not None else now
        gone = [Row(number, at, True, "", "{}") for number in dict.fromkeys(ids) if number not in there]
        rows = pa.concat_tables([pulled.rows, table_of(gone)])
        return Pulled(rows, "", pulled.bad, is_by_content=pulled.is_by_content)

    def _page(self, table: _Table, position: _Position) -> list[Mapping[str, Any]]:
        query = table.select()
        if table.changed is not None:
            query = query.order_by(table.changed, table.id)
            if position.at is not None:
                at = self._bound(position.at)
                query = query.where(table.changed >= at)
                if position.id is not None:
                    query = query.where(sa.or_(table.changed > at, table.id > self._bound(position.id)))
            else:
                query = query.where(table.changed.is_not(None))
        else:
            query = query.order_by(table.id)
            if position.id is not None:
                query = query.where(table.id > self._bound(position.id))
        with self._transaction(f"page of {table.spec.object}") as connection:
            found = connection.execute(query.where(table.id.is_not(None)).limit(PAGE)).mappings()
            return [dict(one) for one in found]

    def _require_order(self, table: _Table, *, is_first: bool) -> None:
        """Refuse rows that no order would ever show."""
        lacking = [(table.id, "external_id")] if is_first else []
        if table.changed is not None:
            lacking.append((table.changed, "updated_at"))
        for column, name in lacking:
            query = sa.select(sa.literal(1)).select_from(table.source).where(column.is_(None)).limit(1)
            with self._transaction(f"look at {table.spec.object}") as connection:
                found = connection.execute(query).first()
            if found is not None:
                raise CrmRefusedError(
                    f"{table.spec.place('columns', name)}: rows of {table.shown} have no {column.name}, and "
                    "would never be read.",
                    fix="Leave them out with a query, or give them one there: coalesce(changed_at, created_at).",
                )

    def _pulled(
        self, table: _Table, records: Sequence[Mapping[str, Any]], position: _Position, now: datetime
    ) -> Pulled:
        rows: list[Row] = []
        bad: list[tuple[str, str]] = []
        for record in records:
            try:
                rows.append(
                    table.row(record, self._time(table, record) if table.changed is not None else now)
                )
            except ValueError as error:
                bad.append((str(error), json.dumps(_plain(dict(record)), ensure_ascii=True)[:2_000]))
        return Pulled(table_of(rows), position.text(), tuple(bad), is_by_content=table.changed is None)

    def _time(self, table: _Table, record: Mapping[str, Any]) -> datetime | None:
        """A row's time, None if it is none.

        Raises:
            CrmRefusedError: it has no zone, and the source names none.
        """
        value = record[table.changed_column]
        moment = table.spec.mapping.updated_at
        assert moment is not None
        try:
            return _utc(value, moment)
        except _NoZoneError:
            raise CrmRefusedError(
                f"{table.spec.place('columns', 'updated_at')}: times in column {table.changed_column!r} have no time "
                "zone.",
                fix=f"Write updated_at: {{column: {table.changed_column}, timezone: UTC}} with the zone they are in.",
            ) from None
        except ValueError:
            return None

    def _now(self) -> datetime:
        said = _NOW.get(self._engine.dialect.name)
        if said is None:
            return datetime.now(UTC)
        with self._transaction("look at the clock") as connection:
            moment = connection.execute(sa.text(said)).scalar_one()
        moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    # Writing

    def push(self, kind: Kind, changes: Sequence[Change]) -> list[Pushed]:
        """See `Connector.push`. Rows are changed, never added."""
        require(self, push=kind)
        table = self._table(kind)
        results: list[Pushed] = []
        has_written = False
        ours: dict[str, datetime | None] = {}
        for start in range(0, len(changes), CHANGES):
            chunk = changes[start : start + CHANGES]
            try:
                answers = self._push(table, chunk, ours)
            except CrmError as error:
                if not has_written:
                    raise
                answers = [
                    Pushed(change.key, "failed", change.external_id, None, error.message) for change in chunk
                ]
            has_written = has_written or any(answer.status == "written" for answer in answers)
            results += answers
        return results

    def _push(
        self, table: _Table, changes: Sequence[Change], ours: dict[str, datetime | None]
    ) -> list[Pushed]:
        answers: dict[int, Pushed] = {}
        valid: dict[int, dict[str, Any]] = {}
        for place, change in enumerate(changes):
            try:
                valid[place] = table.written(change)
            except ValueError as error:
                answers[place] = _answer(change, "invalid", reason=str(error))
        for places in _rounds(valid, changes):
            answers |= self._push_once(table, {place: changes[place] for place in places}, valid, ours)
        return [answers[place] for place in range(len(changes))]

    def _push_once(
        self,
        table: _Table,
        changes: Mapping[int, Change],
        values: Mapping[int, dict[str, Any]],
        ours: dict[str, datetime | None],
    ) -> dict[int, Pushed]:
        """Changes of different rows, in one transaction."""
        answers: dict[int, Pushed] = {}
        with self._transaction(f"change of {table.spec.object}", is_writing=True) as connection:
            found = self._rows_of(connection, table, list(changes.values()))
            due: dict[int, Mapping[str, Any]] = {}
            for place, change in changes.items():
                record, reason = found(change)
                if record is None:
                    status: PushStatus = "gone" if change.external_id else "invalid"
                    answers[place] = _answer(change, status, reason=reason)
                    continue
                at = self._time(table, record) if table.changed is not None else None
                number = _text(record[table.id_column]) or ""
                known = change.known_updated_at
                is_ours = number in ours and ours[number] == at
                if at is not None and known is not None and not is_ours and at > known.astimezone(UTC):
                    answers[place] = _answer(change, "conflict", number, at, "the row has changed since")
                elif all(_is_same(record[name], value) for name, value in values[place].items()):
                    answers[place] = _answer(change, "written", number, at)
                else:
                    due[place] = record
            answers |= self._update(connection, table, changes, values, due)
        ours |= {one.external_id: one.updated_at for one in answers.values() if one.status == "written"}
        return answers

    def _update(
        self,
        connection: sa.Connection,
        table: _Table,
        changes: Mapping[int, Change],
        values: Mapping[int, dict[str, Any]],
        due: Mapping[int, Mapping[str, Any]],
    ) -> dict[int, Pushed]:
        """Write rows, many at once where the database can say how many it found."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for place in due:
            groups.setdefault(tuple(sorted(values[place])), []).append(place)
        answers: dict[int, Pushed] = {}
        for names, places in groups.items():
            statement = table.update(names)
            parameters = [table.parameters(values[place], due[place]) for place in places]
            is_counted = False
            if len(places) > 1 and self._engine.dialect.supports_sane_multi_rowcount:
                try:
                    with connection.begin_nested() as savepoint:
                        self.usage.add("update")
                        is_counted = connection.execute(statement, parameters).rowcount == len(places)
                        if not is_counted:
                            savepoint.rollback()
                except (DataError, IntegrityError, ProgrammingError):
                    # one of them is at fault
                    is_counted = False
            if is_counted:
                answers |= {place: self._written(table, changes[place], due[place]) for place in places}
                continue
            for place, one in zip(places, parameters, strict=True):
                answers[place] = self._update_one(
                    connection, table, statement, one, changes[place], due[place]
                )
        self._add_times(connection, table, answers)
        return answers

    def _update_one(
        self,
        connection: sa.Connection,
        table: _Table,
        statement: sa.Update,
        parameters: Mapping[str, Any],
        change: Change,
        record: Mapping[str, Any],
    ) -> Pushed:
        try:
            with connection.begin_nested():
                self.usage.add("update")
                count = connection.execute(statement, parameters).rowcount
        except (DataError, IntegrityError, ProgrammingError) as error:
            if isinstance(error, ProgrammingError) and getattr(error.orig, "sqlstate", "") != _MISMATCH:
                raise
            return _answer(
                change, "invalid", _text(record[table.id_column]) or "", reason=self._reason(error)
            )
        if count < 1:
            return _answer(
                change, "conflict", _text(record[table.id_column]) or "", reason="the row has just changed"
            )
        return self._written(table, change, record)

    def _written(self, table: _Table, change: Change, record: Mapping[str, Any]) -> Pushed:
        return _answer(change, "written", _text(record[table.id_column]) or "")

    def _add_times(self, connection: sa.Connection, table: _Table, answers: dict[int, Pushed]) -> None:
        """The rows' times after they were written: a trigger may have moved them."""
        if table.changed is None:
            return
        written = {
            answer.external_id: place for place, answer in answers.items() if answer.status == "written"
        }
        if not written:
            return
        ids = [self._bound(value) for number in written if (value := table.id_of(number)) is not None]
        query = sa.select(table.id, table.changed).select_from(table.source).where(table.id.in_(ids))
        for record in connection.execute(query).mappings():
            place = written.get(_text(record[table.id_column]) or "")
            if place is not None:
                one = answers[place]
                at = self._time(table, dict(record))
                answers[place] = Pushed(one.key, one.status, one.external_id, at, one.reason)

    def _rows_of(
        self, connection: sa.Connection, table: _Table, changes: Sequence[Change]
    ) -> Callable[[Change], tuple[Mapping[str, Any] | None, str]]:
        """Reads and locks the rows of changes; gives a row, or why there is none."""
        by_id: dict[str, Mapping[str, Any]] = {}
        ids = [self._bound(value) for one in changes if (value := table.id_of(one.external_id)) is not None]
        if ids:
            query = table.select_for_update().where(table.id.in_(ids))
            by_id = {
                _text(one[table.id_column]) or "": dict(one) for one in connection.execute(query).mappings()
            }
        by_email: dict[str, list[Mapping[str, Any]]] = {}
        emails = sorted({_email_of(one) for one in changes if not one.external_id} - {""})
        if emails and table.email is not None:
            query = table.select_for_update().where(
                sa.func.lower(table.email).in_([self._bound(one) for one in emails])
            )
            for record in connection.execute(query).mappings():
                by_email.setdefault((_text(record[table.email.name]) or "").lower(), []).append(dict(record))

        def find(change: Change) -> tuple[Mapping[str, Any] | None, str]:
            if change.external_id:
                return by_id.get(change.external_id), "the row is not there any more"
            found = by_email.get(_email_of(change), [])
            if not found:
                return None, "no row has this address, and rows are never added to a database"
            # of several the oldest, if ids count up
            numbers = [_text(record[table.id_column]) or "" for record in found]
            return found[min(range(len(found)), key=lambda place: (len(numbers[place]), numbers[place]))], ""

        return find

    def erase(self, kind: Kind, ids: Sequence[str]) -> list[Removed]:
        """See `Connector.erase`. A row that others refer to is refused by the database."""
        require(self, erase=kind)
        table = self._table(kind)
        wanted = list(dict.fromkeys(ids))
        results: dict[str, Removed] = {}
        for start in range(0, len(wanted), CHANGES):
            with self._transaction(f"deletion of {table.spec.object}", is_writing=True) as connection:
                for number in wanted[start : start + CHANGES]:
                    results[number] = self._erase(connection, table, number)
        return [results[number] for number in ids]

    def _erase(self, connection: sa.Connection, table: _Table, number: str) -> Removed:
        value = table.id_of(number)
        if value is None:
            return Removed(number, "gone")
        self.usage.add("delete")
        try:
            with connection.begin_nested():
                count = connection.execute(table.delete(self._bound(value))).rowcount
        except IntegrityError as error:
            return Removed(number, "refused", self._reason(error))
        return Removed(number, "erased" if count else "gone")

    # Tables, connections, errors

    def _table(self, kind: Kind) -> _Table:
        if kind not in self._tables:
            self._tables[kind] = self._described(self.specs[kind])
        return self._tables[kind]

    def _described(self, spec: SqlSource) -> _Table:
        types: dict[str, Any] = {}
        if spec.query is not None:
            # a colon would be a parameter of ours
            inner = sa.text(spec.query.strip().rstrip(";").replace(":", "\\:"))
            with self._transaction(f"query of {spec.name}") as connection:
                none = sa.select(sa.text("*")).select_from(inner.columns().subquery("q")).where(sa.false())
                names = list(connection.execute(none).keys())
            source: sa.FromClause = inner.columns(*(sa.column(name) for name in names)).subquery("q")
        else:
            assert spec.table is not None
            schema, _, name = spec.table.rpartition(".")
            with self._transaction(f"columns of {spec.table}") as connection:
                try:
                    described = sa.inspect(connection).get_columns(name, schema=schema or None)
                except NoSuchTableError:
                    raise InputError(
                        f"{spec.place('table')}: {self._database} has no table {spec.table}.",
                        fix="Correct table: (schema.table), or let the user of MAILHOUSE_SQL_URLS see it.",
                    ) from None
            types = {one["name"]: one["type"] for one in described}
            names = list(types)
            # columns without types: values are what the driver makes of them, and go back to it as they came
            source = sa.table(name, *(sa.column(one) for one in names), schema=schema or None)
        return _Table(spec, source, names, types, is_native=self._engine.dialect.name != "sqlite")

    def _bound(self, value: Any) -> sa.BindParameter[Any]:
        return sa.bindparam(None, value, type_=sa.types.NULLTYPE, unique=True)

    @contextmanager
    def _transaction(self, what: str, *, is_writing: bool = False) -> Iterator[sa.Connection]:
        """A transaction whose errors are ours."""
        self.usage.add(what)
        options: dict[str, Any] = {"is_writing": is_writing}
        if self._engine.dialect.name == "postgresql":
            options["postgresql_readonly"] = not is_writing
        try:
            with self._engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise self._failed(error, what) from None

    def _failed(self, error: SQLAlchemyError, what: str) -> CrmError:
        place = f"Database {self._database!r}"
        reason = self._reason(error)
        if isinstance(error, OperationalError | InterfaceError) or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        ):
            return CrmUnavailableError(
                f"{place} fails on {what}: {reason}.",
                fix=f"Check that it runs and what MAILHOUSE_SQL_URLS says of {self._database}; then run again.",
            )
        return CrmRefusedError(
            f"{place} refuses {what}: {reason}.",
            fix="Correct the source in content/sources, or what its user may do.",
        )

    def _reason(self, error: SQLAlchemyError) -> str:
        """The database's first line, without secrets; what follows shows values of rows."""
        cause: object = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        text = lines[0] if lines else type(cause).__name__
        for secret in self._secrets:
            text = text.replace(secret, "...")
        return text[:200].rstrip(".")


@dataclass(frozen=True, slots=True)
class _Position:
    """How far a table was read: raw values of the last row, or none; `seen` is the newest time that was read."""

    at: Any = None
    id: Any = None
    seen: Any = None

    def text(self) -> str:
        """As a cursor."""
        return json.dumps(
            {
                name: _told(value)
                for name in ("at", "id", "seen")
                if (value := getattr(self, name)) is not None
            }
        )

    @staticmethod
    def read(cursor: str | None, source: str) -> _Position:
        """From a cursor.

        Raises:
            CrmError: it is none.
        """
        if cursor is None:
            return _Position()
        try:
            return _Position(**{str(name): _heard(value) for name, value in json.loads(cursor).items()})
        except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError):
            raise CrmError(
                f"The cursor of {source} cannot be read: {cursor[:80]!r}.",
                fix="Delete its row in raw.crm_cursors: all rows are read once more, and load once.",
            ) from None


class _Table:
    """A table or query with what its columns mean.

    Args:
        spec: the source.
        source: what is selected from.
        names: its columns. types: theirs, where they are known.
        is_native: whether the database has times, rather than texts for them.

    Raises:
        InputError: it has not the columns that the source names, or two of one name.
    """

    def __init__(
        self,
        spec: SqlSource,
        source: sa.FromClause,
        names: Sequence[str],
        types: Mapping[str, Any],
        *,
        is_native: bool,
    ) -> None:
        self.spec, self.source, self._types, self._is_native = spec, source, types, is_native
        self.shown = spec.table or "the query"
        mapping = spec.mapping
        self._fields = mapping.mapped()
        mapped = [name for value in self._fields.values() for name in value.columns]
        for place, wanted in (
            ("columns", mapped),
            ("ignore", spec.ignore),
            ("writes", list(spec.writes.values())),
        ):
            if missing := [name for name in wanted if name not in names]:
                raise InputError(
                    f"{spec.place(place)}: {self.shown} has no column {missing[0]!r}.",
                    fix=nearest(missing[0], names),
                )
        if twice := [name for index, name in enumerate(names) if name in names[:index]]:
            raise InputError(
                f"{spec.place('query')}: the query has two columns {twice[0]!r}.",
                fix="Name them apart with `as`.",
            )
        self._rest = [name for name in names if name not in mapped and name not in spec.ignore]
        kept = {name for name in self._fields if name not in ("external_id", "updated_at", "is_deleted")}
        for name in self._rest:
            path = next((other for other in (*self._rest, *kept) if other.startswith(f"{name}.")), None)
            if name in kept or name == "merged_into" or path is not None:
                raise InputError(
                    f"{spec.place('columns')}: column {name!r} clashes with the property {path or name!r}.",
                    fix=f"Write `ignore: [{name}]` into the source, map it, or rename it in a query.",
                )
        assert mapping.external_id.column is not None
        self.id_column: str = mapping.external_id.column
        self.id = source.c[self.id_column]
        self.changed_column = (mapping.updated_at.column if mapping.updated_at else None) or ""
        self.changed = source.c[self.changed_column] if mapping.updated_at else None
        email = self._fields.get("email")
        self.email = source.c[email.column] if email is not None and email.column else None
        self._selected = list(dict.fromkeys([*mapped, *self._rest]))

    def select(self) -> sa.Select[Any]:
        """All columns that are kept."""
        return sa.select(*(self.source.c[name] for name in self._selected))

    def select_for_update(self) -> sa.Select[Any]:
        """What a change is compared with, locked until the transaction ends."""
        names = dict.fromkeys([self.id_column, self.changed_column, *self.spec.writes.values()])
        columns = [self.source.c[name] for name in names if name]
        if self.email is not None and self.email.name not in names:
            columns.append(self.email)
        return sa.select(*columns).with_for_update()

    def delete(self, number: sa.BindParameter[Any]) -> sa.Delete:
        """Takes one row away."""
        assert isinstance(self.source, sa.TableClause)
        return sa.delete(self.source).where(self.id == number)

    def update(self, names: Sequence[str]) -> sa.Update:
        """Writes columns of the row whose id and time, or without a time whose values, are still these."""
        assert isinstance(self.source, sa.TableClause)

        def bound(name: str) -> sa.BindParameter[Any]:
            return sa.bindparam(name, type_=sa.types.NULLTYPE)

        statement = sa.update(self.source).where(self.id == bound("_id"))
        if self.changed is not None:
            statement = statement.where(self.changed == bound("_at"))
        else:
            for index, name in enumerate(names):
                statement = statement.where(self.source.c[name].is_not_distinct_from(bound(f"_old{index}")))
        return statement.values({name: bound(f"_new{index}") for index, name in enumerate(names)})

    def parameters(self, values: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
        """Of `update`."""
        names = sorted(values)
        given = {"_id": record[self.id_column]}
        given |= {f"_new{index}": values[name] for index, name in enumerate(names)}
        if self.changed is not None:
            return given | {"_at": record[self.changed_column]}
        return given | {f"_old{index}": record[name] for index, name in enumerate(names)}

    def written(self, change: Change) -> dict[str, Any]:
        """Columns and values of a change.

        Raises:
            ValueError: a field may not be written, or its column cannot hold the value.
        """
        values: dict[str, Any] = {}
        for name, value in change.fields.items():
            column = self.spec.writes.get(name)
            if column is None:
                if name == "email" and not change.external_id:
                    continue  # by which the row is found
                raise ValueError(f"{name} is not listed in writes: of {self.spec.name}, and not written")
            values[column] = self._held(name, column, value)
        return values

    def id_of(self, number: str) -> Any:
        """An id as the database has it, None if it can be none of its ids."""
        type_ = self._python_type(self.id_column)
        try:
            if type_ is int:
                return int(number)
            if type_ is Decimal:
                return Decimal(number)
            return UUID(number) if type_ is UUID else number or None
        except (ValueError, ArithmeticError):
            return None

    def _python_type(self, column: str) -> type[Any]:
        try:
            return self._types[column].python_type
        except (KeyError, NotImplementedError):
            return object

    def _held(self, name: str, column: str, value: Scalar) -> Any:
        type_ = self._python_type(column)
        if value is None:
            return None
        try:
            if type_ is bool:
                return _flag(value)
            if issubclass(type_, int):
                return int(value) if not isinstance(value, str) else int(value.strip())
            if issubclass(type_, float | Decimal):
                return type_(str(value))
            if issubclass(type_, date):
                moment = datetime.fromisoformat(str(value))
                if type_ is date:
                    return moment.date() if self._is_native else moment.date().isoformat()
                if not getattr(self._types[column], "timezone", False):
                    moment = moment.astimezone(self._zone).replace(tzinfo=None) if moment.tzinfo else moment
                elif moment.tzinfo is None:
                    moment = moment.replace(tzinfo=UTC)
                return moment if self._is_native else moment.isoformat(" ")
            return _text(value) if type_ is str else value
        except (ValueError, ArithmeticError):
            raise ValueError(f"{name} does not fit column {column}: {str(value)[:40]!r}") from None

    @property
    def _zone(self) -> tzinfo:
        moment = self.spec.mapping.updated_at
        return ZoneInfo(moment.timezone) if moment is not None and moment.timezone else UTC

    def row(self, record: Mapping[str, Any], at: datetime | None) -> Row:
        """A row of `PULLED`.

        Raises:
            ValueError: it is none; the message says why.
        """
        number = _text(record[self.id_column])
        if number is None:
            raise ValueError("external_id is missing")
        if at is None:
            raise ValueError(
                f"updated_at {_text(record[self.changed_column])!r} is no time from 1901 to 2298"
            )
        is_deleted = False
        named: dict[str, Any] = {}
        for name, value in self._fields.items():
            if name in ("external_id", "updated_at"):
                continue
            given = _value(value, record)
            if name == "is_deleted":
                is_deleted = _flag(given)
            elif isinstance(value, Moment):
                named[name] = _shown_time(name, given, value)
            else:
                named[name] = _text(given)
        named |= {name: _plain(record[name]) for name in self._rest}
        named = {name: value for name, value in named.items() if value is not None and value != ""}
        text = json.dumps(named, ensure_ascii=False, separators=(",", ":"))
        return Row(number, at, is_deleted, "", text.encode("utf-8", "replace").decode())


class _NoZoneError(ValueError):
    """A time without a zone."""


def _engine(url: SecretStr, database: str) -> tuple[list[str], sa.Engine]:
    """What must never be told, and the engine.

    Raises:
        SettingsError: the URL is none, or its driver is not installed.
    """
    place = f"MAILHOUSE_SQL_URLS: {database}"
    try:
        parsed = sa.make_url(url.get_secret_value())
    except (ArgumentError, ValueError):
        raise SettingsError(
            f"{place} is no URL of a database.",
            fix="Write it as postgresql+psycopg://user:password@host/database, percent-encoding special characters.",
        ) from None
    secrets = [url.get_secret_value(), str(parsed.password or "")]
    for name, value in parsed.query.items():
        if any(word in name.lower() for word in ("pass", "pwd", "secret", "token", "key")):
            secrets += [value] if isinstance(value, str) else list(value)
    file = parsed.database or ""
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if (
        is_sqlite
        and file not in ("", ":memory:")
        and not file.startswith("file:")
        and not Path(file).exists()
    ):
        raise SettingsError(
            f"{place}: there is no file {file}.", fix="Correct its path; four slashes begin one."
        )
    try:
        arguments = (
            {"connect_timeout": 10} if parsed.get_backend_name() in ("postgresql", "mysql", "mariadb") else {}
        )
        engine = sa.create_engine(parsed, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{place}: the driver {error.name} is not installed.",
            fix=f"Install it (for PostgreSQL: pip install 'psycopg[binary]'), or name another: "
            f"{parsed.get_backend_name()}+driver://...",
        ) from None
    except (ArgumentError, TypeError):
        raise SettingsError(
            f"{place} names a database that SQLAlchemy does not know: {parsed.drivername}.",
            fix="Write it as postgresql+psycopg://user:password@host/database.",
        ) from None
    if is_sqlite:
        # the driver would begin transactions at the first change, too late for what was read before it
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", _begin_sqlite)
    return [one for one in secrets if one], engine


def _begin_sqlite(connection: sa.Connection) -> None:
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("begin immediate" if is_writing else "begin")


def _answer(
    change: Change, status: PushStatus, number: str = "", at: datetime | None = None, reason: str = ""
) -> Pushed:
    return Pushed(change.key, status, number or change.external_id, at, reason)


def _email_of(change: Change) -> str:
    return (_text(change.fields.get("email")) or "").lower()


def _rounds(places: Iterable[int], changes: Sequence[Change]) -> list[list[int]]:
    """Places of changes, those of one row in different rounds."""
    rounds: list[list[int]] = []
    seen: dict[str, int] = {}
    for place in places:
        change = changes[place]
        row = change.external_id or f"@{_email_of(change)}"
        index = seen.get(row, 0)
        seen[row] = index + 1
        if index == len(rounds):
            rounds.append([])
        rounds[index].append(place)
    return rounds


# Values


def _value(value: Value, record: Mapping[str, Any]) -> Any:
    if value.column is not None:
        return record[value.column]
    if value.template is not None:
        parts = {name: _text(record[name]) for name in value.columns}
        return None if None in parts.values() else value.template.format(**parts)
    return value.value


def _text(value: Any) -> str | None:
    """A value as text without surrounding spaces, None if empty. Whole numbers have no decimal point."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if isinstance(value, datetime | date | clock_time):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        value = bytes(value).decode("utf-8", "replace")
    return str(value).strip() or None


def _plain(value: Any) -> Any:
    """A value of a column as JSON has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return _text(value)


def _flag(value: Any) -> bool:
    """Whether a value says yes; a time, such as that of a deletion, does.

    Raises:
        ValueError: it says neither.
    """
    if value is None or isinstance(value, bool | int | float | Decimal):
        return bool(value)
    if isinstance(value, date):
        return True
    text = (_text(value) or "").lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is neither true nor false") from None
    return True


def _utc(value: Any, moment: Moment) -> datetime:
    """A time in UTC, to the millisecond.

    Raises:
        ValueError: it is none; `_NoZoneError` if it has no zone.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value.strip())
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime) or not 1901 <= value.year <= 2298:
        raise ValueError("is no time")
    if value.tzinfo is None:
        if moment.timezone is None:
            raise _NoZoneError
        value = value.replace(tzinfo=ZoneInfo(moment.timezone))
    value = value.astimezone(UTC)
    return value.replace(microsecond=value.microsecond // 1000 * 1000)


def _shown_time(name: str, value: Any, moment: Moment) -> str | None:
    if value is None or value == "":
        return None
    try:
        return _utc(value, moment).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except _NoZoneError:
        raise ValueError(f"{name} has no time zone; write {name}: {{column: ..., timezone: UTC}}") from None
    except ValueError:
        raise ValueError(f"{name} {_text(value)!r} is no time from 1901 to 2298") from None


def _is_same(before: Any, after: Any) -> bool:
    if isinstance(before, int | float | Decimal) and isinstance(after, int | float | Decimal):
        return float(before) == float(after)
    return before == after


def _before(value: Any, overlap: timedelta) -> Any:
    """A raw time so much earlier, in the same form; as it is where it has none that is known."""
    try:
        if isinstance(value, str):
            text = value.strip()
            earlier = datetime.fromisoformat(text) - overlap
            if len(text) == 10:
                return earlier.date().isoformat()
            end = text[19:]
            shown = earlier.isoformat(text[10], timespec="microseconds" if "." in end else "seconds")
            return shown.replace("+00:00", "Z") if end.endswith(("Z", "z")) else shown
        if isinstance(value, datetime):
            return value - overlap
        if isinstance(value, date):
            return value - timedelta(days=math.ceil(overlap / timedelta(days=1)))
    except (ValueError, OverflowError):
        return value
    return value


def _told(value: Any) -> list[Any]:
    """A raw value with its type, as JSON."""
    if isinstance(value, bool | int | float | str):
        return ["json", value]
    if isinstance(value, datetime):
        return ["datetime", value.isoformat()]
    if isinstance(value, date):
        return ["date", value.isoformat()]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if isinstance(value, UUID):
        return ["uuid", str(value)]
    raise CrmRefusedError(
        f"Ids or times of type {type(value).__name__} cannot be read in order.",
        fix="Convert the column to a number, text or time in a query.",
    )


_HEARD: dict[str, Callable[[Any], Any]] = {
    "json": lambda value: value,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "decimal": Decimal,
    "uuid": UUID,
}


def _heard(told: Sequence[Any]) -> Any:
    return _HEARD[told[0]](told[1])
