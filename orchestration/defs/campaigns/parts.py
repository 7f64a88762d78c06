"""A campaign in parts: each part of the audience a step of its own, wherever Dagster's executor puts it.

    settle -> send_part (as many as MAILHOUSE_SEND_PARTS) -> finish

One machine needs no parts: a send uses all of its cores. Several machines need a ledger in PostgreSQL and a warehouse
that all of them reach; limits are shared between parts through Redis. The steps record the same assets and checks as
`campaigns` does.
"""

import importlib
from collections.abc import Iterator

import dagster as dg

from campaigns.audience import Shard
from orchestration.defs.campaigns.assets import (
    AUDIENCES,
    CAMPAIGNS,
    SENDS,
    audience_metadata,
    judgements,
    named_occurrence,
    require_whole,
    send_observed,
)
from orchestration.lib.campaign_runs import divide, export_ledger, prepare, summary_counts
from orchestration.lib.resources import counts_metadata, open_warehouse
from senders.settings import SenderSettings
from warehouse.errors import SettingsError

EXECUTORS = {
    # name -> module, name in it, distribution; what is beyond Dagster itself is for whoever uses it to install
    "in_process": ("dagster", "in_process_executor", "dagster"),
    "multiprocess": ("dagster", "multiprocess_executor", "dagster"),
    "celery": ("dagster_celery", "celery_executor", "dagster-celery"),
    "celery_kubernetes": ("dagster_celery_k8s", "celery_k8s_job_executor", "dagster-celery-k8s"),
    "kubernetes": ("dagster_k8s", "k8s_job_executor", "dagster-k8s"),
}


def find_executor(name: str) -> dg.ExecutorDefinition:
    """The executor of a name.

    Raises:
        SettingsError: there is none of that name, or its package is not installed.
    """
    if name not in EXECUTORS:
        raise SettingsError(
            f"MAILHOUSE_SEND_EXECUTOR is {name!r}, which is no executor.",
            fix=f"Allowed: {', '.join(sorted(EXECUTORS))}.",
        )
    module, attribute, distribution = EXECUTORS[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError:
        raise SettingsError(
            f"MAILHOUSE_SEND_EXECUTOR is {name}, but {distribution} is not installed.",
            fix=f"Install {distribution} of the release that fits Dagster {dg.__version__}.",
        ) from None


@dg.op(out=dg.DynamicOut(str), pool="sends", description="Judge the audience, settle it, cut it into parts.")
def settle(context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput[str]]:
    """One output a part, such as '2/4'."""
    settings = SenderSettings.load()
    with open_warehouse(context.run.run_id) as warehouse:
        prepared = prepare(settings, warehouse, context.partition_key, moment=named_occurrence(context))
        context.log_event(
            dg.AssetMaterialization(
                AUDIENCES, partition=context.partition_key, metadata=audience_metadata(prepared)
            )
        )
        for name, judgement in judgements(prepared).items():
            context.log_event(
                dg.AssetCheckEvaluation(asset_key=AUDIENCES, check_name=name, **judgement)  # pyright: ignore[reportArgumentType]
            )
        prepared.require_passed()
        # parts of an audience that is not settled yet would be parts of different ones
        prepared.audience.freeze()
        divide(prepared)
    for number in range(1, settings.send_parts + 1):
        yield dg.DynamicOutput(f"{number}/{settings.send_parts}", mapping_key=f"part_{number}")


@dg.op(pool="send_parts", description="Send a part of the audience: what of it has not been sent.")
def send_part(context: dg.OpExecutionContext, part: str) -> float:
    """Seconds that it took."""
    settings = SenderSettings.load()
    with open_warehouse(context.run.run_id) as warehouse:
        prepared = prepare(
            settings, warehouse, context.partition_key, is_judged=True, moment=named_occurrence(context)
        )
        sent = send_observed(context, prepared, shard=Shard.parse(part))
    require_whole(context, prepared, sent)
    context.add_output_metadata(
        {"part": part, **counts_metadata(summary_counts(sent))},
        mapping_key=context.get_mapping_key(),
    )
    return sent.seconds


@dg.op(pool="sends", description="Send what no part has sent, and record what became of all.")
def finish(context: dg.OpExecutionContext, seconds: list[float]) -> None:
    """Goes through the whole audience once more: a part whose machine was lost may have left claims."""
    settings = SenderSettings.load()
    with open_warehouse(context.run.run_id) as warehouse:
        prepared = prepare(
            settings, warehouse, context.partition_key, is_judged=True, moment=named_occurrence(context)
        )
        sent = send_observed(context, prepared)
        exported = export_ledger(settings, warehouse)
    require_whole(context, prepared, sent)
    context.log_event(dg.AssetMaterialization(["raw", "messages"], metadata={"rows": exported}))
    context.log_event(
        dg.AssetMaterialization(
            SENDS,
            partition=context.partition_key,
            metadata={
                "occurrence": prepared.occurrence_key,
                "parts": dg.MetadataValue.int(len(seconds)),
                "seconds": dg.MetadataValue.float(round(max(seconds, default=0.0) + sent.seconds, 3)),
                "messages": dg.MetadataValue.int(sent.already_claimed + sent.sent),
            },
        )
    )


@dg.graph(description="Send a campaign in parts, each a step that the executor places: see docs/sending.md.")
def send_campaign_in_parts() -> None:
    """Judge, send every part, then what is left."""
    finish(settle().map(send_part).collect())


def parts_job(settings: SenderSettings) -> dg.JobDefinition:
    """The job, with the executor that the settings name."""
    return send_campaign_in_parts.to_job(
        partitions_def=CAMPAIGNS, executor_def=find_executor(settings.send_executor)
    )
