"""What the sensor of experiments does: looks that may decide, and what is left to be sent once it is time.

It launches sends, so it is registered where these are: `orchestration.defs.campaigns.sensors`.
"""

import time

import dagster as dg

from orchestration.defs.campaigns.assets import CAMPAIGN_TAG, CAMPAIGNS, OCCURRENCE_TAG, PART_TAG, PAUSED_TAG
from orchestration.defs.campaigns.sensors import ATTEMPTS, RUNS_PER_TICK, sending_job
from orchestration.defs.experiments.assets import EXPERIMENTS, RESULTS
from orchestration.lib.experiment_runs import Task, due_tasks, load_experiments
from orchestration.lib.resources import open_warehouse
from senders.ledger import Ledger
from senders.settings import SenderSettings

EXPERIMENT_TAG, KIND_TAG = "mailhouse/experiment", "mailhouse/experiment_look"
LOOK_SECONDS = {"look": 900.0, "refresh": 6 * 3600.0}
"""Looks that may decide, and those that only show, are so far apart, by the wall clock."""

analyse_experiment = dg.define_asset_job(
    "analyse_experiment",
    selection=dg.AssetSelection.assets(RESULTS),
    executor_def=dg.in_process_executor,
    description="Analyse an experiment, and decide it if it is time.",
)


def experiments_due(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One run a task. A decision is a stored row: whoever dies after it leaves a task that the next tick finds.

    That nobody gets two messages is the ledger's doing; run tags only keep runs from being launched for nothing.
    """
    settings = SenderSettings.load()
    running = load_experiments(settings.content_dir)
    if not running:
        return dg.SkipReason("There are no experiments.")
    now = settings.now()
    with Ledger.open(settings) as ledger:
        paused = ledger.paused("campaign")
    requests: list[dg.RunRequest] = []
    waiting: list[str] = []
    with open_warehouse("experiments_due") as warehouse:
        for one in running.values():
            if one.campaign is not None and one.campaign.campaign in paused:
                waiting.append(f"{one.campaign.campaign} is paused")
                continue
            for task in due_tasks(warehouse, one, now):
                request = (
                    _send(context.instance, task, settings)
                    if task.kind == "send"
                    else _look(context.instance, task)
                )
                if request is not None:
                    requests.append(request)
    if not requests:
        return dg.SkipReason("; ".join(waiting) or f"Nothing is due in {len(running)} experiments.")
    requests = requests[:RUNS_PER_TICK]
    looks = [str(one.partition_key) for one in requests if EXPERIMENT_TAG in one.tags]
    sends = [str(one.partition_key) for one in requests if PART_TAG in one.tags]
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[
            *([EXPERIMENTS.build_add_request(looks)] if looks else []),
            *([CAMPAIGNS.build_add_request(sends)] if sends else []),
        ],
    )


def _look(instance: dg.DagsterInstance, task: Task) -> dg.RunRequest | None:
    """A look, unless one is under way or one of its kind was a short while ago."""
    name = {EXPERIMENT_TAG: task.experiment}
    tags = {**name, KIND_TAG: task.kind}
    newest = instance.get_run_records(dg.RunsFilter(tags=name), limit=1)
    if newest and not newest[0].dagster_run.is_finished:
        return None
    before = instance.get_run_records(dg.RunsFilter(tags=tags), limit=1)
    # runs are timed by the wall clock, whatever the settings' clock says
    ended = before[0].end_time if before else None
    if ended is not None and time.time() < ended + LOOK_SECONDS[task.kind]:
        return None
    return dg.RunRequest(partition_key=task.experiment, tags=tags, job_name=analyse_experiment.name)


def _send(instance: dg.DagsterInstance, task: Task, settings: SenderSettings) -> dg.RunRequest | None:
    """A send of what is left of an occurrence, once; again after failed runs, as campaigns are."""
    occurrence = {CAMPAIGN_TAG: task.campaign, OCCURRENCE_TAG: task.occurrence}
    if any(not run.is_finished for run in instance.get_runs(dg.RunsFilter(tags=occurrence))):
        return None
    tags = {**occurrence, PART_TAG: task.part}
    launched = instance.get_runs(dg.RunsFilter(tags=tags))
    earlier = [run for run in launched if PAUSED_TAG not in run.tags]
    failed = [run for run in earlier if run.status == dg.DagsterRunStatus.FAILURE]
    if len(failed) < len(earlier) or len(failed) >= ATTEMPTS:
        return None
    return dg.RunRequest(
        run_key=f"{task.campaign}@{task.occurrence}/{task.part}#{len(launched) + 1}",
        partition_key=task.campaign,
        tags=tags,
        job_name=sending_job(settings),
    )
