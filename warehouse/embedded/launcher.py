"""Starts the embedded server as a child process, or finds the one that runs already for the same home."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from warehouse.embedded.process import HOST, is_locked, read_info
from warehouse.errors import MailhouseError, WarehouseUnavailable
from warehouse.settings import PREFIX, MailhouseSettings

START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_PROJECT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port of this machine's loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class RunningServer:
    """An embedded server that answers. A context manager: leaving it stops the server if we started it.

    Attributes:
        settings: reach it.
        pid: its process.
        is_ours: we started it; `stop` leaves others alone.
    """

    def __init__(
        self, settings: MailhouseSettings, pid: int, process: subprocess.Popen[bytes] | None
    ) -> None:
        self.settings = settings
        self.pid = pid
        self._process = process

    @property
    def is_ours(self) -> bool:
        """Whether this process started it."""
        return self._process is not None

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        if self._process is not None:
            return self._process.poll() is not None
        return not is_locked(data_path(self.settings))

    def stop(self) -> None:
        """Stop it within seconds, running queries with it; a server that somebody else started goes on."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            if self._process.stdin is not None:
                self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def data_path(settings: MailhouseSettings) -> Path:
    """The engine's data directory of a home."""
    return settings.home / "warehouse"


def is_running(settings: MailhouseSettings) -> bool:
    """Whether an embedded server of this home answers."""
    path = data_path(settings)
    info = read_info(path)
    return info is not None and is_locked(path) and _answers(info.port)


def start(
    settings: MailhouseSettings,
    *,
    log_path: Path | None = None,
    ends_with_parent: bool = True,
    seconds: float = START_SECONDS,
    options: Mapping[str, str] | None = None,
) -> RunningServer:
    """Start the embedded server of a home and wait until it answers; if it runs already, use that one.

    Args:
        settings: home, port, password and readers.
        log_path: takes the server's output; `home/logs/warehouse.log` if None.
        ends_with_parent: the server stops when this process ends, even by kill -9.
        seconds: how long to wait for the first answer.
        options: further command-line options, without `--`.

    Raises:
        WarehouseUnavailable: it did not start; says why, as the server said it.
        MailhouseError: the settings name a server elsewhere, or the running one listens on another port.
    """
    if not settings.is_embedded:
        raise MailhouseError(
            f"{PREFIX}WAREHOUSE_URL is set, so there is no embedded warehouse to start.",
            fix=f"Unset {PREFIX}WAREHOUSE_URL to use the embedded one.",
        )
    path = data_path(settings)
    running = _reused(settings, path, seconds)
    if running is not None:
        return running
    log_path = log_path or settings.home / "logs" / "warehouse.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "warehouse.embedded",
        "--path",
        str(path),
        "--port",
        str(settings.warehouse_port),
    ]
    for name, value in (options or {}).items():
        command += [f"--{name}", value]
    if ends_with_parent:
        command.append("--ends-with-stdin")
    with log_path.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if ends_with_parent else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=_PROJECT,
            env={**os.environ, **_environment(settings)},
            # a Ctrl-C at the terminal is for the parent, which stops us in order
            start_new_session=True,
        )
    server = RunningServer(settings, process.pid, process)
    try:
        deadline = time.monotonic() + seconds
        while not (_own(path, process.pid) and _answers(settings.warehouse_port)):
            if process.poll() is not None:
                raise _failed(log_path, log_start, f"ended with code {process.returncode}")
            if time.monotonic() > deadline:
                raise _failed(log_path, log_start, f"did not answer within {seconds:.0f} seconds")
            time.sleep(0.02)
    except BaseException:
        server.stop()
        raise
    return server


def _reused(settings: MailhouseSettings, path: Path, seconds: float) -> RunningServer | None:
    """The server that has this directory, once it answers; None if nobody has it."""
    deadline = time.monotonic() + seconds
    while is_locked(path):
        info = read_info(path)
        if info is not None and _answers(info.port):
            if info.port != settings.warehouse_port:
                raise WarehouseUnavailable(
                    f"The embedded warehouse of {settings.home} runs already, on port {info.port} "
                    f"and not on {settings.warehouse_port} (process {info.pid}).",
                    fix=f"Set {PREFIX}WAREHOUSE_PORT={info.port}, or stop it with `kill {info.pid}`.",
                )
            return RunningServer(settings, info.pid, None)
        if time.monotonic() > deadline:
            raise WarehouseUnavailable(
                f"Another process holds {path} and does not answer.",
                fix=f"Stop it{f' with `kill {info.pid}`' if info else ''}, or set {PREFIX}HOME to another folder.",
            )
        time.sleep(0.05)  # it starts or stops just now
    return None


def _environment(settings: MailhouseSettings) -> dict[str, str]:
    """What the child must know and may not see on a command line."""
    password = settings.warehouse_password
    readers = {name: value.get_secret_value() for name, value in settings.warehouse_readers.items()}
    return {
        PREFIX + "WAREHOUSE_PASSWORD": password.get_secret_value() if password else "",
        PREFIX + "WAREHOUSE_READERS": json.dumps(readers),
        PREFIX + "WAREHOUSE_PERSONAL_READERS": settings.warehouse_personal_readers,
    }


def _own(path: Path, pid: int) -> bool:
    info = read_info(path)
    return info is not None and info.pid == pid


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/ping", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _failed(log_path: Path, log_start: int, how: str) -> WarehouseUnavailable:
    """The child's own sentence and fix if it printed them, else the end of its log."""
    with log_path.open("rb") as log:
        log.seek(log_start)
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
    for place, line in enumerate(lines):
        if line.startswith("error: "):
            fix = lines[place + 1].strip().removeprefix("Fix: ") if place + 1 < len(lines) else ""
            return WarehouseUnavailable(line.removeprefix("error: "), fix=fix)
    tail = "\n".join(lines[-12:])
    return WarehouseUnavailable(
        f"The embedded warehouse {how}.\n{tail}".rstrip(), fix=f"Read the whole log: {log_path}."
    )
