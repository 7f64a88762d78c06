"""What a person had put right stays so in the models, until a record says something else than what was wrong."""

from __future__ import annotations

from typing import Any

import pytest
from models import Models, moment

from privacy.person import Person
from privacy.restricting import rectify

pytestmark = pytest.mark.slow

NO_TESTS = ("--exclude-resource-type", "unit_test", "test")
RECORDS = (*NO_TESTS, "--select", "+int_records__combined", "int_emails__held")
TABLES = ("int_records__combined", "int_emails__held")


def said(models: Models) -> list[tuple[Any, ...]]:
    """What each record says now."""
    models.build(*RECORDS)
    return models.rows(
        "select first_name, city, email, phone from intermediate.int_records__combined final"
        " order by external_id, source"
    )


def stored(models: Models) -> list[list[tuple[Any, ...]]]:
    """Tables of increments, apart from when they were written."""
    return [
        models.rows(f"select * except (recorded_at) from intermediate.{table} final order by all")
        for table in TABLES
    ]


def test_a_correction_holds_until_something_else_is_said_and_a_full_refresh_agrees(models: Models) -> None:
    ann = Person(records={("north", "1"), ("south", "1")})
    wrong = {"first_name": "Jon", "city": "York", "phone": "+44 7700 900123"}
    models.contact("1", "ann@example.com", "06-01", source="north", **wrong)
    models.contact("1", "ann@example.com", "06-02", source="south", first_name="Joan")
    models.contact("2", "bob@example.com", "06-03", source="north", first_name="Jon")
    bob = ("Jon", None, "bob@example.com", None)
    changes = {"first_name": "Ann", "city": "", "email": "ann@example.org", "phone": "+447700900999"}
    right = ("Ann", None, "ann@example.org", "+447700900999")
    jon, joan = ("Jon", "York", "ann@example.com", "+447700900123"), ("Joan", None, "ann@example.com", None)
    assert said(models) == [jon, joan, bob]
    rectify(models.warehouse, ann, changes, moment("06-04"))
    assert said(models) == [right, right, bob]

    # each goes on saying what it said, and something else of it has changed
    models.contact(
        "1", "Ann@example.com", "06-05", source="north", **{**wrong, "phone": "+447700900123"}, x="1"
    )
    models.contact("1", "ann@example.com", "06-06", source="south", first_name=" Joan")
    models.contact("2", "bob@example.com", "06-06", source="north", first_name="Jon", x="1")
    assert said(models) == [right, right, bob]

    # another name ends it, for this record and field; after that the old one counts, too
    models.contact("1", "ann@example.com", "06-07", source="north", **{**wrong, "first_name": "Anna"})
    assert said(models) == [("Anna", *right[1:]), right, bob]
    models.contact("1", "ann@example.com", "06-08", source="north", **wrong)
    assert said(models) == [("Jon", *right[1:]), right, bob]

    # put right once more: what the record itself said last is what was wrong
    rectify(models.warehouse, ann, {"first_name": "Ann"}, moment("06-09"))
    models.contact("1", "ann@example.com", "06-10", source="north", **wrong)
    models.contact("1", "ann@example.com", "06-10", source="south", first_name="Joan")
    assert said(models) == [right, right, bob]

    before = stored(models)
    models.build(*NO_TESTS, "--full-refresh", "--select", "+contacts", "int_emails__held")
    assert stored(models) == before
    people = "select first_name, city, email, phone from marts.contacts order by created_at"
    assert models.rows(people) == [right, bob]
    models.build("--select", "what_was_put_right_stays_until_something_else_is_said")
