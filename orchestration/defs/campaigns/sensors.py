"""The sensor that launches campaigns when they are due."""

import dagster as dg

from campaigns.identity import occurrence_key
from campaigns.specs import CampaignSpec, is_due, load_campaigns, occurrence
from orchestration.defs.campaigns.assets import AUDIENCES, CAMPAIGNS, SENDS
from warehouse.settings import MailhouseSettings

RUNS_PER_TICK = 10
ATTEMPTS = 3
CAMPAIGN_TAG, OCCURRENCE_TAG = "mailhouse/campaign", "mailhouse/occurrence"

send_campaign = dg.define_asset_job(
    "send_campaign",
    selection=dg.AssetSelection.assets(AUDIENCES, SENDS),
    partitions_def=CAMPAIGNS,
    executor_def=dg.in_process_executor,
    description="Judge a campaign's audience and send to it.",
)


@dg.sensor(
    job=send_campaign,
    # the daemon looks every five seconds; a minimum of five would miss every second look by milliseconds
    minimum_interval_seconds=4,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches a run for each campaign whose time has come and whose segment has been built.",
)
def campaigns_due(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One run a campaign and occurrence; one more after a failed run, three in all.

    The run key only keeps runs from being launched twice. That no message is sent twice is the ledger's doing.
    """
    settings = MailhouseSettings.load()
    now = settings.now()
    specs = load_campaigns(settings.content_dir)
    due = {name: spec for name, spec in specs.items() if is_due(spec, now)}
    if not due:
        return dg.SkipReason(f"None of {len(specs)} campaigns is due.")
    requests: list[dg.RunRequest] = []
    waiting: list[str] = []
    for name, spec in sorted(due.items()):
        missing = [key for key in _needs(spec) if not _is_built(context.instance, key)]
        if missing:
            waiting.append(f"{name} waits for {', '.join(key.to_user_string() for key in missing)}")
            continue
        moment = occurrence(spec, now)
        assert moment is not None
        tags = {CAMPAIGN_TAG: name, OCCURRENCE_TAG: occurrence_key(moment)}
        earlier = context.instance.get_run_records(dg.RunsFilter(tags=tags), limit=ATTEMPTS)
        failed = [record for record in earlier if record.dagster_run.status == dg.DagsterRunStatus.FAILURE]
        if len(failed) < len(earlier) or len(failed) >= ATTEMPTS:
            continue
        requests.append(
            dg.RunRequest(
                run_key=f"{name}@{tags[OCCURRENCE_TAG]}#{len(failed) + 1}", partition_key=name, tags=tags
            )
        )
    if not requests:
        return dg.SkipReason("; ".join(waiting) or f"All {len(due)} due campaigns have been launched.")
    return dg.SensorResult(
        run_requests=requests[:RUNS_PER_TICK],
        dynamic_partitions_requests=[
            CAMPAIGNS.build_add_request([str(one.partition_key) for one in requests])
        ],
    )


def _needs(spec: CampaignSpec) -> list[dg.AssetKey]:
    needs = [dg.AssetKey(["segments", spec.audience.segment]), dg.AssetKey(["marts", "contact_profiles"])]
    if spec.send.recommendations:
        needs.append(dg.AssetKey(["raw", "recommendations"]))
    return needs


def _is_built(instance: dg.DagsterInstance, key: dg.AssetKey) -> bool:
    return instance.get_latest_materialization_event(key) is not None
