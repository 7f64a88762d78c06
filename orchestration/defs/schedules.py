"""Jobs that people and schedules start, and their rhythm."""

from __future__ import annotations

import dagster as dg

from warehouse.settings import MailhouseSettings

ingestion = dg.AssetSelection.groups("ingestion")
models = dg.AssetSelection.groups("staging", "marts", "segments")
predictions = dg.AssetSelection.groups("ml")

ingest = dg.define_asset_job(
    "ingest", selection=ingestion, description="Load every source, and what the ledger has recorded."
)
build_models = dg.define_asset_job(
    "build_models", selection=models, description="Build and test every dbt model."
)
recommend = dg.define_asset_job("recommend", selection=predictions, description="Fit, measure, recommend.")
refresh = dg.define_asset_job(
    "refresh",
    selection=ingestion | models | predictions,
    description="Load every source and the ledger, build every model, recommend.",
)


@dg.definitions
def schedules() -> dg.Definitions:
    """The jobs, and the hourly refresh; a rehearsal, whose clock is shifted, has no rhythm of its own."""
    is_rehearsal = bool(MailhouseSettings.load().clock_offset)
    hourly_refresh = dg.ScheduleDefinition(
        name="hourly_refresh",
        job=refresh,
        cron_schedule="7 * * * *",
        default_status=dg.DefaultScheduleStatus.STOPPED if is_rehearsal else dg.DefaultScheduleStatus.RUNNING,
        description="Marts follow their sources within the hour.",
    )
    return dg.Definitions(jobs=[ingest, build_models, recommend, refresh], schedules=[hourly_refresh])
