"""Two-way sync with CRMs: the asset, its rhythm, and the sensor that syncs at once when a CRM reports a change."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from crm.base import CrmError, Kind
from crm.connectors import configured
from crm.news import news
from crm.rules import CrmRules, segment_names
from crm.settings import CrmSettings
from crm.syncing import rules_in_force, sync_crms
from orchestration.lib.dbt_runs import PROJECT_DIR
from orchestration.lib.resources import counts_metadata, open_warehouse
from warehouse.errors import MailhouseError, WarehouseError

GROUP = "crm"
SYNC = dg.AssetKey(["crm", "sync"])
DECISIONS = dg.AssetKey(["raw", "field_decisions"])
RECORDS = dg.AssetKey(["raw", "crm_records"])


class SyncConfig(dg.Config):
    """What one run reads of the CRMs: contact, company, deal, task. Contacts are decided whatever is read."""

    kinds: list[str] = Field(default=["contact"], description="what is read")


@dg.multi_asset(
    name="crm_sync",
    specs=[
        dg.AssetSpec(
            SYNC,
            group_name=GROUP,
            description="CRMs read, conflicts decided, what differs written to them: content/crm.yaml.",
            kinds={"python"},
        ),
        dg.AssetSpec(
            DECISIONS,
            group_name=GROUP,
            description="Whose value of a contact's field counts, where sources disagreed.",
            kinds={"clickhouse"},
            deps=[SYNC],
            # models need not follow where nothing was decided
            skippable=True,
        ),
    ],
    pool="crm",
)
def crm_sync(context: dg.AssetExecutionContext, config: SyncConfig) -> Iterator[dg.MaterializeResult]:
    """One sync; it fails once all is done if a CRM failed, and the next goes on where it stopped."""
    known: dict[str, Kind] = {"contact": "contact", "company": "company", "deal": "deal", "task": "task"}
    with open_warehouse(context.run.run_id) as warehouse:
        report = sync_crms(
            CrmSettings.load(),
            warehouse,
            segments=segment_names(PROJECT_DIR),
            wanted={known[kind] for kind in config.kinds},
            run_id=context.run.run_id,
        )
        decided = int(warehouse.value("select count() from raw.field_decisions"))
    yield dg.MaterializeResult(asset_key=SYNC, metadata=counts_metadata(report.counts))
    if report.counts["decisions"]:
        yield dg.MaterializeResult(asset_key=DECISIONS, metadata={"dagster/row_count": decided})
    if report.failures:
        raise CrmError(
            "; ".join(f"{name}: {message}" for name, message in report.failures.items()),
            fix="The next sync goes on where this one stopped.",
        )


@dg.definitions
def crm() -> dg.Definitions:
    """The asset; and, where a CRM is set up and `content/crm.yaml` asks for something, what starts it."""
    settings = CrmSettings.load()
    job = dg.define_asset_job(
        "sync_crms",
        selection=dg.AssetSelection.assets(SYNC, DECISIONS, RECORDS),
        description="Read the CRMs, decide conflicts, write what differs.",
    )
    names = [connector.name for connector in configured(settings)]
    if not names or _rules(settings).is_idle:
        return dg.Definitions(assets=[crm_sync], jobs=[job])
    is_rehearsal = bool(settings.clock_offset)
    return dg.Definitions(
        assets=[crm_sync],
        jobs=[job],
        schedules=[
            dg.ScheduleDefinition(
                name="sync_crms_regularly",
                job=job,
                cron_schedule=cron_of(settings.crm_sync_seconds),
                default_status=dg.DefaultScheduleStatus.STOPPED
                if is_rehearsal
                else dg.DefaultScheduleStatus.RUNNING,
                description="CRMs are synced every MAILHOUSE_CRM_SYNC_SECONDS.",
            )
        ],
        sensors=[
            dg.SensorDefinition(
                name="crm_news",
                evaluation_fn=crm_news,
                job=job,
                minimum_interval_seconds=5,
                default_status=dg.DefaultSensorStatus.STOPPED
                if is_rehearsal
                else dg.DefaultSensorStatus.RUNNING,
                description="Syncs at once when a CRM reports a change that is not ours.",
            )
        ],
    )


def crm_news(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One run for all that CRMs reported since the last one began; none while one is under way."""
    settings = CrmSettings.load()
    names = [connector.name for connector in configured(settings)]
    since = (
        datetime.fromisoformat(context.cursor) if context.cursor else datetime.now(UTC) - timedelta(hours=1)
    )
    unfinished = dg.RunsFilter(job_name="sync_crms", statuses=[*_UNFINISHED])
    if context.instance.get_run_records(unfinished, limit=1):
        return dg.SkipReason("A sync is under way.")
    try:
        with open_warehouse("crm_news") as warehouse:
            kinds, through = news(warehouse, names, since)
    except WarehouseError as error:
        return dg.SkipReason(f"{error.message} {error.fix}")
    if through == since:
        return dg.SkipReason("CRMs report nothing new.")
    cursor = through.isoformat()
    if not kinds:
        return dg.SensorResult(skip_reason="CRMs report what we wrote ourselves.", cursor=cursor)
    config = dg.RunConfig(ops={"crm_sync": SyncConfig(kinds=sorted({"contact", *kinds}))})
    # two ticks that saw the same ask for the same run
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=cursor, run_config=config)], cursor=cursor)


_UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
)


def cron_of(seconds: int) -> str:
    """The cron line whose ticks are about so many seconds apart: whole minutes below an hour, whole hours above."""
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"*/{minutes} * * * *"
    return f"0 */{min(23, round(minutes / 60))} * * *"


def _rules(settings: CrmSettings) -> CrmRules:
    try:
        return rules_in_force(settings, segment_names(PROJECT_DIR))
    except MailhouseError:
        # a sync and `mailhouse doctor` say what is wrong; all other assets are none the worse
        return CrmRules()
