"""Recommendations: fitted on what people bought, measured on what they bought later, stored for every contact."""

import dagster as dg

from orchestration.lib.resources import open_warehouse, table_metadata
from orchestration.settings import OrchestrationSettings

GROUP = "ml"


@dg.asset(
    key=["raw", "recommendations"],
    group_name=GROUP,
    deps=[dg.AssetKey(["marts", name]) for name in ("contacts", "order_items", "products")],
    description=(
        "The products that suit each contact best, ranked, by the recommender that did best on past orders;"
        " one in place gives way only to one that does better on the last four weeks."
    ),
    kinds={"python", "scikitlearn"},
    pool="clickhouse",
)
def recommendations(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Compare, choose, fit, score every contact."""
    # scikit-learn takes seconds to import, and most processes that load this file never fit anything
    from orchestration.lib.recommendations import curve_plot, refresh_recommendations

    settings = OrchestrationSettings.load()
    with open_warehouse(context.run.run_id) as warehouse:
        refreshed = refresh_recommendations(warehouse, settings.now(), settings)
    selection = refreshed.selection
    quality = {
        name.replace("@", "_at_"): dg.MetadataValue.float(value)
        for name in ("ndcg@10", "recall@10", "coverage@10")
        if (value := refreshed.metric(name)) is not None
    }
    plot = curve_plot(selection)
    return dg.MaterializeResult(
        metadata={
            "model": refreshed.model,
            "model_version": refreshed.model_version,
            "promoted": dg.MetadataValue.bool(selection.is_promoted),
            "why": selection.why,
            "contacts": dg.MetadataValue.int(refreshed.contacts),
            **quality,
            "candidates": table_metadata(selection.summary()),
            "evaluation": table_metadata(selection.comparison),
            **({"curve": dg.MetadataValue.md(plot)} if plot else {}),
            "model_card": dg.MetadataValue.md(refreshed.card),
        }
    )
