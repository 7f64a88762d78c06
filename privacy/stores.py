# ruff: noqa: S608  (queries are put together from names of this module and of the warehouse's own catalogue)
"""Every place where something of a person may stand, and what is done with it. Nothing is left to memory: a raw table,
one of `campaigns` or `live`, or a table of the ledger that is not listed here is an error (`require_registered`), and
all other tables of the warehouse are found in its catalogue, their person keys by the names of columns.

A condition over a table reads the table `keys` (`privacy.person.Person.keys`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from privacy.person import (
    EVENT_SQL,
    HINT_SQL,
    RECORD_SQL,
    Person,
    email_sql,
    phone_sql,
    property_emails,
)
from senders.tables import metadata
from warehouse.client import Warehouse
from warehouse.errors import InputError

Action = Literal["delete", "pseudonymise", "own", "none"]
"""`own`: what the rights of people themselves need; `none`: nothing of a person stands there."""


@dataclass(frozen=True)
class Rule:
    """What a table is for, and what becomes of a person's rows.

    Attributes:
        purpose: for the person, in an export.
        condition: SQL; left out, it follows from the names of columns.
    """

    action: Action
    purpose: str
    condition: str = ""


_VISITOR: Final = (
    "(email = '' and external_id = '' and anonymous_id != '' and concat(source::String, '\\x1f', anonymous_id) in"
    " (select value from keys where kind = 'visitor'))"
)
_MESSAGE: Final = "message_id in (select value from keys where kind = 'message')"
_CONTACT: Final = "contact_id in (select number from keys where kind = 'contact')"


def _any(kind: str, expressions: Iterable[str]) -> str:
    return " or ".join(f"{one} in (select value from keys where kind = '{kind}')" for one in expressions)


TABLES: Final[Mapping[str, Rule]] = {
    # raw
    "raw.crm_records": Rule(
        "delete",
        "What CRMs and files said of you, each version",
        f"{RECORD_SQL} or (object != 'contact' and ({_any('email', property_emails())})) or (object = 'contact' and"
        f" ({_any('email', property_emails())}) and {{free}})",
    ),
    "raw.events": Rule(
        "pseudonymise",
        "What you did (visits, orders) and what became of messages to you",
        EVENT_SQL,
    ),
    "raw.messages": Rule(
        "pseudonymise",
        "Messages to you and what became of them, copied from the ledger",
        f"{_CONTACT} or {email_sql('email')} in (select value from keys where kind = 'email') or {_MESSAGE}",
    ),
    "raw.consents": Rule("delete", "What you agreed to and took back: the proof", HINT_SQL),
    "raw.consent_texts": Rule("none", "The words that people agreed to"),
    "raw.list_members": Rule(
        "delete",
        "Lists that you were put on",
        f"({email_sql('email')} in (select value from keys where kind = 'email')"
        " or (external_id != '' and concat(source::String, '\\x1f', external_id) in"
        " (select value from keys where kind = 'record')))",
    ),
    "raw.recommendations": Rule("delete", "Products that models chose for you"),
    "raw.predictions": Rule("delete", "What models expect of you: purchases, churn, value"),
    "raw.quarantined_rows": Rule(
        "delete",
        "Rows of files about you that could not be read",
        "arrayExists(needle -> position(lower(content), needle) > 0,"
        " (select groupArray(lower(value)) from keys where kind in ('email', 'token') or (kind = 'phone' and"
        " length(value) >= 7)))",
    ),
    "raw.products": Rule("none", "The catalogue"),
    "raw.campaigns": Rule("none", "What campaign files say"),
    "raw.model_evaluations": Rule("none", "How good models are"),
    "raw.schema_migrations": Rule("none", "Steps of the schema"),
    "raw.crm_cursors": Rule("none", "How far CRMs were read"),
    "raw.crm_pushes": Rule("delete", "What was written about you to CRMs"),
    "raw.crm_shown": Rule("delete", "What CRMs show of what we know about you"),
    "raw.crm_syncs": Rule("none", "Syncs with CRMs: counts"),
    "raw.retention_runs": Rule("none", "What retention deleted: counts"),
    "raw.field_decisions": Rule("delete", "Which of several sources was believed about you"),
    "raw.rectifications": Rule(
        "delete",
        "What you had put right, and what was wrong",
        "concat(source::String, '\\x1f', external_id) in (select value from keys where kind = 'record')"
        f" or {_any('email', [email_sql('wrong'), email_sql('value')])}",
    ),
    "raw.identity_changes": Rule(
        "delete",
        "By hand: who is one person with whom",
        " or ".join(
            f"{side}contact_id in (select number from keys where kind = 'contact')"
            f" or {email_sql(side + 'email')} in (select value from keys where kind = 'email')"
            f" or ({side}external_id != '' and concat({side}source::String, '\\x1f', {side}external_id) in"
            " (select value from keys where kind = 'record'))"
            for side in ("", "into_")
        ),
    ),
    "raw.imports": Rule("none", "Files that were imported: names and counts"),
    "raw.erasures": Rule("own", "Keyed hashes of those who must not come back"),
    "raw.restrictions": Rule("own", "Whether your data may be processed"),
    "raw.audit_log": Rule("own", "What was done for the rights of people, by keyed hash"),
    # campaigns
    "campaigns.audience_members": Rule("delete", "Campaigns that you were chosen for"),
    "campaigns.audiences": Rule("none", "Audiences as they were settled: counts"),
    "campaigns.experiment_allocations": Rule("none", "How experiments divide by a hash of the contact"),
    "campaigns.experiment_decisions": Rule("none", "What experiments came to"),
    "campaigns.journey_moves": Rule("delete", "Your moves in journeys"),
    "campaigns.journey_states": Rule("delete", "Where you are in journeys"),
    "campaigns.journey_signals": Rule("delete", "What made you move in journeys, for a week"),
    "campaigns.journey_requests": Rule("delete", "Requests that you enter or leave a journey"),
    "campaigns.journey_refusals": Rule("delete", "Requests that were not followed, and why"),
    "campaigns.journey_ticks": Rule("none", "Ticks of journeys: counts"),
    "campaigns.journey_cursors": Rule("none", "How far journeys have read"),
    "campaigns.trigger_decisions": Rule("delete", "What triggers decided about your events"),
    "campaigns.trigger_states": Rule("delete", "Which states that triggers watch held for you"),
    # live
    "live.events": Rule(
        "delete",
        "Your events of the last 35 days, with your contact",
        f"{_CONTACT} or {_MESSAGE}"
        " or (contact_id = 0 and event_id in (select value from keys where kind in ('event', 'order')))",
    ),
}
"""Tables of `raw`, `campaigns` and `live`; those that are not there yet are passed over."""

LEDGER: Final[Mapping[str, Rule]] = {
    "messages": Rule("pseudonymise", "Messages to you: what was decided before they went"),
    "message_changes": Rule("pseudonymise", "What became of each, with the provider's words and the subject"),
    "trigger_firings": Rule("delete", "What triggers were about to do, with your event"),
    "stream_events": Rule("delete", "Events on their way into the warehouse"),
    "plans": Rule("pseudonymise", "What messages have in common; the event that fired one is in it"),
    "runs": Rule("pseudonymise", "Senders at work; an event may be named"),
    "allowances": Rule("none", "Messages a day"),
    "pauses": Rule("none", "What people have paused"),
    "locks": Rule("none", "Locks"),
    "leases": Rule("none", "Who does what only one may do"),
    "seen_calls": Rule("none", "Digests of webhook calls, for some days"),
    "alembic_version": Rule("none", "Step of the schema"),
}
"""Tables of the ledger's database."""

DBT_ORDERS: Final = "int_orders__combined"
"""The dbt table whose rows stay for accounting: orders, of whom nobody can be told."""

_PREFIXES = (
    "",
    "first_",
    "last_",
    "known_",
    "ledger_",
    "message_",
    "previous_",
    "owner_",
    "record_",
    "told_",
)
_COLUMNS: Final[Mapping[str, str]] = {
    "contact_id": "contact",
    "identity_id": "identity",
    "email_identity_id": "identity",
    "person_identity_id": "identity",
    "visitor_id": "identity",
    "turns": "identity",
    "email": "email",
    "phone": "phone",
    "push_token": "token",
    "message_id": "message",
    "message_hash": "message_hash",
    "event_id": "event",
    "address": "address",
}
_TEXT = re.compile(r"String")


@dataclass(frozen=True)
class StoreTable:
    """A table of the warehouse with rows of people.

    Attributes:
        rule: what becomes of them. condition: SQL over the table and `keys`; empty if it has no key of a person.
        sorting_key: columns that cannot be updated.
    """

    name: str
    rule: Rule
    condition: str
    engine: str
    columns: Mapping[str, str]
    is_dbt: bool = False


@dataclass(frozen=True)
class Relation:
    """A table that dbt makes: `database.name` and its description."""

    name: str
    description: str = ""


def registered_problems(tables: Collection[str], ledger_tables: Collection[str]) -> list[str]:
    """Tables that nobody has said what to do with."""
    missing = [one for one in sorted(tables) if one not in TABLES]
    return missing + [f"ledger {one}" for one in sorted(ledger_tables) if one not in LEDGER]


def require_registered(warehouse: Warehouse) -> None:
    """Refuse to speak of everything while there is a table that nobody has said what to do with.

    Raises:
        InputError: names the tables.
    """
    rows = warehouse.frame(
        "select concat(database, '.', name) as name from system.tables"
        " where database in ('raw', 'campaigns', 'live') and engine not in ('View', 'MaterializedView')"
    )
    problems = registered_problems(
        [one for one in rows["name"].to_list() if one.partition(".")[2] not in _INNER],
        list(metadata.tables),
    )
    if problems:
        raise InputError(
            f"Nobody has said what of a person stands in {', '.join(problems)}.",
            fix="List it in TABLES or LEDGER of privacy/stores.py: what it is for, what becomes of a person's rows.",
        )


_INNER: Final = frozenset(("kafka_events",))
"""Engine tables without rows of their own: Kafka keeps what they read."""
_SYSTEM: Final = ("system", "information_schema", "INFORMATION_SCHEMA")


def all_tables(warehouse: Warehouse, relations: Iterable[Relation] = ()) -> list[StoreTable]:
    """Every table of the warehouse that keeps rows, with whom rows in it are about.

    Args:
        relations: what dbt's manifest knows; other tables of dbt's databases are looked at all the same.
    """
    known = {one.name: one for one in relations}
    rows = warehouse.frame(
        """
        select concat(t.database, '.', t.name) as name, t.engine as engine, t.comment as comment,
            groupArray(c.name) as columns, groupArray(c.type) as types, groupArray(c.default_kind) as kinds
        from system.tables as t
        inner join (select * from system.columns order by position) as c on c.database = t.database and c.table = t.name
        where t.database not in {system:Array(String)} and t.engine like '%MergeTree' and not t.is_temporary
        group by name, engine, comment order by name
        """,
        {"system": list(_SYSTEM)},
    )
    tables: list[StoreTable] = []
    for name, engine, comment, names, types, kinds in rows.iter_rows():
        columns = {
            column: kind
            for column, kind, default in zip(names, types, kinds, strict=True)
            if default not in ("ALIAS", "EPHEMERAL")
        }
        rule = TABLES.get(name)
        relation = known.get(name)
        if rule is None:
            about = relation.description if relation else comment
            rule = Rule("delete", " ".join((about or "Made of other tables by dbt").split()))
        condition = rule.condition
        if rule.action in ("delete", "pseudonymise") and not condition:
            condition = condition_of(columns)
        if rule.action == "none":
            condition = ""
        if name == "raw.restrictions":
            condition = f"({_CONTACT} or email in (select value from keys where kind = 'email'))"
        tables.append(
            StoreTable(name, rule, _with_free(condition, warehouse), engine, columns, name not in TABLES)
        )
    return tables


def _with_free(condition: str, warehouse: Warehouse) -> str:
    """Records that dbt gives to another contact are another's, whatever address they have."""
    if "{free}" not in condition:
        return condition
    has = warehouse.value(
        "select count() from system.tables where database = 'intermediate' and name = 'int_contacts__identified'"
    )
    free = (
        "concat(source::String, '\\x1f', external_id) not in (select concat(source::String, '\\x1f', identifier)"
        " from intermediate.int_contacts__identified where kind = 'record'"
        " and contact_id not in (select number from keys where kind = 'contact'))"
        if has
        else "true"
    )
    return condition.replace("{free}", free)


def condition_of(columns: Mapping[str, str]) -> str:
    """Whether a row is about the person, by the names of its columns; empty if none names people.

    A row that names a contact is that contact's: what else it says decides only where it names none.
    """
    contacts: list[str] = []
    identities: list[str] = []
    others: list[str] = []
    for name, kind in columns.items():
        what = _kind_of(name)
        sql = _matches(name, kind, what)
        if sql and what == "contact":
            contacts.append(sql)
        elif sql and what == "identity":
            identities.append(sql)
        elif sql:
            others.append(sql)
    if "source" in columns and _TEXT.search(columns.get("external_id", "")):
        others.append(
            "(ifNull(external_id, '') != '' and concat(source::String, '\\x1f', ifNull(external_id, '')) in"
            " (select value from keys where kind = 'record'))"
        )
    if {"source", "anonymous_id", "email", "external_id"} <= columns.keys():
        others.append(_VISITOR)
    own = contacts + identities
    if contacts and others and "contact_id" in columns:
        rest = f"(ifNull(contact_id, 0) = 0 and ({' or '.join(others)}))"
        return " or ".join([*own, rest])
    return " or ".join([*own, *others])


def _kind_of(name: str) -> str:
    if name in _COLUMNS:
        return _COLUMNS[name]
    if name in ("emails", "message_ids", "identity_ids", "contact_ids"):
        return {
            "emails": "email",
            "message_ids": "message",
            "identity_ids": "identity",
            "contact_ids": "contact",
        }[name]
    for prefix in _PREFIXES:
        if name.startswith(prefix) and name.removeprefix(prefix) in _COLUMNS:
            return _COLUMNS[name.removeprefix(prefix)]
    return ""


def _matches(name: str, kind: str, what: str) -> str:
    """SQL: whether one column names the person."""
    if not what:
        return ""
    column = f"`{name}`"
    is_array, is_text = kind.startswith("Array("), bool(_TEXT.search(kind))
    is_number = bool(re.search(r"Int64", kind))
    if "AggregateFunction" in kind and not kind.startswith("SimpleAggregateFunction"):
        return ""
    values = f"(select value from keys where kind = '{what}')"
    numbers = f"(select number from keys where kind = '{what}')"
    all_numbers = f"(select groupArray(number) from keys where kind = '{what}')"
    if what in ("contact", "identity") and is_number:
        if kind.startswith("Array(Tuple("):
            # pairs: since when, who
            return f"hasAny(arrayMap(one -> one.2, {column}), {all_numbers})"
        if is_array:
            return f"hasAny({column}, {all_numbers})"
        return f"{column} in {numbers}"
    if what == "message_hash" and is_number and not is_array:
        return f"{column} in (select sipHash64(value) from keys where kind = 'message')"
    if not is_text:
        return ""
    if is_array:
        given = f"arrayMap(one -> lower(one), {column})" if what == "email" else column
        return f"hasAny({given}, (select groupArray(value) from keys where kind = '{what}'))"
    text = f"{column}::Nullable(String)" if kind.startswith("SimpleAggregate") else column
    if what == "email":
        return f"{email_sql(text)} in {values}"
    if what == "phone":
        return f"{phone_sql(text)} in {values}"
    if what == "address":
        return (
            f"({email_sql(text)} in (select value from keys where kind = 'email')"
            f" or {phone_sql(text)} in (select value from keys where kind = 'phone')"
            f" or {text} in (select value from keys where kind = 'token'))"
        )
    return f"{text} in {values}" if what in ("token", "message", "event") else ""


def counted(warehouse: Warehouse, tables: Iterable[StoreTable], person: Person) -> dict[str, int]:
    """Rows about the person in each table; tables without any are left out."""
    keys = person.keys()
    counts: dict[str, int] = {}
    for table in tables:
        if table.condition:
            found = rows_of(warehouse, table, keys, "count() as rows").item()
            if found:
                counts[table.name] = int(found)
    return counts


def rows_of(warehouse: Warehouse, table: StoreTable, keys: pl.DataFrame, select: str) -> pl.DataFrame:
    """What a query says of the person's rows in a table."""
    return warehouse.frame(
        # names of what is selected must not stand for columns in the condition
        f"select {select} from (select * from {quoted(table.name)} where {table.condition})",
        external={"keys": keys},
        settings={"join_use_nulls": "0", "transform_null_in": "0"},
    )


def quoted(name: str) -> str:
    """`database.table` for a query."""
    database, _, table = name.partition(".")
    return f"`{database}`.`{table}`"
