"""Who is who: visitors, accounts, merges, splits and what undoes them, in stories and in random histories."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from models import Models, moment, order
from test_increments import History, load

IDENTITY = ("+events", "+contacts")
"""What tells who is who, and nothing more."""
TABLES = {
    "intermediate.int_contacts__identified": "identity_id",
    "intermediate.int_visitors__shared": "visitor_id",
    "marts.events": "event_id, occurred_at",
    "marts.contacts": "contact_id",
}
LEFT_OUT = {
    *("moved_at", "previous_contact_id", "records_through", "hints_through", "visitors_through"),
    *("recorded_at", "properties"),
}


@pytest.fixture
def history(models: Models) -> Iterator[Models]:
    """Empty raw tables, no models."""
    models.clear()
    yield models


def identify(models: Models, *args: str, minutes: int = 0) -> None:
    """Build what tells who is who."""
    models.build(
        *("--exclude-resource-type", "unit_test", "test", "--select", *IDENTITY, *args),
        offset=timedelta(minutes=minutes),
    )


def tables(models: Models) -> dict[str, pl.DataFrame]:
    """Each table in the order of its key."""
    found = {}
    for table, key in TABLES.items():
        names = [
            name for name in models.frame(f"select * from {table} limit 0").columns if name not in LEFT_OUT
        ]
        final = " final" if table.endswith("__shared") else ""
        found[table] = models.frame(f"select {', '.join(names)} from {table}{final} order by {key}")
    return found


def unlike(left: dict[str, pl.DataFrame], right: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """Rows that only one side has, table by table."""
    return {
        table: (one.join(right[table], on=one.columns, how="anti", nulls_equal=True).rows(named=True)[:3],
                right[table].join(one, on=one.columns, how="anti", nulls_equal=True).rows(named=True)[:3])
        for table, one in left.items()
        if not one.equals(right[table])
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_who_is_who_is_the_same_however_it_was_found_out(history: Models, seed: int) -> None:
    told = History(seed)
    for day in range(4):
        load(history.warehouse, told.batch(day, []))
        identify(history, minutes=day)
    increments = tables(history)
    identify(history, minutes=5)
    assert unlike(increments, tables(history)) == {}, "a run without new rows changes nothing"
    identify(history, "--full-refresh", minutes=6)
    assert unlike(increments, tables(history)) == {}
    identified = increments["intermediate.int_contacts__identified"]
    assert set(identified["kind"]) == {"record", "email", "hint", "account", "visitor"}
    assert (identified["contact_id"] != identified["named_contact_id"]).any()
    assert (identified["own_contact_id"] != identified["named_contact_id"]).any()
    assert increments["intermediate.int_visitors__shared"].height > 0
