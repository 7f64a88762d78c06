"""Every dbt model, seed and test as Dagster assets and asset checks."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtProject, dbt_assets

from orchestration.lib.dbt_runs import PROJECT_DIR, prepare_project, stream, target_path
from warehouse.settings import MailhouseSettings

# folder of the model -> group in the UI; exhaustive, so that a new folder must be given its place
GROUPS: Mapping[str, str] = {
    "staging": "staging",
    "intermediate": "staging",
    "marts": "marts",
    "segments": "segments",
}


class ModelTranslator(DagsterDbtTranslator):
    """How a dbt node appears in Dagster: grouped by its folder, so that the graph reads from left to right."""

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetSpec:
        """The stock spec, in the group of its folder."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        return spec.replace_attributes(group_name=group_of(self.get_resource_props(manifest, unique_id)))


def group_of(properties: Mapping[str, Any]) -> str:
    """Group of a dbt node.

    Raises:
        KeyError: a model lies in a folder that `GROUPS` does not name.
    """
    if properties["resource_type"] == "source":
        return "ingestion"
    if properties["resource_type"] == "seed":
        return "staging"
    folder = properties["fqn"][1]
    if folder not in GROUPS:
        raise KeyError(
            f"{properties['original_file_path']}: folder {folder!r} has no group; add it to GROUPS in "
            f"orchestration/defs/dbt/assets.py. Known folders: {', '.join(GROUPS)}."
        )
    return GROUPS[folder]


@dg.definitions
def dbt_models() -> dg.Definitions:
    """The dbt project as one multi-asset; a selection of it runs just the nodes selected."""
    settings = MailhouseSettings.load()
    manifest = prepare_project(settings)
    project = DbtProject(
        project_dir=PROJECT_DIR, profiles_dir=PROJECT_DIR, target_path=target_path(settings), target="default"
    )

    @dbt_assets(
        name="dbt_models",
        manifest=manifest,
        project=project,
        dagster_dbt_translator=ModelTranslator(
            settings=DagsterDbtTranslatorSettings(
                enable_asset_checks=True, enable_source_tests_as_checks=True
            )
        ),
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
