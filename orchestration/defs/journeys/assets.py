"""Journeys: one partition each. A run is a tick: it moves everybody who is due, sends, and shows who is where."""

import base64

import dagster as dg
import polars as pl

from campaigns.journey_drawing import svg
from campaigns.journey_state import journey_counts
from orchestration.lib.journey_runs import checked_journey, tick
from orchestration.lib.resources import counts_metadata, open_warehouse, table_metadata
from senders.settings import SenderSettings

JOURNEYS = dg.DynamicPartitionsDefinition(name="journey")
TICKS = dg.AssetKey("journey_ticks")


@dg.asset(
    key=TICKS,
    group_name="journeys",
    partitions_def=JOURNEYS,
    pool="sends",
    deps=[
        dg.AssetKey(["marts", "contact_profiles"]),
        dg.AssetKey(["marts", "segment_changes"]),
        dg.AssetKey(["marts", "events"]),
    ],
    kinds={"clickhouse", "python"},
    description=(
        "The people of a journey, moved to where they are to be now. Materialising a partition again moves only whom "
        "time or an event has made due since, and sends nothing twice."
    ),
)
def journey_ticks(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """One tick of one journey."""
    settings = SenderSettings.load()
    name = context.partition_key
    with open_warehouse(context.run.run_id) as warehouse:
        run = tick(settings, warehouse, name, say=context.log.info)
        counts = journey_counts(warehouse, name)
    spec = checked_journey(settings, name)
    here = dict(counts.filter(pl.col("version") == spec.version).select("step", "contacts").iter_rows())
    return dg.MaterializeResult(
        metadata={
            **counts_metadata(run.counts()),
            "under_way": dg.MetadataValue.int(int(counts["contacts"].sum() or 0)),
            "version": spec.version,
            "steps": table_metadata(counts),
            "diagram": dg.MetadataValue.md(_picture(name, svg(spec, here))),
            "seconds": dg.MetadataValue.float(round(run.summary.seconds, 3)),
        }
    )


def _picture(name: str, drawing: str) -> str:
    # the UI shows pictures in Markdown, and Mermaid's text as it stands
    return f"![The journey {name}](data:image/svg+xml;base64,{base64.b64encode(drawing.encode()).decode()})"
