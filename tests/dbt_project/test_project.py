"""What can be said of the project without running it: descriptions, keys, contracts, edges."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from models import environment

from orchestration.lib.dbt_runs import PROJECT_DIR, dbt_environment
from warehouse.settings import MailhouseSettings

LOG = "int_segments__changed"


def nodes(manifest: Any, kind: str = "model") -> list[Any]:
    return [node for node in manifest.nodes.values() if node.resource_type == kind]


def test_parsing_gives_no_warning(manifest: Any, parse_events: list[Any]) -> None:
    loud = [event.info.msg for event in parse_events if event.info.level in ("warn", "error")]
    assert manifest.nodes
    assert loud == []


def test_every_model_states_key_and_grain_beside_its_sql(manifest: Any) -> None:
    for node in nodes(manifest):
        assert "Key: " in node.description, node.name
        assert "Grain: " in node.description, node.name
        assert node.patch_path.endswith(node.original_file_path.removesuffix(".sql") + ".yml"), node.name


def test_marts_and_segments_are_described_column_by_column(manifest: Any) -> None:
    public = [node for node in nodes(manifest) if node.fqn[1] in ("marts", "segments")]
    assert len(public) >= 24
    for node in public:
        assert len(node.description.split()) >= 16, node.name
        assert node.columns, node.name
        for column in node.columns.values():
            assert column.description.strip(), f"{node.name}.{column.name}"
            assert column.data_type, f"{node.name}.{column.name}"


def test_marts_have_contracts_and_tables_an_order(manifest: Any) -> None:
    for node in nodes(manifest):
        if node.fqn[1] == "marts":
            assert node.config.contract.enforced, node.name
        if node.config.materialized != "view":
            assert node.config.get("order_by"), node.name


def test_databases_are_named_as_the_folders(manifest: Any) -> None:
    for node in nodes(manifest):
        assert node.schema == f"dbt_test_{node.fqn[1]}", node.name


def test_every_mart_is_tested_on_its_key(manifest: Any) -> None:
    keyed = {
        node.attached_node
        for node in nodes(manifest, "test")
        if getattr(node, "test_metadata", None) and node.test_metadata.name == "is_key"
    }
    marts = {node.unique_id for node in nodes(manifest) if node.fqn[1] == "marts"}
    # engagement is a view of a group by its key
    assert {name.split(".")[-1] for name in marts - keyed} == {"engagement"}


def test_every_segment_file_feeds_the_memberships(manifest: Any) -> None:
    files = {path.stem for path in (PROJECT_DIR / "models/segments").glob("**/*.sql")}
    assert len(files) >= 8
    fed = {name.split(".")[-1] for name in manifest.nodes[f"model.mailhouse.{LOG}"].depends_on.nodes}
    assert fed == files
    for node in nodes(manifest):
        if node.fqn[1] == "segments":
            assert list(node.columns) == ["contact_id"], node.name
            assert "segment" in node.tags, node.name


def test_time_is_taken_from_the_clock_alone() -> None:
    wall_clock = re.compile(r"\b(now|now64|today|yesterday|current_timestamp|current_date)\s*\(")
    for path in (*PROJECT_DIR.glob("models/**/*.sql"), *PROJECT_DIR.glob("tests/**/*.sql")):
        text = re.sub(r"\{\{.*?\}\}", "", path.read_text(), flags=re.DOTALL)
        assert not wall_clock.search(text), path


@pytest.fixture
def project_copy(tmp_path: Path) -> Path:
    """A copy of the project that a test may change."""
    return Path(
        shutil.copytree(
            PROJECT_DIR, tmp_path / "dbt_project", ignore=shutil.ignore_patterns("target", "logs")
        )
    )


@pytest.mark.slow
def test_a_new_segment_is_one_file(project_copy: Path, tmp_path: Path) -> None:
    from models import dbt

    with environment(dbt_environment(MailhouseSettings(home=tmp_path))):
        before = dbt(["parse"], tmp_path / "target", project_copy)
        (project_copy / "models/segments/french_champions.sql").write_text(
            "select contact_id from {{ ref('int_contacts__profiled') }}\n"
            "where country = 'France' and contact_id in (select contact_id from {{ ref('champions') }})\n"
        )
        (project_copy / "models/segments/hibernating.sql").unlink()
        (project_copy / "models/segments/hibernating.yml").unlink()
        # the same target folder: what the first parse left there must not hide the new file
        after = dbt(["parse"], tmp_path / "target", project_copy)
    assert before.success
    assert after.success, after.exception
    log = after.result.nodes[f"model.mailhouse.{LOG}"]
    assert "model.mailhouse.french_champions" in log.depends_on.nodes
    assert "model.mailhouse.hibernating" not in log.depends_on.nodes
    written = json.loads((tmp_path / "target/manifest.json").read_text())
    assert "model.mailhouse.french_champions" in written["parent_map"][f"model.mailhouse.{LOG}"]
