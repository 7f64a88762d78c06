"""What the code location offers, before anything runs."""

from __future__ import annotations

import dagster as dg
import pytest

from deliverability.preflight import CHECKS as PREFLIGHT_CHECKS
from orchestration.lib.dbt_specs import GROUPS, group_of

GROUP_NAMES = {
    "retention",
    "ingestion",
    "staging",
    "features",
    "marts",
    "segments",
    "bi",
    "ml",
    "campaigns",
    "experiments",
    "journeys",
    "triggers",
    "crm",
}


@pytest.fixture(scope="session")
def specs(definitions: dg.Definitions) -> list[dg.AssetSpec]:
    return list(
        definitions.resolve_asset_graph().get_all_asset_keys() and definitions.resolve_all_asset_specs()
    )


def test_the_graph_has_the_groups_of_the_story(specs: list[dg.AssetSpec]) -> None:
    assert {spec.group_name for spec in specs} == GROUP_NAMES


def test_every_asset_has_a_description(specs: list[dg.AssetSpec]) -> None:
    assert [spec.key.to_user_string() for spec in specs if not spec.description] == []


def test_every_job_is_free_of_circles(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    assert {name for name in repository.job_names if repository.get_job(name).graph.nodes}.issuperset(
        {"refresh", "recommend", "build_live_models"}
    )


def test_no_source_table_of_dbt_is_left_without_an_asset_that_writes_it(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    read = {key for key in graph.get_all_asset_keys() if key.path[0] == "raw"}
    unwritten = {key.to_user_string() for key in read if not graph.get(key).is_executable}
    # evaluations are written beside recommendations and predictions; who is who, and what is right, is said by people
    by_people = {"raw/identity_changes", "raw/rectifications"}
    assert unwritten <= {"raw/model_evaluations", "raw/quarantined_rows", *by_people}


def test_segments_stand_upstream_of_audiences_and_audiences_of_sends(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    upstream = graph.get_ancestor_asset_keys(dg.AssetKey("campaign_sends"))
    assert dg.AssetKey("campaign_audiences") in upstream
    assert dg.AssetKey(["segments", "at_risk"]) in upstream


def test_audience_and_send_cannot_be_selected_apart(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    together = graph.get(dg.AssetKey("campaign_sends")).execution_set_asset_keys
    assert dg.AssetKey("campaign_audiences") in together


def test_checks_before_a_send_block(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    checks = [key for key in graph.asset_check_keys if key.asset_key == dg.AssetKey("campaign_audiences")]
    assert {key.name for key in checks} == {
        "template_lint",
        "consent",
        "audience_not_empty",
        "audience_drift",
        "experiment_size",
        *PREFLIGHT_CHECKS,
    }
    warnings = {key.name for key in checks if not graph.get_check_spec(key).blocking}
    assert warnings == {"client_support", "experiment_size"}


def test_dbt_tests_are_asset_checks(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    assert any(key.asset_key == dg.AssetKey(["marts", "contacts"]) for key in graph.asset_check_keys)


@pytest.mark.parametrize("folder", GROUPS)
def test_a_model_takes_the_group_of_its_folder(folder: str) -> None:
    assert group_of({"resource_type": "model", "fqn": ["mailhouse", folder, "x"]}) == GROUPS[folder]


def test_a_model_in_a_new_folder_must_be_given_its_place() -> None:
    with pytest.raises(KeyError, match="GROUPS"):
        group_of(
            {
                "resource_type": "model",
                "fqn": ["mailhouse", "odd", "x"],
                "original_file_path": "models/odd/x.sql",
            }
        )
