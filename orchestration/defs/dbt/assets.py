"""Every dbt model, seed and test as Dagster assets and asset checks."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from orchestration.lib.dbt_runs import stream
from orchestration.lib.dbt_specs import load_specs
from warehouse.settings import MailhouseSettings


@dg.definitions
def dbt_models() -> dg.Definitions:
    """The dbt project as one multi-asset; a selection of it runs just the nodes selected."""
    specs = load_specs(MailhouseSettings.load())

    @dg.multi_asset(
        name="dbt_models",
        specs=specs.assets,
        check_specs=specs.checks,
        can_subset=True,
        # tests of sources belong to assets that other definitions make
        allow_arbitrary_check_specs=True,
        pool="clickhouse",
    )
    def models(context: dg.AssetExecutionContext) -> Iterator[Any]:
        # unit tests judge the SQL on made-up rows: a matter for `make test`, not for every hour
        yield from stream(
            ["build", "--exclude-resource-type", "unit_test", "--no-write-json"],
            context,
            MailhouseSettings.load(),
        )

    return dg.Definitions(assets=[models])
