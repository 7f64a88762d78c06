"""Every dbt model, seed and test as Dagster assets and asset checks."""

import time
from collections.abc import Iterator
from typing import Any

import dagster as dg

from orchestration.defs.dbt.partitions import FACTS, mark_built
from orchestration.lib.automation import automated
from orchestration.lib.dbt_runs import stream
from orchestration.lib.dbt_specs import load_specs
from orchestration.lib.resources import open_warehouse
from warehouse.settings import MailhouseSettings


@dg.definitions
def dbt_models() -> dg.Definitions:
    """The dbt project as one multi-asset; a selection of it runs just the nodes selected."""
    specs = load_specs(MailhouseSettings.load())

    @dg.multi_asset(
        name="dbt_models",
        specs=automated(specs.assets),
        check_specs=specs.checks,
        can_subset=True,
        # tests of sources belong to assets that other definitions make
        allow_arbitrary_check_specs=True,
        pool="dbt",
    )
    def models(context: dg.AssetExecutionContext) -> Iterator[Any]:
        begun = time.time()
        # unit tests judge the SQL on made-up rows: a matter for `make test`, not for every hour
        yield from stream(
            ["build", "--exclude-resource-type", "unit_test", "--no-write-json"],
            context,
            MailhouseSettings.load(),
        )
        if any(key.path[-1] == FACTS for key in context.selected_asset_keys):
            with open_warehouse(context.run.run_id) as warehouse:
                mark_built(context, warehouse, begun)

    return dg.Definitions(assets=[models])
