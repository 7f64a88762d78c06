"""Jobs that people and schedules start, and their rhythm."""

from __future__ import annotations

import dagster as dg

from orchestration.lib.automation import live_keys
from orchestration.lib.dbt_specs import load_specs
from warehouse.settings import MailhouseSettings

ingestion = dg.AssetSelection.groups("ingestion")
models = dg.AssetSelection.groups(
    "staging", "features", "marts", "segments", "bi"
) - dg.AssetSelection.assets(
    # partitions are for backfills; what is due is built without naming days
    dg.AssetKey(["intermediate", "load_days"])
)
predictions = dg.AssetSelection.groups("ml")

ingest = dg.define_asset_job(
    "ingest", selection=ingestion, description="Load every source, and what the ledger has recorded."
)
build_models = dg.define_asset_job(
    "build_models", selection=models, description="Build and test every dbt model."
)
recommend = dg.define_asset_job(
    "recommend", selection=predictions, description="Fit, measure, recommend, predict."
)
refresh = dg.define_asset_job(
    "refresh",
    selection=ingestion | models | predictions,
    description="Load every source and the ledger, build every model, recommend, predict: all at once, by hand.",
)


@dg.definitions
def schedules() -> dg.Definitions:
    """The jobs, and what starts them; a rehearsal, whose clock is shifted, has no rhythm of its own."""
    settings = MailhouseSettings.load()
    is_rehearsal = bool(settings.clock_offset)
    schedule_status = dg.DefaultScheduleStatus.STOPPED if is_rehearsal else dg.DefaultScheduleStatus.RUNNING
    sensor_status = dg.DefaultSensorStatus.STOPPED if is_rehearsal else dg.DefaultSensorStatus.RUNNING
    live = live_keys(load_specs(settings).assets)
    build_live = dg.define_asset_job(
        "build_live_models",
        selection=dg.AssetSelection.assets(*sorted(live)),
        description="Build and test what campaigns read, how they do, and what all that stands on.",
    )
    build_reports = dg.define_asset_job(
        "build_reports",
        selection=models - dg.AssetSelection.assets(*sorted(live)),
        description="Build and test everything else: reports, attribution, the views of BI.",
    )
    return dg.Definitions(
        jobs=[ingest, build_models, build_live, build_reports, recommend, refresh],
        schedules=[
            dg.ScheduleDefinition(
                name="ingest_every_five_minutes",
                job=ingest,
                cron_schedule="*/5 * * * *",
                default_status=schedule_status,
                description="Sources are read every five minutes; models follow.",
            ),
            dg.ScheduleDefinition(
                name="recommend_every_night",
                job=recommend,
                cron_schedule="30 3 * * *",
                default_status=schedule_status,
                description="Recommenders and predictions are fitted, measured and stored once a day.",
            ),
        ],
        sensors=[
            dg.AutomationConditionSensorDefinition(
                "models_follow_sources",
                target=models,
                minimum_interval_seconds=60,
                default_status=sensor_status,
                description="Builds what has a reason to be built: see orchestration/lib/automation.py.",
            )
        ],
    )
