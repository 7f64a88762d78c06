"""The sensor that launches a tick of each journey in which somebody is due or wants in."""

import time

import dagster as dg

from campaigns.journeys import KIND
from orchestration.defs.journeys.assets import JOURNEYS, TICKS
from orchestration.lib.journey_runs import all_journeys, due_reason
from orchestration.lib.resources import open_warehouse
from senders.ledger import Ledger
from senders.settings import SenderSettings

JOURNEY_TAG = "mailhouse/journey"
RUNS_PER_TICK = 10
MAX_RETRY_SECONDS = 900

tick_journey = dg.define_asset_job(
    "tick_journey",
    selection=dg.AssetSelection.assets(TICKS),
    executor_def=dg.in_process_executor,
    description="Move the people of a journey who are due, and send.",
)


@dg.sensor(
    job=tick_journey,
    # the daemon looks every five seconds; a minimum of five would miss every second look by milliseconds
    minimum_interval_seconds=4,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches a tick of each journey in which somebody is due or wants in.",
)
def journeys_due(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One run a journey at a time; after runs that failed the next waits, longer from one to the next."""
    settings = SenderSettings.load()
    specs = all_journeys(settings)
    if not specs:
        return dg.SkipReason("There are no journeys.")
    now = settings.now()
    with Ledger.open(settings) as ledger:
        paused = ledger.paused(KIND)
    requests: list[dg.RunRequest] = []
    notes: list[str] = []
    with open_warehouse("journeys_due") as warehouse:
        for name, spec in specs.items():
            if name in paused:
                notes.append(f"{name} is paused")
            elif (waiting := _waits(context.instance, name)) is not None:
                notes.append(f"{name} {waiting}")
            elif reason := due_reason(warehouse, spec, now):
                context.log.info(f"{name}: {reason}")
                requests.append(dg.RunRequest(partition_key=name, tags={JOURNEY_TAG: name}))
    if not requests:
        return dg.SkipReason("; ".join(notes) or f"Nobody is due in {len(specs)} journeys.")
    return dg.SensorResult(
        run_requests=requests[:RUNS_PER_TICK],
        dynamic_partitions_requests=[
            JOURNEYS.build_add_request([str(one.partition_key) for one in requests])
        ],
    )


def _waits(instance: dg.DagsterInstance, name: str) -> str | None:
    """Why no run of a journey is to be launched now, None if one may be."""
    records = instance.get_run_records(dg.RunsFilter(tags={JOURNEY_TAG: name}), limit=8)
    if records and not records[0].dagster_run.is_finished:
        return "is under way"
    failed = 0
    for record in records:
        if record.dagster_run.status != dg.DagsterRunStatus.FAILURE:
            break
        failed += 1
    if failed and records[0].end_time is not None:
        wait = min(MAX_RETRY_SECONDS, 15 * 2**failed)
        # runs are timed by the wall clock, whatever the settings' clock says
        if time.time() < records[0].end_time + wait:
            return f"failed {failed} times and waits for {wait} s"
    return None
