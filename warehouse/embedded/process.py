"""The server process from start to end: one owner per data directory, one port, a bounded shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warehouse.errors import MailhouseError

if TYPE_CHECKING:
    from warehouse.embedded.engine import Engine
    from warehouse.embedded.server import EmbeddedServer

log = logging.getLogger("warehouse.embedded")

HOST = "127.0.0.1"
_LOOPBACK = frozenset({"127.0.0.1", "localhost"})
_SMALLEST_LIMIT = 512 << 20
GRACE_SECONDS = 3.0
_CLOSE_SECONDS = 5.0


class ServerStartError(MailhouseError):
    """The server cannot start: port taken, directory locked or not writable."""


@dataclass(frozen=True)
class ServerConfig:
    """How to run the server.

    Attributes:
        path: the data directory.
        port: port on 127.0.0.1; 0 for any free one.
        workers: queries that run at once.
        most_waiting: requests under way beyond which new ones are refused with 503.
        memory_bytes: the most that all queries together may use.
        free_disk_bytes: inserts are refused with less free disk space than this.
        ends_with_stdin: shut down when standard input closes, that is, when the parent is gone.
    """

    path: Path
    port: int
    owner_password: str
    readers: Mapping[str, str]
    personal_readers: frozenset[str] = frozenset()
    workers: int = 16
    most_waiting: int = 200
    memory_bytes: int = 0
    free_disk_bytes: int = 64 << 20
    ends_with_stdin: bool = False

    def __repr__(self) -> str:
        return f"ServerConfig(path={self.path}, port={self.port})"


@dataclass(frozen=True)
class RunningInfo:
    """What a running server writes beside its data, for those who look for it."""

    pid: int
    port: int


def default_memory_bytes() -> int:
    """Three fifths of the machine's memory, or of the control group's if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(limit_file.read_text()))
    return max(int(total * 0.6), _SMALLEST_LIMIT)


def require_loopback(host: str) -> None:
    """Refuse to listen where other machines could reach.

    Raises:
        ServerStartError: the host is not the loopback interface.
    """
    if host not in _LOOPBACK:
        raise ServerStartError(
            f"The embedded warehouse listens on {HOST} only, not on {host}.",
            fix="Leave --host out. For access from elsewhere run a ClickHouse server and set MAILHOUSE_WAREHOUSE_URL.",
        )


class DirectoryLock:
    """Holds a data directory for this process; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own = path / "embedded"
        self._file: Any = None

    @property
    def info_file(self) -> Path:
        """Where the running server says its pid and port."""
        return self._own / "server.json"

    def take(self) -> None:
        """Take the directory, making it if need be.

        Raises:
            ServerStartError: it cannot be written, or another server has it.
        """
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            self._file = (self._own / "lock").open("a+")
        except OSError as error:
            raise _unwritable(self._path, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = read_info(self._path)
            who = f"process {other.pid}, port {other.port}" if other else "another process"
            raise ServerStartError(
                f"The data directory {self._path} is in use by an embedded warehouse that runs already ({who}).",
                fix=f"Use that one, or stop it first{f' (kill {other.pid})' if other else ''}.",
            ) from None

    def announce(self, info: RunningInfo) -> None:
        """Write down pid and port, whole or not at all."""
        draft = self.info_file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(info)))
        draft.replace(self.info_file)

    def forget(self) -> None:
        """Take the note away."""
        self.info_file.unlink(missing_ok=True)


def is_locked(path: Path) -> bool:
    """Whether a server holds this data directory."""
    try:
        with (path / "embedded" / "lock").open("a") as probe:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)


def read_info(path: Path) -> RunningInfo | None:
    """What the server of this directory wrote; None if there is nothing readable."""
    try:
        values = json.loads((path / "embedded" / "server.json").read_text())
        return RunningInfo(int(values["pid"]), int(values["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def listening_socket(port: int) -> socket.socket:
    """A socket that listens on the loopback interface.

    Raises:
        ServerStartError: the port is taken, or needs rights this process lacks.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = (
                f"Port {port} of {HOST}, wanted for the embedded warehouse, is taken by another program."
            )
        else:
            message = f"Port {port} of {HOST} cannot be used: {error.strerror}."
        raise ServerStartError(
            message, fix="Stop that program, or set MAILHOUSE_WAREHOUSE_PORT to a free port."
        ) from None
    listener.setblocking(False)
    return listener


def run(config: ServerConfig) -> None:
    """Serve until SIGTERM, SIGINT or the end of standard input (if asked); then end the process.

    Raises:
        MailhouseError: the server cannot start.
    """
    config = replace(config, path=config.path.resolve())  # the engine changes the working directory
    lock = DirectoryLock(config.path)
    lock.take()
    _require_writable(config.path, config.free_disk_bytes)
    listener = listening_socket(config.port)
    port = int(listener.getsockname()[1])

    # these load the engine, half a gigabyte of library: only once nothing stands against it
    from warehouse.embedded.access import Users
    from warehouse.embedded.engine import Engine
    from warehouse.embedded.server import EmbeddedServer

    engine = Engine(
        config.path,
        memory_bytes=config.memory_bytes or default_memory_bytes(),
        free_disk_bytes=config.free_disk_bytes,
    )
    users = Users(config.owner_password, config.readers, config.personal_readers)
    server = EmbeddedServer(engine, users, workers=config.workers, most_waiting=config.most_waiting)
    lock.announce(RunningInfo(os.getpid(), port))
    log.info("listening on http://%s:%d, data in %s, engine %s", HOST, port, config.path, engine.version)

    import uvloop

    uvloop.run(_serve(server, engine, listener, config))
    log.info("stopping")
    lock.forget()
    # an engine that will not close must not keep the process: everything acknowledged is on disk already
    guard = threading.Timer(_CLOSE_SECONDS, os._exit, [0])
    guard.daemon = True
    guard.start()
    server.close()
    engine.kill_all()
    engine.close()
    log.info("stopped")
    logging.shutdown()
    # not through the interpreter's end, which would wait for worker threads
    os._exit(0)


async def _serve(
    server: EmbeddedServer, engine: Engine, listener: socket.socket, config: ServerConfig
) -> None:
    import uvicorn

    class Uvicorn(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn's own raises the signal again afterwards, which would end the process before the engine closes
            yield

    http = Uvicorn(
        uvicorn.Config(
            server,
            http="httptools",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(GRACE_SECONDS) + 3,
        )
    )
    loop = asyncio.get_running_loop()
    is_stopping = asyncio.Event()

    def stop() -> None:
        if is_stopping.is_set():
            http.force_exit = True
        http.should_exit = True
        is_stopping.set()

    async def stop_queries() -> None:
        await is_stopping.wait()
        await asyncio.sleep(GRACE_SECONDS)
        while True:  # until the task is cancelled: a request may go from one statement to the next
            await loop.run_in_executor(None, engine.kill_all)
            await asyncio.sleep(0.2)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if config.ends_with_stdin:
        threading.Thread(target=_wait_for_end_of_stdin, args=(loop, stop), daemon=True).start()
    killer = asyncio.create_task(stop_queries())
    try:
        await http.serve(sockets=[listener])
    finally:
        killer.cancel()


def _wait_for_end_of_stdin(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            continue
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(stop)


def _require_writable(path: Path, free_bytes: int) -> None:
    probe = path / "embedded" / "probe"
    try:
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from None
    disk = os.statvfs(path)
    free = disk.f_bavail * disk.f_frsize
    if free < free_bytes:
        log.warning(
            "only %d MB are free at %s: inserts will be refused until there is more", free >> 20, path
        )


def _unwritable(path: Path, error: OSError) -> ServerStartError:
    if error.errno == errno.ENOSPC:
        return ServerStartError(
            f"The disk of {path} is full.",
            fix="Free some space, or set MAILHOUSE_HOME to a folder elsewhere.",
        )
    return ServerStartError(
        f"The data directory {path} cannot be written: {error.strerror}.",
        fix="Make it writable, or set MAILHOUSE_HOME to a folder that is.",
    )


class QuietAboutBrokenAnswers(logging.Filter):
    """Drops uvicorn's reports of connections that were broken off on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep everything else."""
        kind = record.exc_info[0] if record.exc_info else None
        is_ours = kind is not None and kind.__name__ == "BrokenAnswerError"
        return not is_ours and "without completing response" not in record.getMessage()


def configure_logging() -> None:
    """Log lines on standard error: time, level, message."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.setLevel(logging.WARNING)
    uvicorn_log.addFilter(QuietAboutBrokenAnswers())
