"""Start, watch and stop the processes that Mailhouse is made of on one machine.

Each child is tied to its parent: if the parent is killed, the kernel ends the child too, so that nothing is left
running that nobody watches.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestration.lib.dbt_runs import prepare_project
from warehouse.embedded.launcher import free_port
from warehouse.errors import MailhouseError
from warehouse.settings import PREFIX, PROJECT_ROOT, MailhouseSettings

# how many steps of a pool run at once where `dagster.yaml`'s default does not fit
POOL_LIMITS: Mapping[str, int] = {
    # campaigns share the provider's rate limit, and a long one must not hold up the others
    "sends": 4,
    # two builds at once would write the same tables side by side
    "dbt": 1,
}
_PR_SET_PDEATHSIG = 1


class ServiceError(MailhouseError):
    """A process did not start, or ended when it should not have."""


class Service:
    """One child process, its log file and its end.

    Args:
        name: what people call it.
        command: program and arguments; no shell.
        log: file that takes its output.
        environment: variables beside those of this process.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                list(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=PROJECT_ROOT,
                env={**os.environ, **(environment or {})},
                # a Ctrl-C at the terminal is for us; we stop the children in order
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def wait_until(self, is_ready: Callable[[], bool], *, seconds: float) -> None:
        """Wait until it answers.

        Raises:
            ServiceError: it ended, or did not answer in time; the message has the end of its log.
        """
        deadline = time.monotonic() + seconds
        while not is_ready():
            if self.has_ended or time.monotonic() > deadline:
                how = (
                    f"ended with code {self.process.returncode}"
                    if self.has_ended
                    else f"did not answer in {seconds:.0f} s"
                )
                raise ServiceError(
                    f"{self.name} {how}:\n{self.tail()}", fix=f"Read the whole log: {self.log}."
                )
            time.sleep(0.1)

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, *, seconds: float = 10) -> None:
        """Ask it to end, its own children with it; kill what does not."""
        if self.has_ended:
            return
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def require_free_port(port: int, setting: str, what: str) -> None:
    """Refuse to start on a port that something else holds.

    Raises:
        ServiceError: names the port, what wanted it, and the setting to change.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ServiceError(
                f"Port {port}, wanted for {what}, is taken by another program.",
                fix=f"Stop that program, or set {setting} to a free port.",
            ) from None


def answers(url: str) -> bool:
    """Whether an HTTP GET of a loopback URL gives a 2xx."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - a loopback URL of our own
            return 200 <= response.status < 300
    except (urllib.error.URLError, OSError, ValueError):
        return False


def settings_environment(settings: MailhouseSettings) -> dict[str, str]:
    """The settings as environment variables, so that child processes see the same ones."""
    values = {PREFIX + "HOME": str(settings.home), PREFIX + "CONTENT_DIR": str(settings.content_dir)}
    if settings.warehouse_url is None:
        values[PREFIX + "WAREHOUSE_PORT"] = str(settings.warehouse_port)
        if settings.warehouse_password is not None:
            values[PREFIX + "WAREHOUSE_PASSWORD"] = settings.warehouse_password.get_secret_value()
    values[PREFIX + "CLOCK_OFFSET"] = repr(settings.clock_offset)
    return values


class Dagster:
    """Dagster's processes on one machine: code server, daemon and, if wanted, the web UI.

    Args:
        settings: where data lives; Dagster's home is `home/dagster`.
        ui_port: port of the UI; None starts none.
    """

    def __init__(self, settings: MailhouseSettings, *, ui_port: int | None) -> None:
        self.settings = settings
        self.ui_port = ui_port
        self.services: list[Service] = []

    @property
    def home(self) -> Path:
        """Dagster's home folder."""
        return self.settings.home / "dagster"

    @property
    def environment(self) -> dict[str, str]:
        """Variables for anything that must meet this Dagster instance."""
        return {
            **settings_environment(self.settings),
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
        }

    def prepare(self) -> None:
        """Lay out Dagster's home and parse the dbt project, so that the processes find both."""
        self.home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT_ROOT / "dagster.yaml", self.home / "dagster.yaml")
        prepare_project(self.settings)
        # several processes would create the SQLite schema at once on a fresh home, and one of them would die
        self._create_schema()

    def start(self) -> None:
        """Start the processes and wait until each answers; `prepare` must have run.

        Raises:
            ServiceError: one did not start; those that did are stopped.
        """
        port = free_port()
        workspace = self.home / "workspace.yaml"
        server = {"host": "127.0.0.1", "port": port, "location_name": "mailhouse"}
        workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))  # JSON is YAML
        try:
            code = self._spawn("Dagster code server", "python", "-m", "orchestration.code_server", "-m",
                               "orchestration.definitions", "-h", "127.0.0.1", "-p", str(port),
                               "--location-name", "mailhouse")  # fmt: skip
            code.wait_until(lambda: _listens(port), seconds=90)
            self._spawn("Dagster daemon", "dagster-daemon", "run", "-w", str(workspace))
            if self.ui_port is not None:
                ui = self._spawn("Dagster UI", "dagster-webserver", "-h", "127.0.0.1", "-p", str(self.ui_port),
                                 "-w", str(workspace), "--log-level", "warning")  # fmt: skip
                ui.wait_until(lambda: answers(f"http://127.0.0.1:{self.ui_port}/server_info"), seconds=90)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the processes, last started first."""
        for service in reversed(self.services):
            service.stop()
        self.services.clear()

    def _spawn(self, name: str, program: str, *args: str) -> Service:
        log = self.settings.home / "logs" / f"{name.lower().replace(' ', '-')}.log"
        executable = Path(sys.executable).parent / program
        service = Service(name, [str(executable), *args], log=log, environment=self.environment)
        self.services.append(service)
        return service

    def _create_schema(self) -> None:
        from dagster import DagsterInstance

        # the event log finds its place by this variable, as it does in every other process
        os.environ["DAGSTER_HOME"] = str(self.home)
        with DagsterInstance.get() as instance:
            for pool, limit in POOL_LIMITS.items():
                # what somebody set in the UI stays
                if pool not in instance.event_log_storage.get_concurrency_keys():
                    instance.event_log_storage.set_concurrency_slots(pool, limit)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
