"""Fixtures that several rooms' tests share: a real warehouse on a free port and settings that point at it, PostgreSQL.

Servers live in folders of their own, on loopback, and are gone afterwards.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from empty_raw import empty_raw
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.settings import MailhouseSettings

# A busy machine is slow, and that is no finding. The suite tries the same examples each time, so that a change is
# judged by what it changes; `make explore` looks for new ones.
hypothesis_settings.register_profile(
    "mailhouse",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
hypothesis_settings.register_profile(
    "explore", parent=hypothesis_settings.get_profile("mailhouse"), derandomize=False, print_blob=True
)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "mailhouse"))


class _ByFile(LoadScopeScheduling):
    """A file's tests in one process, and all tests of the code location in one: their fixtures take long to make.

    pytest-xdist 3.8 has marks for this, and pytest 9.2 does not let it write them into a test's name any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "location" if _uses_location(self.config.rootpath / file) else file


@cache
def _uses_location(path: Path) -> bool:
    return "location: Location" in path.read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _ByFile:
    """Which process takes which test."""
    return _ByFile(config, log)


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
        empty_raw(connection)
        yield connection


_names = itertools.count(1)


def _program(name: str, *folders: str) -> str:
    found = shutil.which(name)
    for folder in folders:
        for path in sorted(Path("/").glob(f"{folder.lstrip('/')}/{name}"), reverse=True):
            found = found or str(path)
    return found or ""


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of the module's own that keeps nothing; yields its URL."""
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("there is no Redis here; `apt-get install -y redis-server` brings it")
    port, folder = launcher.free_port(), tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [
            program,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(folder),
        ],
        stdout=subprocess.DEVNULL,
    )
    import redis

    client = redis.Redis(port=port)
    for _ in range(200):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL cluster of our own; yields the URL of its maintenance database."""
    initdb = _program("initdb", "/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql*/bin")
    if not initdb:
        pytest.skip("there is no PostgreSQL here; `apt-get install -y postgresql` brings it")
    binaries = Path(initdb).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="mailhouse-pg-"))
    owner: dict[str, object] = {"cwd": folder}
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root; its package makes a user for it
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        owner |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    port = launcher.free_port()
    process = None
    try:
        subprocess.run(
            [binaries / "initdb", "-D", folder / "data", "-U", "mailhouse", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, **owner,  # pyright: ignore[reportArgumentType, reportCallIssue]
        )  # fmt: skip
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off",
                   "log_min_messages": "fatal"}  # fmt: skip
        process = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", *(f"--{key}={value}" for key, value in options.items())],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **owner,  # pyright: ignore
        )  # fmt: skip
        for _ in range(200):
            ready = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            if subprocess.run(ready, check=False).returncode == 0:
                break
            assert process.poll() is None, "PostgreSQL did not start"
            time.sleep(0.1)
        yield f"postgresql+psycopg://mailhouse@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def new_postgres_ledger(postgres_server: str) -> Callable[[], str]:
    """Makes empty databases; each call returns the URL of another."""
    import psycopg

    def make() -> str:
        name = f"ledger_{next(_names)}"
        with psycopg.connect(postgres_server.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'create database "{name}"'.encode())
        return postgres_server.removesuffix("/postgres") + f"/{name}"

    return make
