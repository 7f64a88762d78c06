"""The asset that deletes what has been kept long enough, run as Dagster runs it."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from orchestration.defs.retention.assets import retention
from warehouse.client import Warehouse
from warehouse.settings import PROJECT_ROOT, MailhouseSettings


@pytest.mark.slow
def test_the_asset_deletes_and_says_how_much(
    warehouse: Warehouse,
    warehouse_server: MailhouseSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAILHOUSE_CLOCK_OFFSET", "0")
    monkeypatch.setenv("MAILHOUSE_HOME", str(tmp_path))
    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(PROJECT_ROOT / "content"))
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_PORT", str(warehouse_server.warehouse_port))
    warehouse.execute(
        "insert into raw.quarantined_rows (source, object, file, line, reason, content, loaded_at) values"
        " ('s', 'o', 'f', 1, 'r', 'ann@example.com', now() - interval 91 day), ('s', 'o', 'f', 2, 'r', 'x', now())"
    )
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([retention], instance=instance)
    assert result.success
    [materialised] = result.asset_materializations_for_node("retention")
    assert materialised.metadata["rows"].value == 1
    assert materialised.metadata["rows of raw.quarantined_rows"].value == 1
    assert warehouse.value("select sum(line) from raw.quarantined_rows") == 2
    assert warehouse.value("select run_id from raw.retention_runs") == result.run_id
