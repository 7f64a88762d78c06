"""What has been kept long enough is deleted once a day, as `content/retention.yaml` says."""

import dagster as dg

from orchestration.lib.resources import counts_metadata, open_warehouse
from warehouse.retention import RetentionSpec, apply, summary
from warehouse.settings import MailhouseSettings


@dg.asset(
    key=["retention"],
    group_name="retention",
    description="Raw rows that content/retention.yaml keeps no longer: deleted or pseudonymised, and written down.",
    kinds={"python", "clickhouse"},
    pool="clickhouse",
)
def retention(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Apply the rules; a mistake in the file fails the run before anything is deleted."""
    settings = MailhouseSettings.load()
    spec = RetentionSpec.load(settings.content_dir)
    with open_warehouse(context.run.run_id) as warehouse:
        done = apply(warehouse, spec, settings.now(), run_id=context.run.run_id)
    for line in summary(done):
        context.log.info(line)
    rows: dict[str, int] = {}
    for one in done:
        rows[one.table] = rows.get(one.table, 0) + one.rows
    return dg.MaterializeResult(
        metadata={"rows": sum(rows.values()), **counts_metadata(rows, prefix="rows of ")}
    )


@dg.definitions
def retention_definitions() -> dg.Definitions:
    """The asset and its schedule; a rehearsal, whose clock is shifted, deletes nothing by itself."""
    job = dg.define_asset_job(
        "apply_retention", selection=[retention], description="Delete what has been kept long enough."
    )
    is_rehearsal = bool(MailhouseSettings.load().clock_offset)
    return dg.Definitions(
        assets=[retention],
        jobs=[job],
        schedules=[
            dg.ScheduleDefinition(
                name="retention_every_night",
                job=job,
                cron_schedule="15 4 * * *",
                default_status=dg.DefaultScheduleStatus.STOPPED
                if is_rehearsal
                else dg.DefaultScheduleStatus.RUNNING,
                description="What has been kept long enough is deleted once a day.",
            )
        ],
    )
