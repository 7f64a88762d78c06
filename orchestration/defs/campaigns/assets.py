"""Campaigns: one partition each, its audience and its send, and the checks that stand between the two.

`campaign_audiences` and `campaign_sends` run as one step that cannot be split, so that no selection in the UI can send
without the checks.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from campaigns.audience import Shard
from orchestration.lib.campaign_runs import (
    CHECKS,
    WARNINGS,
    Prepared,
    deliver,
    every,
    export_ledger,
    prepare,
    summary_counts,
    throttled,
)
from orchestration.lib.resources import counts_metadata, open_warehouse
from senders.pipeline import SendSummary
from senders.settings import SenderSettings

GROUP = "campaigns"
CAMPAIGNS = dg.DynamicPartitionsDefinition(name="campaign")
AUDIENCES = dg.AssetKey("campaign_audiences")
SENDS = dg.AssetKey("campaign_sends")
OBSERVE_SECONDS = 15.0
PAUSED_TAG = "mailhouse/paused"
CAMPAIGN_TAG, OCCURRENCE_TAG = "mailhouse/campaign", "mailhouse/occurrence"
PART_TAG = "mailhouse/experiment_part"
_Context = dg.OpExecutionContext | dg.AssetExecutionContext


@dg.multi_asset(
    name="campaigns",
    specs=[
        dg.AssetSpec(
            AUDIENCES,
            group_name=GROUP,
            description=(
                "Who a campaign goes to in one occurrence: its segment, less whom it may not or should not reach. "
                "Settled once; consent and suppression are read anew while it is sent."
            ),
            deps=[dg.AssetKey(["marts", "contact_profiles"]), dg.AssetKey(["marts", "recommendations"])],
            kinds={"clickhouse"},
        ),
        dg.AssetSpec(
            SENDS,
            group_name=GROUP,
            description=(
                "The messages of a campaign: claimed in the ledger, then sent. "
                "Materialising a partition again sends only what has not been sent."
            ),
            deps=[AUDIENCES],
            kinds={"python"},
        ),
    ],
    check_specs=[
        dg.AssetCheckSpec(name, asset=AUDIENCES, blocking=name not in WARNINGS, description=description)
        for name, description in CHECKS.items()
    ],
    partitions_def=CAMPAIGNS,
    can_subset=False,
    pool="sends",
)
def campaigns(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    """Judge the audience; if every check that blocks passes, send to it."""
    settings = SenderSettings.load()
    with open_warehouse(context.run.run_id) as warehouse:
        prepared = prepare(settings, warehouse, context.partition_key, moment=named_occurrence(context))
        results = [
            dg.AssetCheckResult(check_name=name, asset_key=AUDIENCES, **judgement)
            for name, judgement in judgements(prepared).items()
        ]
        yield dg.MaterializeResult(
            asset_key=AUDIENCES, check_results=results, metadata=audience_metadata(prepared)
        )
        prepared.require_passed()
        sent = send_observed(context, prepared)
        exported = export_ledger(settings, warehouse)
    require_whole(context, prepared, sent)
    context.log_event(dg.AssetMaterialization(["raw", "messages"], metadata={"rows": exported}))
    yield dg.MaterializeResult(
        asset_key=SENDS,
        metadata={
            "occurrence": prepared.occurrence_key,
            "seconds": dg.MetadataValue.float(round(sent.seconds, 3)),
            **counts_metadata(summary_counts(sent)),
        },
    )


def named_occurrence(context: _Context) -> datetime | None:
    """The occurrence that the run is for, where it need not be the newest: what an experiment left."""
    tags = context.run.tags
    return datetime.fromisoformat(tags[OCCURRENCE_TAG]) if PART_TAG in tags else None


def judgements(prepared: Prepared) -> dict[str, dict[str, Any]]:
    """Each check's name with what Dagster keeps of its result."""
    return {
        check.name: {
            "passed": check.is_passed,
            "severity": dg.AssetCheckSeverity.ERROR if check.is_blocking else dg.AssetCheckSeverity.WARN,
            "description": check.message,
            "metadata": dict(check.metadata),
        }
        for check in prepared.checks
    }


def audience_metadata(prepared: Prepared) -> dict[str, Any]:
    """The audience in numbers."""
    summary = prepared.summary
    return {
        "occurrence": prepared.occurrence_key,
        "members": dg.MetadataValue.int(summary.members),
        "sendable": dg.MetadataValue.int(summary.sendable),
        **counts_metadata(summary.skipped, "skipped_"),
    }


def send_observed(context: _Context, prepared: Prepared, *, shard: Shard | None = None) -> SendSummary:
    """Send, or send a part; how far it is stands in the log, and beside the asset."""
    members = prepared.summary.members // (shard.count if shard else 1)

    def observe(so_far: SendSummary) -> None:
        metadata = _progress(so_far, members)
        if shard:
            metadata["part"] = dg.MetadataValue.text(f"{shard.number}/{shard.count}")
        context.log_event(dg.AssetObservation(SENDS, partition=context.partition_key, metadata=metadata))

    line = throttled(context.log.info, members)
    seen = every(OBSERVE_SECONDS, observe)

    def on_progress(so_far: SendSummary) -> None:
        line(so_far)
        seen(so_far)

    return deliver(prepared, on_progress=on_progress, shard=shard)


def require_whole(context: _Context, prepared: Prepared, sent: SendSummary) -> None:
    """End the run here if the send was paused, cancelled or interrupted; everything under way is recorded.

    Raises:
        DagsterExecutionInterruptedError: paused or cancelled: the sensor does not launch a cancelled run again.
        Failure: interrupted, such as by a machine that is shut down: the sensor does.
    """
    if sent.is_paused:
        # so marked, the run does not count as an attempt when the campaign is resumed
        context.instance.add_run_tags(context.run.run_id, {PAUSED_TAG: "true"})
    if sent.is_paused or (sent.is_interrupted and _is_cancelled(context)):
        raise DagsterExecutionInterruptedError
    if sent.is_interrupted:
        raise dg.Failure(
            f"The send was interrupted after {sent.seen:,} of {prepared.summary.members:,}."
            " Materialise it again to go on."
        )


def _progress(so_far: SendSummary, members: int) -> dict[str, Any]:
    rate = so_far.seen / so_far.seconds if so_far.seconds else 0.0
    return {
        "members": dg.MetadataValue.int(members),
        "done": dg.MetadataValue.int(so_far.seen),
        "sent": dg.MetadataValue.int(so_far.sent),
        "skipped": dg.MetadataValue.int(sum(so_far.skipped.values())),
        "failed": dg.MetadataValue.int(so_far.failed + so_far.rejected + so_far.invalid),
        "rate_per_second": dg.MetadataValue.float(round(rate, 1)),
        "seconds_left": dg.MetadataValue.float(round((members - so_far.seen) / rate, 1) if rate else -1.0),
    }


def _is_cancelled(context: _Context) -> bool:
    """Whether somebody cancels the run in the UI, rather than that the machine is shut down."""
    run = context.instance.get_run_by_id(context.run.run_id)
    return run is not None and run.status == dg.DagsterRunStatus.CANCELING


@dg.asset(
    key=["raw", "messages"],
    # what the ledger recorded is an input of the models, as provider events are
    group_name="ingestion",
    description="Every status change of every message, copied from the ledger.",
    kinds={"python", "clickhouse"},
    pool="clickhouse",
)
def messages(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Copy what the ledger has that the warehouse does not; campaigns do so themselves when they end."""
    with open_warehouse(context.run.run_id) as warehouse:
        return dg.MaterializeResult(metadata={"rows": export_ledger(SenderSettings.load(), warehouse)})
