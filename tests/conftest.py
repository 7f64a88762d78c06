"""Fixtures that every room's tests share: a real warehouse on a free port, and settings that point at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

# a busy machine is slow, and that is no finding
hypothesis_settings.register_profile(
    "mailhouse",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
hypothesis_settings.load_profile("mailhouse")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process, and all tests of the code location in one: it takes long to make."""
    for item in items:
        fixtures: list[str] = getattr(item, "fixturenames", [])
        group = "location" if "location" in fixtures else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    return launcher.free_port()


@pytest.fixture(scope="session")
def warehouse_server(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> Iterator[MailhouseSettings]:
    """An embedded engine with an empty data folder; yields the settings that reach it."""
    settings = MailhouseSettings(home=tmp_path_factory.mktemp("mailhouse"), warehouse_port=free_port)
    with launcher.start(settings):
        yield settings


@pytest.fixture
def settings(warehouse_server: MailhouseSettings, tmp_path: Path) -> MailhouseSettings:
    """Settings on the shared engine, with a home of the test's own."""
    return warehouse_server.model_copy(update={"home": tmp_path})


@pytest.fixture
def warehouse(warehouse_server: MailhouseSettings) -> Iterator[Warehouse]:
    """The shared engine with empty raw tables."""
    with Warehouse.connect(warehouse_server, comment="test") as connection:
        connection.execute("drop database if exists raw")
        migrate(connection)
        yield connection
