"""The dashboards in a real Superset: imported, every chart asked and looked at, as a person would."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sample_shop import SampleShop
from superset_server import NotInstalledError, Superset, install, running

from dashboards.build import Bundle
from orchestration.lib.dbt_runs import invoke
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

pytestmark = [pytest.mark.superset, pytest.mark.slow, pytest.mark.timeout(2_400)]

READER, READER_PASSWORD = "superset", "only-reads"


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def build(selection: str, settings: MailhouseSettings) -> None:
    """Build models and the seeds they read; no tests."""
    invoke(["build", "--select", selection, "--exclude-resource-type", "test", "unit_test"], settings)


@pytest.fixture(scope="module")
def superset_python() -> Path:
    """Superset's Python."""
    try:
        return install()
    except NotInstalledError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shop(superset_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailhouseSettings]:
    """An engine with a year of a shop in it, built three times as it would be on three days, and a reader."""
    [port] = free_ports(1)
    settings = MailhouseSettings.model_construct(
        home=tmp_path_factory.mktemp("shop"),
        warehouse_port=port,
        warehouse_readers={READER: SecretStr(READER_PASSWORD)},
    )
    with launcher.start(settings), Warehouse.connect(settings, comment="test") as warehouse:
        migrate(warehouse)
        sample = SampleShop(warehouse, datetime.now(UTC))
        sample.load_people()
        build("+int_contacts__identified", settings)
        known = warehouse.frame(
            "select identifier, contact_id from intermediate.int_contacts__identified where kind = 'email'"
        )
        sample.load_mail(dict(known.rows()))
        for days in (21, 7, 0):
            then = settings.model_copy(update={"clock_offset": -timedelta(days=days).total_seconds()})
            build("+path:models/bi", then)
        yield settings


@pytest.fixture(scope="module")
def bundle(shop: MailhouseSettings) -> Bundle:
    """The dashboards of this repository, pointed at the shop."""
    return Bundle(uri=f"clickhousedb://{READER}:XXXXXXXXXX@127.0.0.1:{shop.warehouse_port}/bi")


@pytest.fixture(scope="module")
def superset(
    superset_python: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Superset]:
    """A Superset into which the bundle has been imported, as its 'Import dashboards' does."""
    folder = tmp_path_factory.mktemp("superset")
    bundle.write(folder / "bundle.zip")
    [port] = free_ports(1)
    with running(superset_python, folder, port) as server:
        server.import_bundle(folder / "bundle.zip", password=READER_PASSWORD)
        yield server


def test_everything_is_there(superset: Superset, bundle: Bundle) -> None:
    assert {one["slug"] for one in superset.all("dashboard")} == {
        f"mailhouse-{name.replace('_', '-')}" for name in bundle.dashboards
    }
    datasets = {one["table_name"]: one for one in superset.all("dataset")}
    assert set(datasets) == set().union(*bundle.reads().values())
    assert {one["schema"] for one in datasets.values()} == {"bi"}
    charts = [path for path in bundle.files() if path.startswith("charts/")]
    assert len(superset.all("chart")) == len(charts) >= 45


def test_every_charts_query_has_rows(superset: Superset) -> None:
    empty = []
    for chart in superset.all("chart"):
        answer = superset.api.get(f"/api/v1/chart/{chart['id']}/data/", params={"force": "true"})
        assert answer.status_code == 200, f"{chart['slice_name']}: {answer.text}"
        result = answer.json()["result"][0]
        assert result["status"] == "success", chart["slice_name"]
        values = [value for row in result["data"] for value in row.values() if value is not None]
        if not result["rowcount"] or not values:
            empty.append(chart["slice_name"])
    assert empty == []


def test_a_browser_shows_every_chart(superset: Superset, bundle: Bundle, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium to look with; try: apt-get install chromium")
    slugs = [f"mailhouse-{name.replace('_', '-')}" for name in bundle.dashboards]
    seen = superset.look(chromium, slugs, tmp_path)
    for name, slug in zip(bundle.dashboards, slugs, strict=True):
        assert seen[slug]["errors"] == [], slug
        answers = seen[slug]["answers"]
        assert {one["status"] for one in answers} == {200}, answers
        charts = sum(path.startswith(f"charts/{name}_") for path in bundle.files())
        # each chart asked once, and each filter for its choices
        assert len(answers) >= charts, slug
        assert all(one["rows"] > 0 for one in answers), answers
        assert (tmp_path / f"{slug}.png").stat().st_size > 30_000, slug


def test_a_new_bundle_updates_what_was_imported(superset: Superset, bundle: Bundle, tmp_path: Path) -> None:
    charts = len(superset.all("chart"))
    files = bundle.files(type_="assets")
    changed = next(
        path for path, text in files.items() if path.startswith("charts/") and "slice_name: Sent" in text
    )
    bundle.write(
        tmp_path / "assets.zip",
        type_="assets",
        replace={changed: files[changed].replace("slice_name: Sent", "slice_name: Messages that went out")},
    )
    superset.import_bundle(tmp_path / "assets.zip", password=READER_PASSWORD, kind="assets")
    names = [one["slice_name"] for one in superset.all("chart")]
    assert "Messages that went out" in names
    assert len(names) == charts


def test_superset_can_change_nothing(superset: Superset) -> None:
    [database] = superset.all("database")
    for sql in ("create table bi.mine (a Int32) engine = Memory", "drop view bi.rfm_grid"):
        answer = superset.api.post(
            "/api/v1/sqllab/execute/", json={"database_id": database["id"], "sql": sql, "schema": "bi"}
        )
        assert answer.status_code >= 400, sql
    sql = {"database_id": database["id"], "sql": "select count() from bi.rfm_grid", "schema": "bi"}
    answer = superset.api.post("/api/v1/sqllab/execute/", json=sql)
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.text)["data"]
