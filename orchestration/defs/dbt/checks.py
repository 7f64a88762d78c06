"""Whether sources still come in: dbt's source freshness, as checks of the raw tables."""

from collections.abc import Iterator

import dagster as dg

from orchestration.lib.automation import TIME_PASSES_CRON
from orchestration.lib.dbt_runs import source_freshness
from orchestration.lib.dbt_specs import load_specs
from warehouse.settings import MailhouseSettings

CHECK = "is_fresh"


@dg.definitions
def freshness_of_sources() -> dg.Definitions:
    """One check for each source whose YAML says how old its newest row may be."""
    sources = load_specs(MailhouseSettings.load()).dated_sources

    @dg.multi_asset_check(
        name="source_freshness",
        specs=[
            dg.AssetCheckSpec(
                CHECK,
                asset=key,
                description="The newest row is no older than models/staging/_sources.yml allows.",
                automation_condition=dg.AutomationCondition.cron_tick_passed(TIME_PASSES_CRON),
            )
            for key in sources.values()
        ],
        can_subset=True,
    )
    def fresh(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        wanted = {key.asset_key for key in context.selected_asset_check_keys}
        for one in source_freshness(MailhouseSettings.load()):
            key = sources.get(one.unique_id)
            if key in wanted:
                yield dg.AssetCheckResult(
                    check_name=CHECK,
                    asset_key=key,
                    passed=one.status == "pass",
                    severity=dg.AssetCheckSeverity.ERROR
                    if one.status == "error"
                    else dg.AssetCheckSeverity.WARN,
                    description=one.text,
                )

    return dg.Definitions(asset_checks=[fresh])
