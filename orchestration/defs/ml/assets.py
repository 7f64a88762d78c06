"""Recommendations: fitted on what people bought, measured on what they bought later, stored for every contact."""

import dagster as dg

from orchestration.lib.resources import open_warehouse, table_metadata
from warehouse.settings import MailhouseSettings

GROUP = "ml"


@dg.asset(
    key=["raw", "recommendations"],
    group_name=GROUP,
    deps=[dg.AssetKey(["marts", name]) for name in ("contacts", "order_items", "products")],
    description="The products that suit each contact best, ranked: bought together with theirs, else popular.",
    kinds={"python", "scikitlearn"},
    pool="clickhouse",
)
def recommendations(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Fit, measure on a temporal split, score every contact."""
    # scikit-learn takes seconds to import, and most processes that load this file never fit anything
    from orchestration.lib.recommendations import refresh_recommendations

    with open_warehouse(context.run.run_id) as warehouse:
        refreshed = refresh_recommendations(warehouse, MailhouseSettings.load().now())
    quality = {
        name.replace("@", "_at_"): dg.MetadataValue.float(value)
        for name in ("ndcg@10", "recall@10", "coverage@10")
        if (value := refreshed.metric(name)) is not None
    }
    return dg.MaterializeResult(
        metadata={
            "model": refreshed.model,
            "model_version": refreshed.model_version,
            "contacts": dg.MetadataValue.int(refreshed.contacts),
            **quality,
            "evaluation": table_metadata(refreshed.evaluation),
        }
    )
