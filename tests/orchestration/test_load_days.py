"""Load days as partitions: marked by ordinary builds, built anew by backfills; and the age of the sources."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import polars as pl
import pytest
from location import QUIET, Location

from orchestration.defs.dbt.checks import CHECK
from orchestration.defs.dbt.partitions import LOAD_DAYS

TOTALS = """
    select (select sum(revenue) from marts.orders) as revenue,
        (select count() from marts.events) as events,
        (select count() from marts.messages) as messages
"""


@pytest.mark.slow
def test_a_build_marks_the_days_it_built_and_a_backfill_replaces_them(location: Location) -> None:
    # other tests of this location send mail, and a backfill would be the first to build what the ledger told since
    location.run("build_live_models")
    day = location.warehouse.value("select toString(max(loaded_on)) from intermediate.int_events__recorded")
    assert location.instance.get_materialized_partitions(LOAD_DAYS) == {day}
    before = location.warehouse.frame(TOTALS)
    stamp = "select max(recorded_at) from intermediate.int_events__recorded"
    built_at = location.warehouse.value(stamp)

    job = location.definitions.resolve_implicit_global_asset_job_def()
    result = job.get_subset(asset_selection={LOAD_DAYS}).execute_in_process(
        run_config=QUIET, instance=location.instance, partition_key=day
    )
    assert result.success
    assert location.warehouse.value(stamp) > built_at
    assert location.warehouse.frame(TOTALS).equals(before)
    logged = {event.asset_key for event in result.get_asset_materialization_events() if event.asset_key}
    assert {
        dg.AssetKey(["intermediate", "int_events__recorded"]),
        dg.AssetKey(["marts", "contact_profiles"]),
    } <= logged
    own = [event for event in result.get_asset_materialization_events() if event.asset_key == LOAD_DAYS]
    assert own[0].partition == day
    assert own[0].materialization.metadata["events"].value == before["events"][0]


def test_the_age_of_sources_is_checked_and_an_empty_one_is_told(location: Location) -> None:
    keys = [key for key in location.definitions.resolve_asset_graph().asset_check_keys if key.name == CHECK]
    assert {key.asset_key.path[-1] for key in keys} == {"events", "crm_records", "messages"}
    job = dg.define_asset_job("ages", dg.AssetSelection.checks(*keys))
    place = dg.Definitions.merge(location.definitions, dg.Definitions(jobs=[job]))
    result = place.resolve_job_def("ages").execute_in_process(run_config=QUIET, instance=location.instance)
    judged = {one.asset_key.path[-1]: one for one in result.get_asset_check_evaluations()}
    assert judged["events"].passed and judged["crm_records"].passed
    assert "hours ago" in (judged["events"].description or "")


def test_campaign_files_and_lists_are_rows(location: Location) -> None:
    files = location.warehouse.frame("select name, goal_event from raw.campaigns where kind = 'campaign'")
    assert files.filter(pl.col("name") == "second_order")["goal_event"].to_list() == ["order.placed"]
    assert files["name"].is_unique().all()
    assert datetime.now(UTC) > location.warehouse.value("select max(loaded_at) from raw.campaigns")
