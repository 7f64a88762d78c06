"""The embedded server as a process: start, refusals to start, durability under kill -9, bounded stop."""

# ruff: noqa: E501 - statements are easier read unbroken

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.embedded.process import default_memory_bytes, is_locked, read_info
from warehouse.errors import MailhouseError, WarehouseUnavailable
from warehouse.settings import PROJECT_ROOT, MailhouseSettings


def home_settings(home: Path, **values: object) -> MailhouseSettings:
    """Settings of a home with a port of its own."""
    port = free_port()
    return MailhouseSettings(home=home, warehouse_port=port, **values)  # pyright: ignore[reportArgumentType]


def ask(settings: MailhouseSettings, sql: str | bytes, **options: float) -> str:
    """One query, its text; raises on an error status."""
    response = httpx.post(settings.warehouse.url, content=sql, timeout=options.get("timeout", 30))
    response.raise_for_status()
    return response.text.strip()


def run_server(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The server's command, which is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "warehouse.embedded", *arguments],
        cwd=PROJECT_ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def is_alive(pid: int) -> bool:
    """Whether a thread of a process runs: the first may be a zombie while others still hold files open."""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            if thread.read_text().rpartition(") ")[2][0] not in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Whether a process ends in time."""
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def test_every_acknowledged_insert_survives_kill_9(tmp_path: Path) -> None:
    settings = home_settings(tmp_path)
    acknowledged: set[int] = set()
    attempted: set[int] = set()
    numbers = iter(range(1_000_000))
    lock = threading.Lock()
    rows = 500

    def insert_until(stop: threading.Event) -> None:
        with httpx.Client(base_url=settings.warehouse.url, timeout=10) as client:
            while not stop.is_set():
                with lock:
                    batch = next(numbers)
                    attempted.add(batch)
                body = b"insert into d.batches format TSV\n" + b"".join(
                    b"%d\t%d\n" % (batch, n) for n in range(rows)
                )
                try:
                    response = client.post("/", content=body)
                except httpx.HTTPError:
                    return  # the server is dead: this batch was not acknowledged
                if response.status_code == 200:
                    acknowledged.add(batch)

    for round_number in range(4):
        server = launcher.start(settings)
        if round_number == 0:
            ask(settings, "create database d")
            ask(settings, "create table d.batches (batch Int64, n Int32) engine = MergeTree order by batch")
            ask(settings, "create table kept (a Int8) engine = MergeTree order by a")
        stop = threading.Event()
        threads = [threading.Thread(target=insert_until, args=(stop,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        before = len(acknowledged)
        while len(acknowledged) < before + 12:
            time.sleep(0.005)
        time.sleep(0.017 * round_number)
        os.kill(server.pid, signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
        server.stop()

    with launcher.start(settings):
        found = dict(
            tuple(map(int, line.split("\t")))
            for line in ask(settings, "select batch, count() from d.batches group by 1").splitlines()
        )
        torn = {batch: count for batch, count in found.items() if count != rows}
        assert ask(settings, "select count() from kept") == "0"
    assert len(acknowledged) >= 48
    assert acknowledged <= set(found), "acknowledged batches are lost"
    assert set(found) <= attempted
    assert torn == {}


def test_stopping_is_bounded_and_ends_running_queries(tmp_path: Path) -> None:
    settings = home_settings(tmp_path)
    server = launcher.start(settings)
    answers: list[str] = []

    def slow() -> None:
        # connection broken, or an error answer: either is an answer in time
        with contextlib.suppress(httpx.HTTPError):
            answers.append(
                httpx.post(
                    settings.warehouse.url,
                    content="select sleepEachRow(1) from numbers(600) settings max_block_size = 1",
                    timeout=60,
                ).text
            )

    threads = [threading.Thread(target=slow) for _ in range(3)]
    for thread in threads:
        thread.start()
    while (
        ask(
            settings,
            "select count() from system.processes where query like '%sleepEach%' and query not like '%processes%'",
        )
        != "3"
    ):
        time.sleep(0.05)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 15
    for thread in threads:
        thread.join(timeout=5)
    assert server.has_ended and not is_locked(launcher.data_path(settings))
    log = (tmp_path / "logs/warehouse.log").read_text()
    assert "Traceback" not in log and log.strip().endswith("INFO stopped")


def test_an_idle_server_stops_at_once_and_keeps_its_tables(tmp_path: Path) -> None:
    settings = home_settings(tmp_path)
    with launcher.start(settings) as server:
        ask(settings, "create table default.t (a Int8) engine = MergeTree order by a")
        ask(settings, "insert into t values (1), (2)")
        # a connection kept alive must not hold it up
        idle = httpx.Client(base_url=settings.warehouse.url)
        idle.get("/ping")
        started = time.monotonic()
        os.kill(server.pid, signal.SIGINT)
        assert wait_until_gone(server.pid, 5)
        assert time.monotonic() - started < 3
        idle.close()
    for _ in range(2):  # the database `default` is attached anew at each start
        with launcher.start(settings):
            assert ask(settings, "select sum(a) from t") == "3"
    assert read_info(launcher.data_path(settings)) is None


def test_a_server_that_runs_is_used_again(tmp_path: Path) -> None:
    settings = home_settings(tmp_path)
    assert not launcher.is_running(settings)
    with launcher.start(settings) as first:
        assert launcher.is_running(settings)
        with launcher.start(settings) as second:
            assert (second.pid, second.is_ours) == (first.pid, False)
        assert ask(settings, "select 1") == "1"

        elsewhere = settings.model_copy(update={"warehouse_port": settings.warehouse_port + 1})
        with pytest.raises(
            WarehouseUnavailable, match=f"runs already, on port {settings.warehouse_port}"
        ) as caught:
            launcher.start(elsewhere)
        assert f"MAILHOUSE_WAREHOUSE_PORT={settings.warehouse_port}" in caught.value.fix

        # a second process on the same directory, by hand
        ended = run_server("--path", str(launcher.data_path(settings)), "--port", "0")
        assert ended.returncode == 2
        assert f"in use by an embedded warehouse that runs already (process {first.pid}, port" in ended.stderr
        assert len(ended.stderr.splitlines()) == 2 and "Traceback" not in ended.stderr
        assert ask(settings, "select 1") == "1"
    assert not launcher.is_running(settings)


def test_a_taken_port_is_said_in_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = MailhouseSettings(home=tmp_path, warehouse_port=other.getsockname()[1])
        with pytest.raises(WarehouseUnavailable) as caught:
            launcher.start(settings)
    assert (
        caught.value.message
        == f"Port {settings.warehouse_port} of 127.0.0.1, wanted for the embedded warehouse, is taken by another program."
    )
    assert "MAILHOUSE_WAREHOUSE_PORT" in caught.value.fix


def test_refusals_to_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cases = [
        (["--path", str(tmp_path / "a"), "--host", "0.0.0.0"], "listens on 127.0.0.1 only, not on 0.0.0.0"),
        (["--path", str(tmp_path / "file")], "cannot be written: "),
        (["--path", "/proc/no"], "cannot be written: "),
    ]
    for arguments, message in cases:
        ended = run_server(*arguments, "--port", "0")
        assert (ended.returncode, message in ended.stderr) == (2, True), ended.stderr
        assert "  Fix: " in ended.stderr and "Traceback" not in ended.stderr
    ended = run_server("--path", str(tmp_path / "b"), env={"MAILHOUSE_WAREHOUSE_PORT": "many"})
    assert (ended.returncode, "MAILHOUSE_WAREHOUSE_PORT" in ended.stderr) == (2, True)
    with pytest.raises(MailhouseError, match="MAILHOUSE_WAREHOUSE_URL is set"):
        launcher.start(MailhouseSettings(home=tmp_path, warehouse_url=SecretStr("http://elsewhere:8123")))


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    settings = home_settings(tmp_path)
    script = (
        "import sys, time; from pathlib import Path\n"
        "from warehouse.embedded import launcher; from warehouse.settings import MailhouseSettings\n"
        f"server = launcher.start(MailhouseSettings(home=Path({str(tmp_path)!r}), warehouse_port={settings.warehouse_port}))\n"
        "print(server.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid) and ask(settings, "select 1") == "1"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until_gone(pid, 10)
    assert not is_locked(launcher.data_path(settings))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 MB; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(settings: MailhouseSettings) -> tuple[int, httpx.Response]:
    """Insert until refused: rows acknowledged, and the refusal."""
    url = settings.warehouse.url
    ask(
        settings, "create table if not exists full (a String codec(NONE)) engine = MergeTree order by tuple()"
    )
    stored = int(ask(settings, "select count() from full"))
    for _ in range(60):
        body = b"insert into full format TSV\n" + b"".join(
            os.urandom(500).hex().encode() + b"\n" for _ in range(4000)
        )
        response = httpx.post(url, content=body, timeout=60)
        if response.status_code != 200:
            return stored, response
        stored += 4000
    raise AssertionError("the disk never filled up")


def test_a_full_disk_is_an_error_and_loses_nothing(small_disk: Path) -> None:
    free_mb = "0"  # to the last byte: nothing of ours steps in before
    settings = home_settings(small_disk)
    with launcher.start(settings, options={"free-disk-mb": free_mb}, log_path=small_disk.parent / "log"):
        stored, refusal = fill(settings)
        assert refusal.text.startswith(
            f"Code: {refusal.headers['x-clickhouse-exception-code']}. DB::Exception: "
        )
        assert "space" in refusal.text.lower()
        assert stored > 0
        assert int(ask(settings, "select count() from full")) == stored
    with launcher.start(settings, options={"free-disk-mb": free_mb}, log_path=small_disk.parent / "log"):
        assert int(ask(settings, "select count() from full")) == stored


def test_space_that_must_stay_free_is_kept(tmp_path: Path) -> None:
    """The same without a small disk: more must stay free than any disk has."""
    settings = home_settings(tmp_path)
    with launcher.start(settings, options={"free-disk-mb": str(1 << 30)}) as server:
        ask(settings, "create table t (a Int8) engine = MergeTree order by a")
        response = httpx.post(settings.warehouse.url, content="insert into t values (1)")
        assert (response.headers["x-clickhouse-exception-code"], "NOT_ENOUGH_SPACE" in response.text) == (
            "243",
            True,
        )
        with Warehouse.connect(settings) as warehouse:
            assert warehouse.value("select count() from t") == 0
        assert "inserts will be refused" in (tmp_path / "logs/warehouse.log").read_text()
        assert server.pid


def test_the_memory_limit_is_a_part_of_the_machine() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (512 << 20) <= default_memory_bytes() <= max(total, 512 << 20)


def test_a_small_limit_leaves_both_cores_to_an_insert(tmp_path: Path) -> None:
    settings = home_settings(tmp_path)
    with launcher.start(settings, options={"memory-mb": "1500"}):
        ask(settings, "create table numbers_kept (n UInt64) engine = MergeTree order by n")
        steps = ask(
            settings, "explain pipeline insert into numbers_kept select number from numbers_mt(10000000)"
        )
        assert steps.count("MergeTreeSink") == min(2, os.cpu_count() or 1), steps


def test_it_starts_quickly_and_small(tmp_path: Path) -> None:
    settings = home_settings(tmp_path)
    started = time.monotonic()
    with launcher.start(settings) as server:
        assert time.monotonic() - started < 10
        resident = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * 4096
        assert resident < 330 << 20
