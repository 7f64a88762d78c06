"""Databases as CRMs: rows arrive completely however they change, and only listed columns are ever written."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from crm import sql
from crm.base import (
    PULLED,
    Change,
    CrmError,
    CrmNotSupportedError,
    CrmRefusedError,
    CrmUnavailableError,
    Kind,
    Pulled,
    Pushed,
)
from crm.connectors import configured, connect, kinds
from crm.pulling import load
from crm.settings import CrmSettings
from crm.specs import load_sources
from crm.sql import SqlConnector, sql_connectors
from warehouse.client import Warehouse
from warehouse.errors import InputError, SettingsError
from warehouse.loads import LoadResult

CONTACTS = """
name: erp_contacts
source: erp
object: contacts
database: main
table: customers
columns:
  external_id: id
  email: mail
  first_name: first
  country: {value: DE}
  created_at: {column: born, timezone: UTC}
  updated_at: {column: changed, timezone: UTC}
  is_deleted: gone
ignore: [secret note]
writes: {mailhouse_engagement_score: score, mailhouse_last_open_at: opened, last_name: last}
overlap: 60s
"""
TABLE = """
create table customers (
    id integer primary key, mail text, first text, last text, born text, changed text, gone boolean default false,
    score double precision, opened timestamp, "secret note" text, "group" text
)
"""
PAST = datetime(2026, 6, 27, 9, tzinfo=UTC)


class Place:
    """A content folder, a database in it, and connectors."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder = folder
        self.url = url or f"sqlite:///{folder / 'main.db'}"
        (folder / "sources").mkdir(parents=True)
        if not url:
            self.run(TABLE)
        self.waits: list[float] = []
        self.write("erp_contacts", CONTACTS)

    def run(self, statement: str, *rows: tuple[Any, ...]) -> None:
        with sqlite3.connect(self.url.removeprefix("sqlite:///")) as connection:
            connection.execute("pragma synchronous = off")
            if rows:
                connection.executemany(statement, rows)
            else:
                connection.execute(statement)
        connection.close()

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.url.removeprefix("sqlite:///")) as connection:
            found = connection.execute(statement).fetchall()
        connection.close()
        return found

    def write(self, name: str, text: str) -> None:
        (self.folder / "sources" / f"{name}.yaml").write_text(text)

    @property
    def settings(self) -> CrmSettings:
        return CrmSettings.model_validate({"content_dir": self.folder, "sql_urls": {"main": self.url}})

    def connector(self, source: str = "erp") -> SqlConnector:
        chosen = self.settings
        return sql_connectors(chosen)[source].from_settings(chosen, sleep=self.waits.append)

    def pull(self, since: str | None = None, kind: Kind = "contact", source: str = "erp") -> list[Pulled]:
        with self.connector(source) as connector:
            return list(connector.pull(kind, since))

    def push(self, *changes: Change, kind: Kind = "contact") -> list[Pushed]:
        with self.connector() as connector:
            return connector.push(kind, changes)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "content")


def records(pulled: list[Pulled]) -> dict[str, dict[str, Any]]:
    assert all(one.rows.schema == PULLED for one in pulled)
    rows = [row for one in pulled for row in one.rows.to_pylist()]
    return {row["external_id"]: json.loads(row.pop("properties")) | row for row in rows}


def add(place: Place, *numbers: int, at: datetime = PAST, **values: Any) -> None:
    """Rows with these ids, new or changed, as of a time."""
    changed = at.strftime("%Y-%m-%d %H:%M:%S")
    rows = [(number, f"p{number}@example.com", changed, *values.values()) for number in numbers]
    names = ", ".join(f'"{name}"' for name in ("id", "mail", "changed", *values))
    marks = ", ".join("?" * (3 + len(values)))
    place.run(f"insert or replace into customers ({names}) values ({marks})", *rows)


def change(key: str = "k", external_id: str = "", known: datetime | None = None, **fields: Any) -> Change:
    return Change(key, external_id, fields, known)


# Reading


def test_rows_arrive_as_the_source_says(place: Place) -> None:
    add(
        place,
        7,
        first=" Ann ",
        last="Lee",
        born="2026-01-02T03:04:05+02:00",
        score=2.5,
        group="A",
        **{"secret note": "x"},
    )
    add(place, 8, first="", gone=True)
    found = records(place.pull())
    assert found["7"] == {
        "external_id": "7", "updated_at": PAST, "is_deleted": False, "merged_into": "", "email": "p7@example.com",
        "first_name": "Ann", "country": "DE", "created_at": "2026-01-02T01:04:05.000Z", "last": "Lee", "score": 2.5,
        "group": "A",
    }  # fmt: skip
    assert found["8"]["is_deleted"]
    assert load_sources(place.folder) == {}, "files are another matter"


def test_a_query_companies_and_a_soft_delete(place: Place) -> None:
    add(place, 1, 2, last="Lee")
    place.write(
        "erp_companies",
        """
        name: erp_companies
        source: erp
        object: companies
        database: main
        query: |
          select id::text as no, 'Ltd: ' || last as name, '12:30' as opens, '100%' as share,
                 case id when 2 then changed end as removed_at, changed
          from customers;
        columns: {external_id: no, updated_at: {column: changed, timezone: Europe/Berlin}, is_deleted: removed_at}
        """.replace("id::text", "cast(id as text)"),
    )
    found = records(place.pull(kind="company"))
    assert found["1"] == {
        "external_id": "1", "updated_at": PAST - timedelta(hours=2), "is_deleted": False, "merged_into": "",
        "name": "Ltd: Lee", "opens": "12:30", "share": "100%",
    }  # fmt: skip
    assert found["2"]["is_deleted"]
    with place.connector() as connector:
        assert connector.capabilities.kinds == {"contact", "company"}
        assert connector.capabilities.pushes == {"contact"}
        assert connector.name == "erp"


def test_only_what_changed_is_read_and_the_overlap(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "PAGE", 10)
    for number in range(1, 36):
        add(place, number, at=PAST + timedelta(seconds=10 * number))
    first = place.pull()
    assert len(records(first)) == 35
    assert [one.rows.num_rows for one in first] == [10, 10, 10, 5]
    add(place, 3, at=PAST + timedelta(hours=1), first="New")
    # a transaction that took long
    add(place, 99, at=PAST + timedelta(seconds=300))
    second = place.pull(first[-1].cursor)
    assert records(second).keys() == {"3", "99", *(str(number) for number in range(29, 36))}
    third = place.pull(second[-1].cursor)
    assert records(third).keys() == {"3"}
    # nothing changes, and the cursor stays
    place.run("delete from customers where id = 3")
    fourth = place.pull(third[-1].cursor)
    assert fourth[-1].cursor == third[-1].cursor
    assert place.waits == []


def test_what_has_just_changed_is_waited_for_once(place: Place) -> None:
    with place.connector() as connector:
        now = connector._now()
    add(place, 1, at=PAST)
    add(place, 2, at=now)
    add(place, 3, at=now + timedelta(hours=2))
    pulled = place.pull()
    assert records(pulled).keys() == {"1"}, "the sleep of a test is none"
    assert len(place.waits) == 1
    assert 1 <= place.waits[0] <= 4
    add(place, 2, at=now - timedelta(seconds=10))
    found = records(place.pull(pulled[-1].cursor))
    assert found.keys() == {"1", "2", "3"}, "a time far ahead is of another zone, and not waited for"


happenings = given(
    count=st.integers(0, 20),
    page=st.integers(1, 5),
    edits=st.lists(st.lists(st.tuples(st.integers(1, 25), st.integers(0, 3)), max_size=4), max_size=12),
    stops=st.lists(st.integers(1, 4), max_size=4),
)


@settings(max_examples=6)
@happenings
def test_nothing_is_missed_whatever_changes_while_we_read(
    tmp_path_factory: pytest.TempPathFactory, **happening: Any
) -> None:
    read_while(tmp_path_factory, **happening)


@pytest.mark.slow
@settings(max_examples=60)
@happenings
def test_nothing_is_missed_whatever_changes_at_length(
    tmp_path_factory: pytest.TempPathFactory, **happening: Any
) -> None:
    read_while(tmp_path_factory, **happening)


def read_while(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    page: int,
    edits: list[list[tuple[int, int]]],
    stops: list[int],
) -> None:
    """Rows change between pages, many in the same second; the reader dies now and then and goes on from its cursor."""
    place = Place(tmp_path_factory.mktemp("sql") / "content")
    # an overlap would make good what is missed
    place.write("erp_contacts", CONTACTS.replace("overlap: 60s", "overlap: 1ms"))
    clock = PAST
    for number in range(1, count + 1):
        add(place, number, at=clock + timedelta(seconds=number % 3), first="old")
    clock += timedelta(minutes=1)
    happening, version = iter(edits), 0
    stored: dict[tuple[str, datetime], dict[str, Any]] = {}
    cursor: str | None = None
    connector_class = sql_connectors(place.settings)["erp"]

    def happen() -> None:
        nonlocal clock, version
        for number, seconds in next(happening, []):
            clock += timedelta(seconds=seconds)
            version += 1
            add(place, number, at=clock, first=f"v{version}")

    def sleep(seconds: float) -> None:
        nonlocal clock
        clock += timedelta(seconds=seconds)

    def read(stop: int = 10**6) -> None:
        nonlocal cursor
        with connector_class.from_settings(place.settings, sleep=sleep) as connector:
            connector._now = lambda: clock
            for index, one in enumerate(connector.pull("contact", cursor)):
                happen()
                if index == stop:
                    return
                for row in one.rows.to_pylist():
                    stored.setdefault((row["external_id"], row["updated_at"]), json.loads(row["properties"]))
                cursor = one.cursor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql, "PAGE", page)
        for stop in stops:
            read(stop)
        while next(happening, None) is not None:
            read()
        sleep(10)
        read()
    newest = {
        number: row["first_name"] for (number, _), row in sorted(stored.items(), key=lambda item: item[0])
    }
    assert newest == {str(number): first for number, first in place.rows("select id, first from customers")}


def test_without_times_all_is_read_each_time_and_compared_by_content(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "PAGE", 4)
    text = CONTACTS.replace("  updated_at: {column: changed, timezone: UTC}\n", "")
    place.write("erp_contacts", text)
    add(place, *range(1, 11))
    first = place.pull()
    assert [one.rows.num_rows for one in first] == [4, 4, 2]
    assert all(one.is_by_content for one in first)
    assert len({row["updated_at"] for one in first for row in one.rows.to_pylist()}) == 1
    assert len(records(place.pull(first[0].cursor))) == 6, "a load that broke off goes on"
    assert len(records(place.pull(first[-1].cursor))) == 10


def test_bad_rows_are_set_apart(place: Place) -> None:
    add(place, 1)
    add(place, 2, gone="perhaps")
    add(place, 3, born="yesterday")
    place.run("insert into customers (id, mail, changed) values (4, 'x', 'soon')")
    (pulled,) = place.pull()
    assert pulled.rows["external_id"].to_pylist() == ["1"]
    reasons = sorted(reason for reason, _ in pulled.bad)
    assert reasons == [
        "'perhaps' is neither true nor false",
        "created_at 'yesterday' is no time from 1901 to 2298",
        "updated_at 'soon' is no time from 1901 to 2298",
    ]
    assert json.loads(pulled.bad[0][1])["id"] in (2, 3, 4)


def test_rows_that_no_order_shows_are_an_error(place: Place) -> None:
    add(place, 1)
    place.run("insert into customers (id, mail) values (2, 'x@example.com')")
    with pytest.raises(
        CrmRefusedError, match=r"sources/erp_contacts.yaml:\d+: rows of customers have no changed"
    ):
        place.pull()


def test_times_without_a_zone_are_an_error(place: Place) -> None:
    add(place, 1)
    place.write(
        "erp_contacts",
        CONTACTS.replace("updated_at: {column: changed, timezone: UTC}", "updated_at: changed"),
    )
    with pytest.raises(CrmRefusedError, match="times in column 'changed' have no time zone") as caught:
        place.pull()
    assert "timezone: UTC" in caught.value.fix


def test_single_rows_are_looked_up(place: Place) -> None:
    add(place, 1, 2)
    with place.connector() as connector:
        found = connector.look_up("contact", ["1", "9", "x"])
    rows = {row["external_id"]: row["is_deleted"] for row in found.rows.to_pylist()}
    assert rows == {"1": False, "9": True, "x": True}
    assert found.cursor == ""


def test_a_cursor_that_is_none(place: Place) -> None:
    for cursor in ("x", "[]", '{"at": 1}', '{"at": ["date", "x"]}', '{"id": ["pickle", "x"]}'):
        with pytest.raises(CrmError, match="The cursor of erp cannot be read"):
            place.pull(cursor)


# What people write


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("table: customers", "", "needs exactly one of table and query"),
        ("table: customers", "table: customers\nquery: select 1", "needs exactly one of table and query"),
        ("table: customers", "query: select * from customers", "writes into a query"),
        ("external_id: id", "external_id: {template: 'c{id}'}", "reads external_id from no column"),
        ("{column: changed,", "{column: changed, format: '%d.%m.%Y',", "gives updated_at a format"),
        ("last_name: last", "last_name: id", "writes last_name into id"),
        ("object: contacts", "object: orders", "object"),
        ("source: erp", "source: shop", "Rename it to shop_contacts"),
        ("overlap: 60s", "overlap: 1", "overlap"),
        ("database: main", "database: main\nfiles: x.csv", "files"),
    ],
)  # fmt: skip
def test_mistakes_in_a_source(place: Place, old: str, new: str, message: str) -> None:
    assert old in CONTACTS
    place.write("erp_contacts", CONTACTS.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        place.pull()
    assert "erp_contacts.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message", "fix"),
    [
        ("table: customers", "table: custommers", "main has no table custommers", "schema.table"),
        ("email: mail", "email: e_mail", "customers has no column 'e_mail'", "mail"),
        ("ignore: [secret note]", "ignore: [secret]", "customers has no column 'secret'", "secret note"),
        ("score: score", "score: scores", "customers has no column 'scores'", "score"),
        ("  email: mail\n", "  email: last\n  phone: mail\n  last_name: first\n", "", ""),
    ],
)
def test_columns_that_are_not_there(place: Place, old: str, new: str, message: str, fix: str) -> None:
    add(place, 1)
    place.write("erp_contacts", CONTACTS.replace(old, new))
    if not message:
        assert place.pull()
        return
    with pytest.raises(InputError, match=message) as caught:
        place.pull()
    assert fix in caught.value.fix


def test_columns_that_clash(place: Place) -> None:
    place.run("alter table customers add column email text")
    with pytest.raises(InputError, match="column 'email' clashes with the property 'email'"):
        place.pull()


def test_sources_of_one_name(place: Place) -> None:
    place.write("more", CONTACTS.replace("erp_contacts", "more"))
    with pytest.raises(InputError, match=r"(?s)more.yaml.*Rename it to erp_contacts"):
        place.pull()
    (place.folder / "sources" / "more.yaml").unlink()
    place.write("crm_contacts", CONTACTS.replace("erp", "crm"))
    assert sql_connectors(place.settings).keys() == {"erp", "crm"}
    assert {one.name for one in configured(place.settings)} == {"erp", "crm"}
    place.write("pipedrive_contacts", CONTACTS.replace("erp", "pipedrive"))
    with pytest.raises(InputError, match="pipedrive is the name of a CRM"):
        configured(place.settings)
    deals = (
        "name: erp_deals\nsource: erp\nobject: deals\ndatabase: other\ntable: t\ncolumns: {external_id: id}\n"
    )
    place.write("erp_deals", deals)
    with pytest.raises(InputError, match="erp_contacts reads erp from main"):
        place.pull()


def test_databases_that_the_settings_do_not_name(place: Place) -> None:
    place.write("erp_contacts", CONTACTS.replace("database: main", "database: mein"))
    with pytest.raises(SettingsError, match=r"has no database 'mein'.* Did you mean main"):
        place.connector()
    assert not SqlConnector.is_configured(place.settings)
    with pytest.raises(SettingsError, match="No source"):
        SqlConnector.from_settings(place.settings)


# Secrets

SECRET = "s3cret-of-the-test"


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        (f"nonsense {SECRET}", SettingsError, "main is no URL"),
        (f"oracle+nodriver://u:{SECRET}@h/d", SettingsError, "does not know: oracle.nodriver"),
        (f"mysql+pymysql://u:{SECRET}@127.0.0.1/d", SettingsError, "driver pymysql is not installed"),
        (f"sqlite:////nowhere/{SECRET[:2]}/x.db", SettingsError, "there is no file"),
        (f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/d?sslpassword={SECRET}2", CrmUnavailableError, "'main' fails"),
    ],
)  # fmt: skip
def test_urls_that_lead_nowhere_are_never_told(
    place: Place, url: str, error: type[Exception], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    place.url = url
    assert SECRET not in repr(place.settings)
    with pytest.raises(error, match=message) as caught:
        place.pull()
    assert SECRET not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", ["x", "[]", '{"main": 1}', '{"main": "' + SECRET])
def test_settings_that_are_no_json(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MAILHOUSE_SQL_URLS", value)
    with pytest.raises(SettingsError, match="MAILHOUSE_SQL_URLS") as caught:
        CrmSettings.load()
    assert SECRET not in str(caught.value)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILHOUSE_SQL_URLS", '{"main": "sqlite://"}')
    assert CrmSettings.load().sql_urls["main"].get_secret_value() == "sqlite://"


def test_a_databases_words_are_told_without_the_password(place: Place) -> None:
    place.url = f"postgresql+psycopg://u:{SECRET}@h/d"
    with place.connector() as connector:
        error = sa.exc.ProgrammingError(
            "select 1", {"a": "value"}, RuntimeError(f"no {SECRET} {place.url}\nDETAIL: row")
        )
        failed = connector._failed(error, "page")
    assert SECRET not in str(failed)
    assert "DETAIL" not in str(failed)
    assert "value" not in str(failed)


# Writing


def test_listed_columns_are_written_and_nothing_else(place: Place) -> None:
    add(place, 1, 2, first="Ann")
    results = place.push(
        change(
            "a",
            "1",
            PAST,
            mailhouse_engagement_score=71.5,
            mailhouse_last_open_at="2026-06-01T12:00:00+02:00",
        ),
        change("b", "2", PAST, last_name="Lee", mailhouse_engagement_score=None),
        change("c", "1", PAST, first_name="Bea"),
        change("d", "1", PAST, email="new@example.com"),
    )
    assert [(one.status, one.external_id, one.updated_at) for one in results] == [
        ("written", "1", PAST), ("written", "2", PAST), ("invalid", "1", None), ("invalid", "1", None),
    ]  # fmt: skip
    assert "first_name is not listed in writes: of erp_contacts" in results[2].reason
    with place.connector() as connector:
        lacking = connector.unwritable(["first_name", "last_name"])
    assert lacking == {"first_name": "name its column under writes: of content/sources/erp_contacts.yaml"}
    assert place.rows("select id, mail, first, last, score, opened from customers order by id") == [
        (1, "p1@example.com", "Ann", None, 71.5, "2026-06-01 10:00:00"),
        (2, "p2@example.com", "Ann", "Lee", None, None),
    ]
    assert [one.status for one in place.push(change("a", "1", None, mailhouse_engagement_score=71.5))] == [
        "written"
    ]


def test_a_source_is_read_only_unless_it_says_otherwise(place: Place) -> None:
    place.write(
        "erp_contacts", "\n".join(line for line in CONTACTS.splitlines() if not line.startswith("writes:"))
    )
    with pytest.raises(CrmNotSupportedError, match="erp cannot write a contact"):
        place.push(change("a", "1", last_name="x"))


def test_conflicts_gone_rows_and_values_that_do_not_fit(place: Place) -> None:
    add(place, *range(1, 6))
    add(place, 2, at=PAST + timedelta(seconds=1))
    results = place.push(
        change("ok", "1", PAST, last_name="Lee"),
        change("newer", "2", PAST, last_name="Lee"),
        change("gone", "77", PAST, last_name="Lee"),
        change("odd", "x", PAST, last_name="Lee"),
        change("number", "3", PAST, mailhouse_engagement_score="many"),
        change("time", "3", PAST, mailhouse_last_open_at="soon"),
        change("by address", "", None, email="P4@Example.com", last_name="Four"),
        change("nobody", "", None, email="nobody@example.com", last_name="Four"),
        change("blank", "", None, last_name="Four"),
        change("again", "1", PAST, last_name="Li"),
        change("unknown", "5", None, last_name="Five"),
    )
    assert [(one.key, one.status) for one in results] == [
        ("ok", "written"), ("newer", "conflict"), ("gone", "gone"), ("odd", "gone"), ("number", "invalid"),
        ("time", "invalid"), ("by address", "written"), ("nobody", "invalid"), ("blank", "invalid"),
        ("again", "written"), ("unknown", "written"),
    ]  # fmt: skip
    assert results[6].external_id == "4"
    assert results[1].updated_at == PAST + timedelta(seconds=1)
    found = place.rows("select id, last from customers order by id")
    assert found == [(1, "Li"), (2, None), (3, None), (4, "Four"), (5, "Five")]


def test_a_trigger_that_moves_the_time_makes_no_conflict_with_ourselves(place: Place) -> None:
    place.run(
        "create trigger t after update on customers begin "
        "update customers set changed = '2026-06-27 10:00:00' where id = new.id; end"
    )
    add(place, 1)
    results = place.push(change("a", "1", PAST, last_name="Lee"), change("b", "1", PAST, last_name="Li"))
    assert [(one.status, one.updated_at) for one in results] == [("written", PAST + timedelta(hours=1))] * 2
    assert place.rows("select last from customers") == [("Li",)]


def test_many_are_written_at_once_and_one_bad_one_spoils_nothing(place: Place) -> None:
    place.run("create unique index u on customers (last)")
    add(place, *range(1, 1_201))
    with place.connector() as connector:
        changes = [
            change(str(number), str(number), PAST, last_name=f"L{number}") for number in range(1, 1_201)
        ]
        changes[700] = change("701", "701", PAST, last_name="L1")
        results = connector.push("contact", changes)
        assert connector.usage.by_what["update"] == 2 + 1 + 500, "batches, and one by one where one is bad"
    assert [one.key for one in results if one.status != "written"] == ["701"]
    assert results[700].status == "invalid"
    assert "UNIQUE" in results[700].reason
    assert len(place.rows("select 1 from customers where last is not null")) == 1_199


def test_what_changes_between_reading_and_writing_is_a_conflict(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(place, *range(1, 6))
    read = SqlConnector._rows_of

    def stale(self: SqlConnector, connection: sa.Connection, *rest: Any) -> Any:
        # as in a database that does not lock what was read
        found = read(self, connection, *rest)
        connection.exec_driver_sql(
            "update customers set changed = '2026-06-27 09:30:00', last = 'Sam' where id = 3"
        )
        return found

    monkeypatch.setattr(SqlConnector, "_rows_of", stale)
    results = place.push(*(change(str(number), str(number), PAST, last_name="Lee") for number in range(1, 6)))
    assert [one.status for one in results] == ["written", "written", "conflict", "written", "written"]
    assert place.rows("select last from customers order by id") == [
        ("Lee",),
        ("Lee",),
        ("Sam",),
        ("Lee",),
        ("Lee",),
    ]
    # and by the values themselves where there is no time
    place.write("erp_contacts", CONTACTS.replace("  updated_at: {column: changed, timezone: UTC}\n", ""))
    results = place.push(*(change(str(number), str(number), None, last_name="Li") for number in (2, 3)))
    assert [one.status for one in results] == ["written", "written"]
    place.run("update customers set last = 'Lee' where id = 3")
    results = place.push(*(change(str(number), str(number), None, last_name="Lu") for number in (2, 3)))
    assert [one.status for one in results] == ["written", "conflict"]


def test_names_are_quoted(place: Place) -> None:
    name = 'x"; drop table customers; --'
    place.run('create table "x""; drop table customers; --" (id integer, "a""b" text, changed text)')
    place.run("insert into \"x\"\"; drop table customers; --\" values (1, 'v', '2026-06-27 09:00:00')")
    text = CONTACTS.replace("table: customers", f"table: '{name}'").replace("email: mail", "email: 'a\"b'")
    text = (
        text[: text.index("  first_name")]
        + "  updated_at: {column: changed, timezone: UTC}\nwrites: {last_name: 'a\"b'}\n"
    )
    place.write("erp_contacts", text)
    assert records(place.pull())["1"]["email"] == "v"
    (result,) = place.push(change("a", "1", None, last_name="'); drop table customers; --"))
    assert result.status == "written"
    assert place.rows("select count(*) from customers") == [(0,)]


# The warehouse


@pytest.mark.slow
def test_rows_are_loaded_once_with_times_and_without(
    place: Place, warehouse: Warehouse, tmp_path: Path
) -> None:
    chosen = CrmSettings.model_validate(
        {"content_dir": place.folder, "sql_urls": {"main": place.url}, "home": tmp_path}
    )
    place.write(
        "crm_contacts",
        "name: crm_contacts\nsource: crm\nobject: contacts\ndatabase: main\ntable: customers\n"
        "columns: {external_id: id, email: mail, first_name: first}\n",
    )

    def read() -> dict[str, LoadResult]:
        results: dict[str, LoadResult] = {}
        for connector in connect(chosen):
            with connector:
                results[connector.name] = load(warehouse, connector, "contact", settings=chosen)
        return results

    add(place, 1, 2, 3, first="Ann")
    assert read() == {"erp": LoadResult(3, 3), "crm": LoadResult(3, 3)}
    assert {name: one.loaded for name, one in read().items()} == {"erp": 0, "crm": 0}
    add(place, 2, first="Bea", at=PAST + timedelta(minutes=1))
    assert {name: one.loaded for name, one in read().items()} == {"erp": 1, "crm": 1}
    found = warehouse.frame(
        """
        select source, argMax(properties.first_name::String, updated_at) as first from raw.crm_records
        where external_id = '2' group by source order by source
        """
    ).rows()
    assert found == [("crm", "Bea"), ("erp", "Bea")]
    # a row that was taken away is found by a full load
    place.run("delete from customers where id = 3")
    for connector in connect(chosen):
        with connector:
            load(warehouse, connector, "contact", settings=chosen, is_full=True)
            assert load(warehouse, connector, "contact", settings=chosen, is_full=True).loaded == 0
    gone = warehouse.frame(
        """
        select source from raw.crm_records where external_id = '3'
        group by source having argMax(is_deleted, updated_at) order by source
        """
    )
    assert gone["source"].to_list() == ["crm", "erp"]
    left = CrmSettings.model_validate({**chosen.model_dump(), "crm_skipped": "erp_contacts"})
    assert {one.name: kinds(one, left) for one in configured(left)} == {"erp": [], "crm": ["contact"]}


# PostgreSQL


@pytest.fixture
def postgres(new_postgres_ledger: Callable[[], str], tmp_path: Path) -> Iterator[tuple[Place, sa.Engine]]:
    url = new_postgres_ledger()
    place = Place(tmp_path / "content", url)
    engine = sa.create_engine(url)
    yield place, engine
    engine.dispose()


@pytest.mark.slow
@pytest.mark.service
def test_postgresql(postgres: tuple[Place, sa.Engine]) -> None:
    place, engine = postgres
    with engine.begin() as connection:
        connection.exec_driver_sql("create schema sales")
        connection.exec_driver_sql(
            'create table sales."Customers" (id uuid primary key, mail text, changed timestamptz not null,'
            " gone_at timestamptz, score int, opened timestamp, tags text[], extra jsonb, price numeric, is_in boolean)"
        )
        connection.exec_driver_sql(
            "insert into sales.\"Customers\" select md5(i::text)::uuid, 'p' || i || '@example.com',"
            " timestamptz '2026-06-27 09:00:00.123456+00' + (i / 7) * interval '1 microsecond',"
            " case when i = 5 then now() end, i, null, array['a','b'], '{\"a\": [1]}', 2.50, true"
            " from generate_series(1, 12000) as i"
        )
    text = """
        name: erp_contacts
        source: erp
        object: contacts
        database: main
        table: sales.Customers
        columns: {external_id: id, email: mail, updated_at: changed, is_deleted: gone_at}
        writes: {score: score, opened: opened, is_in: is_in}
    """
    place.write("erp_contacts", text)
    pulled = place.pull()
    found = records(pulled)
    assert [one.rows.num_rows for one in pulled] == [5_000, 5_000, 2_000]
    assert len(found) == 12_000
    one = next(record for record in found.values() if record["email"] == "p5@example.com")
    assert one == {
        "external_id": one["external_id"], "updated_at": datetime(2026, 6, 27, 9, 0, 0, 123_000, tzinfo=UTC),
        "is_deleted": True, "merged_into": "", "email": "p5@example.com", "score": 5, "tags": ["a", "b"],
        "extra": {"a": [1]}, "price": 2.5, "is_in": True,
    }  # fmt: skip
    assert len(records(place.pull(pulled[0].cursor))) == 7_000
    known, ids = one["updated_at"], sorted(found)[:600]
    changes = [change(number, number, known + timedelta(seconds=1), score=-1, is_in=False) for number in ids]
    changes[3] = change(ids[3], ids[3], known - timedelta(seconds=1), score=-1)
    changes[4] = change(ids[4], ids[4], None, score="9" * 30)
    changes[5] = change(ids[5], ids[5], None, opened="2026-06-01T12:00:00+02:00", is_in="no")
    with place.connector() as connector:
        results = connector.push("contact", changes)
        assert connector.usage.by_what["update"] <= 502 + 2
        assert connector.check().startswith("postgresql: ")
    assert {one.key: one.status for one in results if one.status != "written"} == {
        ids[3]: "conflict",
        ids[4]: "invalid",
    }
    with engine.begin() as connection:
        assert (
            connection.exec_driver_sql('select count(*) from sales."Customers" where score = -1').scalar()
            == 597
        )
        row = connection.exec_driver_sql(
            f"select opened, is_in from sales.\"Customers\" where id = '{ids[5]}'"
        ).one()
        assert tuple(row) == (datetime(2026, 6, 1, 10), False)
        # a reader of ours cannot write, whatever a query says
        connection.exec_driver_sql(
            "create function f() returns int language sql as 'delete from sales.\"Customers\"; select 1'"
        )
    query = 'query: "select id, mail, changed from sales.\\"Customers\\" where f() = 1 and mail not like \'%1:%\' "'
    lines = [query if "table:" in line else line for line in text.splitlines() if "writes:" not in line]
    place.write(
        "erp_contacts",
        "\n".join(line.strip() if "query:" not in line else line for line in lines).replace(
            ", is_deleted: gone_at", ""
        ),
    )
    with pytest.raises(CrmRefusedError, match="read-only transaction"):
        place.pull()


@pytest.mark.slow
@pytest.mark.service
def test_postgresql_locks_what_it_compares(
    postgres: tuple[Place, sa.Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, engine = postgres
    with engine.begin() as connection:
        connection.exec_driver_sql(TABLE.replace("changed text", "changed timestamp"))
        connection.exec_driver_sql(
            "insert into customers (id, mail, changed) select i, 'x', '2026-06-27 09:00' from generate_series(1,3) i"
        )
    read = SqlConnector._rows_of

    def meanwhile(self: SqlConnector, connection: sa.Connection, *rest: Any) -> Any:
        found = read(self, connection, *rest)
        with engine.connect() as other:
            other.exec_driver_sql("set lock_timeout = '100ms'")
            with pytest.raises(sa.exc.OperationalError):
                other.exec_driver_sql("update customers set last = 'Sam' where id = 2")
        return found

    monkeypatch.setattr(SqlConnector, "_rows_of", meanwhile)
    results = place.push(*(change(str(number), str(number), PAST, last_name="Lee") for number in (1, 2, 3)))
    assert [one.status for one in results] == ["written"] * 3
    assert {one.updated_at for one in results} == {PAST}
