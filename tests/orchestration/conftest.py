"""The code location on an engine of its own, with the demo's customers loaded, modelled and recommended to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from warehouse.embedded.launcher import free_port
from warehouse.schema import migrate
from warehouse.settings import PREFIX


@pytest.fixture(scope="session")
def location_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings as every process that `mailhouse up` starts has them."""
    port = free_port()
    values = {
        "HOME": str(tmp_path_factory.mktemp("location")),
        "WAREHOUSE_PORT": str(port),
        "CLOCK_OFFSET": repr((NOW - datetime.now(UTC)).total_seconds()),
        "PROVIDER": "maildir",
        "FROM_EMAIL": "shop@example.com",
        "COMPANY_NAME": "Shop",
        "POSTAL_ADDRESS": "1 Example Street",
    }
    return {PREFIX + name: value for name, value in values.items()}


@pytest.fixture(autouse=True)
def in_location(location_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are in the environment while a test of this folder runs, and only then."""
    for name, value in location_environment.items():
        monkeypatch.setenv(name, value)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """The environment for fixtures that outlive a test, while they are made."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def location_home(location_environment: dict[str, str]) -> Path:
    """The home of the location."""
    return Path(location_environment[PREFIX + "HOME"])


@pytest.fixture(scope="session")
def definitions(location_environment: dict[str, str]) -> dg.Definitions:
    """The code location as Dagster loads it."""
    with environment(location_environment):
        return load_definitions()


@pytest.fixture(scope="session")
def location(location_environment: dict[str, str], definitions: dg.Definitions) -> Iterator[Location]:
    """Everything loaded and built once, through the jobs."""
    with ExitStack() as stack:
        with environment(location_environment):
            settings = SenderSettings.load()
            write_inputs(settings.home / "inbox")
            stack.enter_context(launcher.start(settings))
            instance = stack.enter_context(dg.DagsterInstance.ephemeral())
            warehouse = stack.enter_context(Warehouse.connect(settings, comment="test"))
            migrate(warehouse)
            place = Location(definitions, instance, warehouse)
            for job in ("ingest", "build_models", "recommend"):
                place.run(job)
        yield place
