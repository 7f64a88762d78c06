"""No store is forgotten: whoever adds a table must say what of a person stands in it."""

from __future__ import annotations

import pytest

from campaigns.audience import _TABLES as AUDIENCE_TABLES
from campaigns.deciding import STATES, TABLE
from campaigns.experiments import define_tables as define_experiments
from campaigns.journey_state import define_tables as define_journeys
from campaigns.live import TABLES as LIVE_TABLES
from privacy.person import Person
from privacy.stores import (
    LEDGER,
    TABLES,
    all_tables,
    condition_of,
    counted,
    registered_problems,
    require_registered,
)
from senders.tables import metadata
from warehouse.client import Warehouse
from warehouse.errors import InputError


def test_every_table_of_the_ledger_is_known():
    assert registered_problems([], list(metadata.tables)) == []
    assert set(metadata.tables) <= set(LEDGER)


def test_every_table_that_our_rooms_make_is_known_and_a_new_one_is_an_error(warehouse: Warehouse):
    for statement in (*AUDIENCE_TABLES, TABLE, STATES, *LIVE_TABLES):
        warehouse.define(statement)
    define_experiments(warehouse)
    define_journeys(warehouse)
    require_registered(warehouse)
    warehouse.execute("create table raw.forgotten (email String) engine = MergeTree order by email")
    with pytest.raises(InputError, match=r"raw\.forgotten") as caught:
        require_registered(warehouse)
    assert "privacy/stores.py" in caught.value.fix


def test_tables_that_hold_people_have_a_condition(warehouse: Warehouse):
    by_name = {one.name: one for one in all_tables(warehouse)}
    for name, rule in TABLES.items():
        if name in by_name and rule.action in ("delete", "pseudonymise"):
            assert by_name[name].condition, name


@pytest.mark.parametrize(
    ("columns", "is_found"),
    [
        ({"contact_id": "Int64"}, True),
        ({"previous_contact_id": "Nullable(Int64)"}, True),
        ({"identity_id": "SimpleAggregateFunction(any, Int64)"}, True),
        ({"identity_ids": "Array(Int64)"}, True),
        ({"first_email": "String"}, True),
        ({"emails": "Array(String)"}, True),
        ({"told_phone": "Nullable(String)"}, True),
        ({"message_ids": "Array(String)"}, True),
        ({"message_hash": "UInt64"}, True),
        ({"source": "LowCardinality(String)", "external_id": "String"}, True),
        ({"external_id": "String"}, False),
        ({"contacts_count": "UInt64"}, False),
        ({"email_domain": "String"}, False),
        ({"contact_id": "AggregateFunction(uniq, Int64)"}, False),
    ],
)
def test_person_keys_are_found_by_their_names(columns: dict[str, str], is_found: bool):
    assert bool(condition_of(columns)) == is_found


def test_a_row_that_names_a_contact_is_that_contacts(warehouse: Warehouse):
    warehouse.execute("drop database if exists keys_test")
    warehouse.execute("create database keys_test")
    warehouse.execute(
        "create table keys_test.t (contact_id Nullable(Int64), email String, emails Array(String))"
        " engine = MergeTree order by email"
    )
    # what names another contact is the other's, whatever address stands beside it
    warehouse.execute(
        "insert into keys_test.t values (1, 'a@x.example', []), (2, ' A@x.example', ['a@x.example']),"
        " (null, 'A@x.example ', []), (0, '', ['b@x.example', 'a@x.example']), (3, 'b@x.example', [])"
    )
    person = Person(contact_ids={1}, emails={"a@x.example"})
    tables = [one for one in all_tables(warehouse) if one.name == "keys_test.t"]
    assert counted(warehouse, tables, person) == {"keys_test.t": 3}
    warehouse.execute("drop database keys_test")
