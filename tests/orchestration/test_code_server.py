"""The code server's fork server: one thread before it forks, and Dagster's server does use it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from warehouse.settings import PROJECT_ROOT

THREADS = """
import importlib, os
from orchestration.code_server import PRELOADED
for name in PRELOADED:
    importlib.import_module(name)
print(len(os.listdir("/proc/self/task")))
"""

START = """
import multiprocessing, sys
import dagster._cli
from dagster._grpc import server

def started():
    print(*sys.argv)
    print(server.multiprocessing.get_context("spawn").get_start_method())
    run = server.multiprocessing.get_context("spawn").Process(target=print, args=("run",))
    run.start()
    run.join()
    print(run.exitcode)
    # the server must go on asking that module for its context
    print("multiprocessing" in server.DagsterApiServer.__init__.__code__.co_names)

dagster._cli.main = started
from orchestration import code_server
sys.argv = ["code_server", "-p", "1"]
if __name__ == "__main__":
    code_server.main()
"""


def printed(program: str) -> list[str]:
    """Lines that a program in a process of its own prints."""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc: run it on Linux")
def test_what_is_imported_before_the_fork_starts_no_thread() -> None:
    assert printed(THREADS) == ["1"]


def test_runs_are_forks() -> None:
    assert printed(START) == ["dagster api grpc -p 1", "forkserver", "run", "0", "True"]
