"""The bundle that Superset imports: whole, the same each time, and refused with one line when a spec is wrong."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.build import FOLDER, Bundle, main
from dashboards.specs import SpecError


@pytest.fixture(scope="module")
def files() -> dict[str, Any]:
    """The bundle's files, read as Superset reads them."""
    return {path: yaml.safe_load(text) for path, text in Bundle().files().items()}


def under(files: dict[str, Any], folder: str) -> dict[str, Any]:
    return {path: content for path, content in files.items() if path.startswith(f"{folder}/")}


def test_six_dashboards(files: dict[str, Any]) -> None:
    assert {Path(path).stem for path in under(files, "dashboards")} == {
        *("campaign_performance", "engagement", "rfm", "cohorts", "attribution", "deliverability")
    }
    assert files["metadata.yaml"]["type"] == "Dashboard"
    assert len(under(files, "charts")) >= 50


def test_parts_refer_to_parts_that_are_there(files: dict[str, Any]) -> None:
    [database] = under(files, "databases").values()
    datasets = {one["uuid"]: one for one in under(files, "datasets").values()}
    charts = {one["uuid"]: one for one in under(files, "charts").values()}
    assert {one["database_uuid"] for one in datasets.values()} == {database["uuid"]}
    placed = []
    for dashboard in under(files, "dashboards").values():
        for part in dashboard["position"].values():
            if isinstance(part, dict) and part["type"] == "CHART":
                assert charts[part["meta"]["uuid"]]["slice_name"] == part["meta"]["sliceName"]
                placed.append(part["meta"]["uuid"])
        for one in dashboard["metadata"]["native_filter_configuration"]:
            for target in one["targets"]:
                if target:
                    columns = {column["column_name"] for column in datasets[target["datasetUuid"]]["columns"]}
                    assert target["column"]["name"] in columns
    assert sorted(placed) == sorted(charts)
    for chart in charts.values():
        dataset = datasets[chart["dataset_uuid"]]
        metrics = {metric["metric_name"] for metric in dataset["metrics"]}
        [query] = json.loads(chart["query_context"])["queries"]
        assert set(query["metrics"]) <= metrics, chart["slice_name"]


def test_only_the_bi_schema_is_read_and_nothing_is_written(files: dict[str, Any]) -> None:
    assert {one["schema"] for one in under(files, "datasets").values()} == {"bi"}
    assert all(one["sql"] is None for one in under(files, "datasets").values())
    [database] = under(files, "databases").values()
    assert not any(database[right] for right in ("allow_dml", "allow_ctas", "allow_cvas", "allow_csv_upload"))
    # Superset's own mask: it asks for the password when it imports
    assert ":XXXXXXXXXX@" in database["sqlalchemy_uri"]


def test_figures_have_units_and_titles(files: dict[str, Any]) -> None:
    for path, dataset in under(files, "datasets").items():
        for metric in dataset["metrics"]:
            is_share = "/ nullIf" in metric["expression"]
            assert not is_share or metric["d3format"] != ",d", f"{path}: {metric['metric_name']}"
            assert re.match(r"[A-Z]", metric["verbose_name"]), f"{path}: {metric['metric_name']}"
        assert all(column["description"] for column in dataset["columns"] if not column["expression"]), path
    for path, chart in under(files, "charts").items():
        assert re.match(r"[A-Z]", chart["slice_name"]), path
        assert chart["viz_type"] != "big_number_total" or chart["params"]["subtitle"], path


def test_the_same_specs_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        Bundle().write(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"mailhouse"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the specs that a test may spoil."""
    for path in FOLDER.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("rfm.yaml", "metric: customers,", "metric: custmers,", "Customers: view rfm_grid has no metric custmers"),
        ("rfm.yaml", "view: rfm_grid", "view: rfm_gird", "Customer group: view rfm_gird has no column"),
        ("rfm.yaml", "across: recency_score", "across: recency", "view rfm_grid has no column recency; it has"),
        ("rfm.yaml", "kind: share", "kind: cake", "rfm.yaml: rows.1"),
        ("rfm.yaml", "width: 3, title: Customers", "width: 9, title: Customers", "rfm.yaml: row 1 is 18 twelfths wide"),
        ("rfm.yaml", "title: Champions,", "title: Customers,", "rfm.yaml: two charts are called 'Customers'"),
        ("views.yaml", "rfm_grid:", "rfm_gird:", "views.yaml: there is no model rfm_gird"),
        ("views.yaml", "sum: customers_count", "sum: customers", "views.yaml: view rfm_grid has no column customers"),
        ("views.yaml", "revenue_sum: {title: Revenue,", "revenue: {title: Revenue,", "would hide"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_named(folder: Path, file: str, old: str, new: str, said: str) -> None:
    path = folder / file
    text = path.read_text()
    assert old in text
    start = text.index("rfm_grid:") if file == "views.yaml" and "rfm" not in old else 0
    path.write_text(text[:start] + text[start:].replace(old, new, 1))
    with pytest.raises(SpecError) as error:
        Bundle(folder).files()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_writes_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                str(tmp_path / "x.zip"),
                "--uri",
                "clickhousedb://reader:XXXXXXXXXX@warehouse:8443/bi?secure=true",
            ]
        )
        == 0
    )
    assert "6 dashboards" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert b"@warehouse:8443" in archive.read("mailhouse/databases/Mailhouse.yaml")
