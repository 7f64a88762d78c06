"""The sensors that launch campaigns when they are due, and again where something was put off."""

import dagster as dg

from campaigns.identity import occurrence_key
from campaigns.specs import CampaignSpec, is_due, load_campaigns, occurrence
from orchestration.defs.campaigns.assets import (
    AUDIENCES,
    CAMPAIGN_TAG,
    CAMPAIGNS,
    OCCURRENCE_TAG,
    PAUSED_TAG,
    SENDS,
)
from orchestration.defs.campaigns.parts import parts_job, send_campaign_in_parts
from senders.ledger import Ledger
from senders.retries import is_retry_due
from senders.settings import SenderSettings

RUNS_PER_TICK = 10
ATTEMPTS = 3
RETRY_TAG = "mailhouse/retry"

send_campaign = dg.define_asset_job(
    "send_campaign",
    selection=dg.AssetSelection.assets(AUDIENCES, SENDS),
    executor_def=dg.in_process_executor,
    description="Judge a campaign's audience and send to it.",
)


@dg.definitions
def launching() -> dg.Definitions:
    """The jobs that send, and what launches them."""
    # it asks this module which job sends
    from orchestration.defs.experiments.sensors import analyse_experiment, experiments_due

    jobs = [send_campaign, parts_job(SenderSettings.load())]
    return dg.Definitions(
        jobs=jobs,
        sensors=[
            dg.SensorDefinition(
                "campaigns_due",
                evaluation_fn=campaigns_due,
                jobs=jobs,
                # the daemon looks every five seconds; a minimum of five would miss every second look by milliseconds
                minimum_interval_seconds=4,
                default_status=dg.DefaultSensorStatus.RUNNING,
                description="Launches a run for each campaign whose time has come and whose segment has been built.",
            ),
            dg.SensorDefinition(
                "schedule_retry",
                evaluation_fn=schedule_retry,
                jobs=jobs,
                minimum_interval_seconds=60,
                default_status=dg.DefaultSensorStatus.RUNNING,
                description=(
                    "Launches a run for campaigns some of whose messages the provider put off, or a day's limit held"
                    " back."
                ),
            ),
            dg.SensorDefinition(
                "experiments_due",
                evaluation_fn=experiments_due,
                jobs=[analyse_experiment, *jobs],
                minimum_interval_seconds=29,
                default_status=dg.DefaultSensorStatus.RUNNING,
                description=(
                    "Looks at experiments that may be decided, and sends what is due: the winner to the remainder,"
                    " variants with a delay, a bandit's next batch."
                ),
            ),
        ],
    )


def campaigns_due(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One run a campaign and occurrence; one more after a failed run, three in all.

    The run key only keeps runs from being launched twice. That no message is sent twice is the ledger's doing.
    """
    settings = SenderSettings.load()
    now = settings.now()
    specs = load_campaigns(settings.content_dir)
    due = {name: spec for name, spec in specs.items() if is_due(spec, now)}
    if not due:
        return dg.SkipReason(f"None of {len(specs)} campaigns is due.")
    with Ledger.open(settings) as ledger:
        paused = ledger.paused("campaign")
    requests: list[dg.RunRequest] = []
    waiting: list[str] = []
    for name, spec in sorted(due.items()):
        if name in paused:
            waiting.append(f"{name} is paused")
            continue
        missing = [key for key in _needs(spec) if not _is_built(context.instance, key)]
        if missing:
            waiting.append(f"{name} waits for {', '.join(key.to_user_string() for key in missing)}")
            continue
        moment = occurrence(spec, now)
        assert moment is not None
        tags = {CAMPAIGN_TAG: name, OCCURRENCE_TAG: occurrence_key(moment)}
        launched = context.instance.get_runs(dg.RunsFilter(tags=tags))
        # what somebody paused goes on once it is resumed; it was no failed attempt
        earlier = [run for run in launched if PAUSED_TAG not in run.tags or not run.is_finished]
        failed = [run for run in earlier if run.status == dg.DagsterRunStatus.FAILURE]
        if len(failed) < len(earlier) or len(failed) >= ATTEMPTS:
            continue
        requests.append(
            dg.RunRequest(
                run_key=f"{name}@{tags[OCCURRENCE_TAG]}#{len(launched) + 1}",
                partition_key=name,
                tags=tags,
                job_name=sending_job(settings),
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


def schedule_retry(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One run a campaign, later and later; `senders.retries` says when. Only the newest occurrence is tried again."""
    settings = SenderSettings.load()
    now = settings.now()
    specs = load_campaigns(settings.content_dir)
    with Ledger.open(settings) as ledger:
        paused = ledger.paused("campaign")
        waiting = [
            one
            for one in ledger.deferred()
            if one.kind == "campaign" and one.name in specs and one.name not in paused
        ]
    requests: dict[str, dg.RunRequest] = {}
    for one in waiting:
        moment = occurrence(specs[one.name], now)
        if moment is None or occurrence_key(moment) != one.occurrence or one.name in requests:
            continue
        tags = {CAMPAIGN_TAG: one.name, OCCURRENCE_TAG: one.occurrence}
        runs = context.instance.get_runs(dg.RunsFilter(tags=tags))
        launched = sum(RETRY_TAG in run.tags for run in runs)
        if all(run.is_finished for run in runs) and is_retry_due(
            one, launched, now, quiet_hours=specs[one.name].quiet_hours
        ):
            requests[one.name] = dg.RunRequest(
                run_key=f"{one.name}@{one.occurrence}!{launched + 1}", partition_key=one.name,
                tags={**tags, RETRY_TAG: str(launched + 1)}, job_name=sending_job(settings),
            )  # fmt: skip
    if not requests:
        return dg.SkipReason(
            f"{sum(one.messages for one in waiting):,} messages wait for another try or the end of quiet hours."
        )
    return dg.SensorResult(
        run_requests=list(requests.values())[:RUNS_PER_TICK],
        dynamic_partitions_requests=[CAMPAIGNS.build_add_request(list(requests))],
    )


def sending_job(settings: SenderSettings) -> str:
    return (send_campaign_in_parts if settings.send_parts > 1 else send_campaign).name


def _needs(spec: CampaignSpec) -> list[dg.AssetKey]:
    needs = [dg.AssetKey(["segments", spec.audience.segment]), dg.AssetKey(["marts", "contact_profiles"])]
    if spec.send.recommendations:
        needs.append(dg.AssetKey(["raw", "recommendations"]))
    return needs


def _is_built(instance: dg.DagsterInstance, key: dg.AssetKey) -> bool:
    return instance.get_latest_materialization_event(key) is not None
