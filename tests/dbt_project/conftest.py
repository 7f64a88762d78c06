"""The dbt project, parsed once and run in this process against the shared engine, in databases of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import PREFIX, Models, dbt

from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings


@pytest.fixture(scope="session")
def dbt_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of dbt's artefacts."""
    return tmp_path_factory.mktemp("dbt")


@pytest.fixture(scope="session")
def parse_events() -> list[Any]:
    """What dbt said while it parsed."""
    return []


@pytest.fixture(scope="session")
def manifest(dbt_target: Path, parse_events: list[Any]) -> Any:
    """The project, parsed."""
    variables = json.dumps({"database_prefix": PREFIX})
    result = dbt(
        ["parse", "--vars", variables, "--show-all-deprecations"], dbt_target, callbacks=[parse_events.append]
    )
    assert result.success, result.exception
    return result.result


@pytest.fixture(scope="module")
def models(warehouse_server: MailhouseSettings, manifest: Any, dbt_target: Path) -> Iterator[Models]:
    """The project on empty raw tables."""
    with Warehouse.connect(warehouse_server, comment="test") as warehouse:
        project = Models(warehouse, warehouse_server, manifest, dbt_target)
        project.clear()
        yield project
        project.clear()
