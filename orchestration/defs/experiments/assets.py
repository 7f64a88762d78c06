"""Experiments: one partition each. Materialising one analyses it, decides it if it is time, and writes its page."""

from typing import TYPE_CHECKING

import dagster as dg

from orchestration.lib.experiment_runs import experiment_named
from orchestration.lib.resources import open_warehouse, table_metadata
from senders.settings import SenderSettings

if TYPE_CHECKING:
    from orchestration.lib.experiment_analysis import Look

EXPERIMENTS = dg.DynamicPartitionsDefinition(name="experiment")
RESULTS = dg.AssetKey("experiment_results")
RATIO, GUARDRAILS = "sample_ratio", "guardrails"


@dg.asset(
    key=RESULTS,
    group_name="experiments",
    partitions_def=EXPERIMENTS,
    pool="clickhouse",
    deps=[
        dg.AssetKey(["marts", "experiment_exposures"]),
        dg.AssetKey(["marts", "experiment_sums"]),
        dg.AssetKey("campaign_sends"),
    ],
    check_specs=[
        dg.AssetCheckSpec(
            RATIO, asset=RESULTS, description="The variants have the contacts that their weights promise."
        ),
        dg.AssetCheckSpec(
            GUARDRAILS, asset=RESULTS, description="No variant harms what must not get worse beyond chance."
        ),
    ],
    kinds={"python", "clickhouse"},
    description=(
        "What an experiment has come to: the verdict in plain words, its numbers and its page. The winner is chosen"
        " here, once, by the rule of its file; a sensor sends it to the remainder, and journeys lead people to it."
    ),
)
def experiment_results(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """One look at one experiment."""
    # scipy, which no process that only loads the code location needs
    from orchestration.lib.experiment_analysis import (
        BrokenRatioError,
        look,
        result_table,
        review,
        write_report,
    )

    settings = SenderSettings.load()
    running = experiment_named(settings.content_dir, context.partition_key)
    with open_warehouse(context.run.run_id) as warehouse:
        try:
            seen = review(settings, warehouse, running)
        except BrokenRatioError as error:
            # the check below says so for all to see, and nothing is decided
            context.log.warning(f"{error.message} {error.fix}")
            seen = look(warehouse, running, settings.now())
    page = write_report(settings, seen)
    metadata: dict[str, dg.MetadataValue] = {
        "verdict": dg.MetadataValue.md(words_of(seen)),
        "results": table_metadata(result_table(seen)),
        "contacts": dg.MetadataValue.int(seen.analysis.contacts if seen.analysis else 0),
        "mixed": dg.MetadataValue.int(seen.mixed),
        "held_out": dg.MetadataValue.int(seen.held_out),
        "is_final": dg.MetadataValue.bool(seen.is_final),
        "winner": dg.MetadataValue.text(seen.decision.winner if seen.decision else ""),
    }
    if seen.note:
        metadata["waits"] = dg.MetadataValue.text(seen.note)
    if page is not None:
        metadata["report"] = dg.MetadataValue.path(str(page))
        metadata["page"] = dg.MetadataValue.url(page.absolute().as_uri())
    for row in result_table(seen).to_dicts():
        # plotted by the UI from one materialisation to the next
        if row["lift"] is not None:
            metadata[f"lift_{row['variant']}"] = dg.MetadataValue.float(row["lift"])
    return dg.MaterializeResult(
        metadata=metadata, check_results=[ratio_result(seen), guardrails_result(seen)]
    )


def words_of(seen: "Look") -> str:
    """The verdict and, once there is one, the decision."""
    words = seen.verdict.text if seen.verdict else seen.headline
    return f"{seen.decision_words}\n\n{words}" if seen.decision is not None else words


def ratio_result(seen: "Look") -> dg.AssetCheckResult:
    """The check `sample_ratio`."""
    if seen.analysis is None:
        return dg.AssetCheckResult(check_name=RATIO, passed=True, description="Nobody has been exposed yet.")
    ratio = seen.analysis.sample_ratio
    shares = ", ".join(
        f"{name} {share:.2%} (planned {ratio.expected[name]:.2%})" for name, share in ratio.observed.items()
    )
    p_value = ratio.p_value if seen.is_final else ratio.anytime_p_value
    return dg.AssetCheckResult(
        check_name=RATIO,
        passed=not ratio.is_broken,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{shares}; by chance alone with a probability of {p_value:.2g}.",
        metadata={"p_value": p_value, **{f"contacts_{name}": n for name, n in seen.analysis.counts.items()}},
    )


def guardrails_result(seen: "Look") -> dg.AssetCheckResult:
    """The check `guardrails`."""
    found = seen.analysis.guardrails if seen.analysis else ()
    harmed = [one for one in found if one.status == "harmed"]
    words = "; ".join(f"{one.guardrail.metric.name} of {one.variant}: {one.status}" for one in found)
    return dg.AssetCheckResult(
        check_name=GUARDRAILS,
        passed=not harmed,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{words}." if words else "There are none, or nobody has been exposed yet.",
    )
