"""Fixtures that every room's tests share: a real warehouse on a free port, and settings that point at it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from warehouse.client import Warehouse
from warehouse.errors import WarehouseUnavailable
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings


@pytest.fixture(scope="session")
def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def warehouse_server(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> Iterator[MailhouseSettings]:
    """An embedded engine with an empty data folder; yields the settings that reach it."""
    home = tmp_path_factory.mktemp("mailhouse")
    log = (home / "warehouse.log").open("wb")
    command = [sys.executable, "-m", "warehouse.embedded", "--path", str(home / "warehouse"), "--port", str(free_port)]
    prototype = Path(__file__).parents[2] / "shared/prototypes/embedded_server.py"
    if not (Path(__file__).parents[1] / "warehouse/embedded/__main__.py").exists():
        command = [sys.executable, str(prototype), "--path", str(home / "data"), "--port", str(free_port)]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    settings = MailhouseSettings(home=home, warehouse_port=free_port)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                Warehouse.connect(settings).value("select 1")
                break
            except WarehouseUnavailable:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the embedded warehouse did not start:\n{(home / 'warehouse.log').read_text()}")
                time.sleep(0.1)
        yield settings
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


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
