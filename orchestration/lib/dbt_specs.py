"""What Dagster knows of the dbt project: a spec for each model and seed, a check for each test.

`dagster_dbt` reads them off the manifest, and takes two seconds to import. Every process that sends mail loads the
code location too and builds no model, so the specs are kept in a file beside the manifest, and `dagster_dbt` is
imported only where models are built or the project has changed.
"""

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg

from orchestration.lib.dbt_runs import PROJECT_DIR, parsed_digest, prepare_project, target_path
from warehouse.settings import MailhouseSettings

if TYPE_CHECKING:
    from dagster_dbt import DagsterDbtTranslator, DbtProject

# folder of the model -> group in the UI; exhaustive, so that a new folder must be given its place
GROUPS: Mapping[str, str] = {
    "staging": "staging",
    "intermediate": "staging",
    "marts": "marts",
    "features": "features",
    "segments": "segments",
    "metrics": "marts",
    "bi": "bi",
    "bi_personal": "bi",
}
# what dagster_dbt hangs on each spec for its own use: the whole manifest and the translator, too big to keep
_BULKY = ("dagster_dbt/manifest", "dagster_dbt/dagster_dbt_translator", "dagster_dbt/project")


class DbtSpecs(NamedTuple):
    """The dbt project as Dagster shows it: models and seeds, tests, and the sources that must not grow old."""

    assets: Sequence[dg.AssetSpec]
    checks: Sequence[dg.AssetCheckSpec]
    dated_sources: Mapping[str, dg.AssetKey]


class Dbt(NamedTuple):
    """What `dagster_dbt` needs to name assets: the manifest as JSON, the translator and the project."""

    manifest: Mapping[str, Any]
    translator: "DagsterDbtTranslator"
    project: "DbtProject"


def load_specs(settings: MailhouseSettings) -> DbtSpecs:
    """The specs, from the file if the project is as it was when the file was written."""
    file = prepare_project(settings).with_name("dagster_specs.pickle")
    # specs follow from the project, from the code that reads it and from its version
    version = (parsed_digest(settings), dg.__version__, _source_version())
    try:
        written, specs = pickle.loads(file.read_bytes())  # noqa: S301 - a file of our own, beside the manifest
    except (OSError, ValueError, TypeError, AttributeError, ImportError, EOFError, pickle.UnpicklingError):
        written, specs = None, None
    if written == version and specs is not None:
        assets, checks, dated_sources = specs
        return DbtSpecs(
            [_thaw(values) for values in assets], [dg.AssetCheckSpec(**one) for one in checks], dated_sources
        )
    described = describe(settings)
    # a process that reads while we write must find one file or the other
    beside = file.with_suffix(f".{os.getpid()}")
    frozen = (
        [_freeze(spec) for spec in described.assets],
        [_freeze_check(spec) for spec in described.checks],
        described.dated_sources,
    )
    beside.write_bytes(pickle.dumps((version, frozen)))
    beside.replace(file)
    return described


def describe(settings: MailhouseSettings) -> DbtSpecs:
    """The specs as `dagster_dbt` reads them off the manifest."""
    from dagster_dbt.asset_utils import build_dbt_specs

    dbt = load_dbt(settings)
    assets, checks = build_dbt_specs(
        translator=dbt.translator,
        manifest=dbt.manifest,
        select="fqn:*",
        exclude="",
        selector="",
        io_manager_key=None,
        project=dbt.project,
    )
    return DbtSpecs(
        [spec.replace_attributes(metadata=_light(spec.metadata)) for spec in assets],
        [spec.with_metadata(_light(spec.metadata or {})) for spec in checks],
        {
            unique_id: dbt.translator.get_asset_key(source)
            for unique_id, source in dbt.manifest["sources"].items()
            if (source.get("freshness") or {}).get("warn_after", {}).get("count")
        },
    )


def load_dbt(settings: MailhouseSettings) -> Dbt:
    """The manifest and how its nodes are shown: grouped by folder, so that the graph reads from left to right."""
    from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtProject
    from dagster_dbt.dbt_manifest import validate_manifest

    class ModelTranslator(DagsterDbtTranslator):
        def get_asset_spec(
            self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
        ) -> dg.AssetSpec:
            spec = super().get_asset_spec(manifest, unique_id, project)
            return spec.replace_attributes(
                group_name=group_of(self.get_resource_props(manifest, unique_id)),
            )

    manifest = prepare_project(settings)
    return Dbt(
        manifest=validate_manifest(manifest),
        translator=ModelTranslator(
            DagsterDbtTranslatorSettings(enable_asset_checks=True, enable_source_tests_as_checks=True)
        ),
        project=DbtProject(
            project_dir=PROJECT_DIR,
            profiles_dir=PROJECT_DIR,
            target_path=target_path(settings),
            target="default",
        ),
    )


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
            f"orchestration/lib/dbt_specs.py. Known folders: {', '.join(GROUPS)}."
        )
    return GROUPS[folder]


def _freeze(spec: dg.AssetSpec) -> dict[str, Any]:
    """A spec as arguments that can be pickled; dependencies cannot, so their keys stand for them."""
    return {
        "key": spec.key,
        "deps": [(dep.asset_key, dict(dep.metadata or {})) for dep in sorted(spec.deps, key=_key)],
        "description": spec.description,
        "metadata": dict(spec.metadata),
        "skippable": spec.skippable,
        "group_name": spec.group_name,
        "code_version": spec.code_version,
        "owners": list(spec.owners),
        "tags": dict(spec.tags),
    }


def _freeze_check(spec: dg.AssetCheckSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "asset": spec.asset_key,
        "description": spec.description,
        "additional_deps": [dep.asset_key for dep in spec.additional_deps],
        "blocking": spec.blocking,
        "metadata": dict(spec.metadata or {}),
    }


def _thaw(values: Mapping[str, Any]) -> dg.AssetSpec:
    # kinds are tags of Dagster's own, which the constructor takes only by their own name
    prefix = "dagster/kind/"
    tags = {name: value for name, value in values["tags"].items() if not name.startswith(prefix)}
    kinds = {name.removeprefix(prefix) for name in values["tags"] if name.startswith(prefix)}
    deps = [dg.AssetDep(key, metadata=metadata) for key, metadata in values["deps"]]
    return dg.AssetSpec(**{**values, "tags": tags, "deps": deps}, kinds=kinds)


def _key(dep: dg.AssetDep) -> dg.AssetKey:
    return dep.asset_key


def _light(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name not in _BULKY}


def _source_version() -> int:
    return Path(__file__).stat().st_mtime_ns
