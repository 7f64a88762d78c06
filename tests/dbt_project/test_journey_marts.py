"""What journeys did, as the marts tell it: also before any has run."""

from __future__ import annotations

import pytest
from models import Models

from campaigns.journey_state import define_tables

MART = "dbt_test_marts.journey_performance"


@pytest.mark.slow
def test_moves_that_count_are_told_and_no_others(models: Models) -> None:
    warehouse = models.warehouse
    warehouse.execute("drop database if exists campaigns")
    models.build("--select", "stg_journeys__moves", "journey_performance")
    assert warehouse.value(f"select count() from {MART}") == 0
    define_tables(warehouse)
    try:
        at = "toDateTime64('2026-03-01 12:00:00', 3, 'UTC')"
        warehouse.execute(
            f"""
            insert into campaigns.journey_moves (tick, journey, contact_id, sequence, entry, version, previous_step,
                outcome, step, ending, entered_at)
            values (1, 'j', 7, 1, 1, 'v', '', 'entered', 'hello', '', {at}), (2, 'j', 7, 2, 1, 'v', 'hello', 'sent', '',
                'finished', {at}), (3, 'j', 7, 2, 1, 'v', 'hello', 'failed', '', 'goal', {at})
            """
        )
        warehouse.execute(
            "insert into campaigns.journey_ticks (journey, tick) values ('j', 1), ('j', 2), ('j', 2)"
        )
        models.build("--select", "stg_journeys__moves", "journey_performance")
        rows = warehouse.frame(f"select * except day from {MART}").rows()
        assert rows == [("j", "v", "hello", 1, 1, 1, 1, 0, 0)]
    finally:
        warehouse.execute("drop database if exists campaigns")
