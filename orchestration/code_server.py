"""Dagster's code server, with a fork server beside it from which each run's process is made.

Dagster starts a new interpreter for each run, which imports Dagster and this project before it does anything: some
two seconds of processor time between a sensor's decision and the first message. A fork server imports them once;
each run then is a fork of it. It holds one thread only, and no library that starts threads of its own may be imported
in it, since a lock that another thread holds at the fork would stay locked in the run.

    python -m orchestration.code_server -m orchestration.definitions -h 127.0.0.1 -p 4000
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing import forkserver
from types import SimpleNamespace

# what every run needs, and neither polars, numpy nor pyarrow: those start threads
PRELOADED = (
    "dagster._grpc.impl",
    "dagster._cli.api",
    "sqlalchemy.dialects.sqlite",
    "jinja2",
    "httpx",
    "orchestration.definitions",
    "orchestration.lib.automation",
    "orchestration.lib.dagster_storage",
    "orchestration.lib.dbt_specs",
)


def main() -> None:
    """`dagster api grpc` with the arguments of this process."""
    from dagster._cli import main as dagster
    from dagster._grpc import server

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    # it inherits nothing but the environment, so start it before this process has threads or sockets
    forkserver.ensure_running()
    # the server asks for a context by name when it is made; no other place lets one choose it
    server.multiprocessing = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
        get_context=lambda _method: context
    )
    sys.argv = ["dagster", "api", "grpc", *sys.argv[1:]]
    dagster()


if __name__ == "__main__":
    main()
