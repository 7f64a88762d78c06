"""What the two-way sync decided stands in `marts.contacts`."""

from __future__ import annotations

import pytest
from models import Models

pytestmark = pytest.mark.slow

BUILT = ("--select", "+contacts", "--exclude-resource-type", "unit_test", "test")


def decide(models: Models, contact_id: int, field: str, value: str, at: str) -> None:
    models.warehouse.execute(
        """
        insert into raw.field_decisions (contact_id, field, rule, value, source, losers, decided_at)
        values ({contact_id:Int64}, {field:String}, 'newest', {value:String}, 'north', '[]', {at:DateTime64(3, 'UTC')})
        """,
        {"contact_id": contact_id, "field": field, "value": value, "at": at},
    )


def test_the_last_decision_outdoes_the_newest_record(models: Models) -> None:
    models.contact("1", "ann@example.com", "06-01", source="north", first_name="Ann", city="York")
    models.contact("1", "ann@example.com", "06-02", source="south", first_name="Anna", city="Bath")
    models.contact("2", "bob@example.com", "06-02", source="south", first_name="Bob")
    models.build(*BUILT)
    people = "select first_name, city, email from marts.contacts order by email"
    assert models.rows(people) == [("Anna", "Bath", "ann@example.com"), ("Bob", None, "bob@example.com")]
    ann = models.value("select contact_id from marts.contacts where email = 'ann@example.com'")
    decide(models, ann, "first_name", "Ann", "2011-06-03 00:00:00.000")
    decide(models, ann, "first_name", "Annie", "2011-06-02 00:00:00.000")
    decide(models, ann, "city", "", "2011-06-03 00:00:00.000")
    decide(models, ann, "email_opt_out", "true", "2011-06-03 00:00:00.000")
    models.build(*BUILT)
    assert models.rows(people) == [("Ann", None, "ann@example.com"), ("Bob", None, "bob@example.com")]
    models.build("--select", "what_the_sync_decided_counts", "stg_crm__decisions")
