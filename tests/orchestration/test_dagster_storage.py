"""Dagster's event log on kept connections: the stock storage reads what it wrote, and several processes share it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqliteEventLogStorage

from orchestration.lib.dagster_storage import _KEPT
from warehouse.settings import PROJECT_ROOT

RUN = """
import sys
import dagster as dg

@dg.asset
def thing():
    return dg.MaterializeResult(metadata={"worker": sys.argv[1]})

with dg.DagsterInstance.get() as instance:
    for _ in range(5):
        assert dg.materialize([thing], instance=instance).success
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def test_processes_side_by_side_lose_no_event_and_the_stock_storage_reads_them(home: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        instance.get_runs(limit=1)
    workers = [
        subprocess.Popen([sys.executable, "-c", RUN, str(number)], cwd=PROJECT_ROOT, stderr=subprocess.PIPE)
        for number in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_run_ids()
        records = instance.fetch_materializations(dg.AssetKey("thing"), limit=100).records
    assert len(runs) == len(records) == 10
    assert {record.asset_materialization.metadata["worker"].value for record in records} == {"0", "1"}
    stock = SqliteEventLogStorage(str(home / "history" / "runs"))
    for run in runs:
        kinds = [entry.dagster_event_type for entry in stock.get_logs_for_run(run)]
        assert kinds.count(dg.DagsterEventType.RUN_SUCCESS) == 1
        assert kinds.count(dg.DagsterEventType.ASSET_MATERIALIZATION) == 1


@pytest.mark.slow
def test_a_process_that_lives_long_keeps_only_so_many_databases_open(home: Path) -> None:
    @dg.asset
    def thing() -> None: ...

    with dg.DagsterInstance.get() as instance:
        for _ in range(_KEPT + 4):
            dg.materialize([thing], instance=instance)
        assert len(instance.event_log_storage._engines) <= _KEPT  # pyright: ignore
        assert len(instance.fetch_materializations(dg.AssetKey("thing"), limit=100).records) == _KEPT + 4
    open_files = [link.resolve().name for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert not [name for name in open_files if str(home) in name]
