"""What is kept of the dbt project for processes that build no model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import dagster as dg
import pytest

from orchestration.lib.dbt_runs import target_path
from orchestration.lib.dbt_specs import describe, load_specs
from warehouse.settings import PROJECT_ROOT, MailhouseSettings


@pytest.fixture
def settings(definitions: dg.Definitions) -> MailhouseSettings:
    """Those of the code location, whose project has been parsed."""
    assert definitions
    return MailhouseSettings.load()


def by_name(specs: Sequence[Any]) -> dict[str, Any]:
    """Specs by their keys; the order of dependencies says nothing."""
    return {
        f"{spec.key}": spec._replace(deps=sorted(spec.deps, key=lambda dep: dep.asset_key))
        if isinstance(spec, dg.AssetSpec)
        else spec
        for spec in specs
    }


def test_the_file_gives_back_what_was_described(settings: MailhouseSettings) -> None:
    described = describe(settings)
    file = target_path(settings) / "dagster_specs.pickle"
    file.unlink(missing_ok=True)
    load_specs(settings)
    assert file.exists()
    kept = load_specs(settings)
    assert by_name(kept.assets) == by_name(described.assets)
    assert by_name(kept.checks) == by_name(described.checks)
    assert any(spec.kinds for spec in kept.assets)
    assert any(spec.metadata.get("dagster/column_schema") for spec in kept.assets)


def test_a_file_that_was_cut_short_is_written_anew(settings: MailhouseSettings) -> None:
    file = target_path(settings) / "dagster_specs.pickle"
    load_specs(settings)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert load_specs(settings).assets
    assert len(file.read_bytes()) == len(whole)


def test_a_process_that_builds_no_model_imports_neither_dbt_nor_dagster_dbt(
    settings: MailhouseSettings,
) -> None:
    load_specs(settings)
    code = (
        "import sys; from orchestration.definitions import defs; defs().get_repository_def(); "
        "print([name for name in ('dbt', 'dagster_dbt', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT_ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
