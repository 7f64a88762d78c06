"""The code location on an engine of its own, with the demo's customers loaded, modelled and recommended to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from location import NOW, Location

from demo.data import write_inputs
from orchestration.definitions import defs as load_definitions
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.schema import migrate


@pytest.fixture(scope="session")
def location_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose settings are in the environment, as for every process that `mailhouse up` starts."""
    home = tmp_path_factory.mktemp("location")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "HOME": str(home),
            "WAREHOUSE_PORT": str(port),
            "CLOCK_OFFSET": repr((NOW - datetime.now(UTC)).total_seconds()),
            "PROVIDER": "maildir",
            "FROM_EMAIL": "shop@example.com",
            "COMPANY_NAME": "Shop",
            "POSTAL_ADDRESS": "1 Example Street",
        }.items():
            patch.setenv(f"MAILHOUSE_{name}", value)
        yield home


@pytest.fixture(scope="session")
def definitions(location_home: Path) -> dg.Definitions:
    """The code location as Dagster loads it."""
    return load_definitions()


@pytest.fixture(scope="session")
def location(location_home: Path, definitions: dg.Definitions) -> Iterator[Location]:
    """Everything loaded and built once, through the jobs."""
    settings = SenderSettings.load()
    write_inputs(location_home / "inbox")
    with (
        launcher.start(settings),
        dg.DagsterInstance.ephemeral() as instance,
        Warehouse.connect(settings, comment="test") as warehouse,
    ):
        migrate(warehouse)
        place = Location(definitions, instance, warehouse)
        for job in ("ingest", "build_models", "recommend"):
            place.run(job)
        yield place
