"""The rhythm: everything that feeds the marts, once an hour."""

from __future__ import annotations

import dagster as dg

refresh = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets("campaign_audiences", "campaign_sends"),
    description="Load every source and the ledger, build every model, recommend.",
)

hourly_refresh = dg.ScheduleDefinition(
    name="hourly_refresh",
    job=refresh,
    cron_schedule="7 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Marts follow their sources within the hour.",
)
