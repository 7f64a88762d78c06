"""Load days as partitions: which days the facts were built of, and how to build some of them anew."""

import json
from collections.abc import Iterator
from datetime import date

import dagster as dg

from orchestration.lib.dbt_runs import report
from orchestration.lib.resources import open_warehouse
from orchestration.settings import OrchestrationSettings
from warehouse.client import Warehouse

FACTS = "int_events__recorded"
LOAD_DAYS = dg.AssetKey(["intermediate", "load_days"])


@dg.definitions
def load_days() -> dg.Definitions:
    """One asset, a partition a day. Whatever builds the facts marks the days it built."""
    first = OrchestrationSettings.load().first_load_day

    @dg.asset(
        key=LOAD_DAYS,
        group_name="staging",
        # `loaded_at` is of the wall clock, UTC; today is a partition too
        partitions_def=dg.DailyPartitionsDefinition(first.isoformat(), timezone="UTC", end_offset=1),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[dg.AssetKey(["raw", "events"])],
        description=(
            "The days on which events were loaded. Each is a partition of the facts; building it again replaces it, "
            "whatever happened when, and then everything downstream. Ordinary builds mark the days they built."
        ),
        kinds={"dbt", "clickhouse"},
        pool="dbt",
    )
    def days(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        settings = OrchestrationSettings.load()
        chosen = list(context.partition_keys)
        command = [
            *("build", "--select", f"{FACTS}+", "--exclude-resource-type", "unit_test", "--no-write-json"),
            *("--vars", json.dumps({"load_days": chosen})),
        ]
        for event in report(command, context, settings):
            context.log_event(event)
        with open_warehouse(context.run.run_id) as warehouse:
            rows = events_of(warehouse, min(chosen), max(chosen))
        yield dg.MaterializeResult(
            metadata={"days": len(chosen), "events": sum(rows.get(day, 0) for day in chosen)}
        )

    return dg.Definitions(assets=[days])


def mark_built(context: dg.AssetExecutionContext, warehouse: Warehouse, since: float) -> None:
    """Tell Dagster of the load days that were built since a moment (seconds of the Unix epoch)."""
    rows = warehouse.frame(
        """
        select toString(loaded_on) as day, count() as events from intermediate.int_events__recorded
        where recorded_at >= fromUnixTimestamp64Milli({since:Int64}) group by day order by day
        """,
        {"since": int(since * 1000)},
    )
    first = OrchestrationSettings.load().first_load_day
    for day, events in rows.iter_rows():
        if date.fromisoformat(day) >= first:
            context.log_event(
                dg.AssetMaterialization(LOAD_DAYS, partition=day, metadata={"events": int(events)})
            )


def events_of(warehouse: Warehouse, first: str, last: str) -> dict[str, int]:
    """Events of each load day between two, both of them included."""
    rows = warehouse.frame(
        """
        select toString(loaded_on) as day, count() as events from intermediate.int_events__recorded
        where loaded_on between {first:Date} and {last:Date} group by day
        """,
        {"first": first, "last": last},
    )
    return dict(rows.iter_rows())
