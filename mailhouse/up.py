"""`mailhouse up`: everything that runs on one machine, started in order, watched, stopped in order."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time

from mailhouse.console import console, step
from mailhouse.services import (
    Dagster,
    Service,
    ServiceError,
    answers,
    require_free_port,
    settings_environment,
)
from mailhouse.settings import CommandSettings
from warehouse.client import Warehouse
from warehouse.embedded.launcher import start
from warehouse.schema import migrate


def run() -> None:
    """Start the services and stay until Ctrl-C, SIGTERM or the end of one of them.

    Raises:
        ServiceError: a port is taken, or a service did not start or ended.
    """
    settings = CommandSettings.load()
    require_free_port(settings.dagster_port, "MAILHOUSE_DAGSTER_PORT", "the Dagster UI")
    require_free_port(settings.gateway_port, "MAILHOUSE_GATEWAY_PORT", "the gateway")
    logs = settings.home / "logs"
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    with contextlib.ExitStack() as stack:
        if settings.is_embedded:
            with step("Warehouse"):
                stack.enter_context(start(settings))
        with Warehouse.connect(settings, comment="mailhouse up") as warehouse:
            migrate(warehouse)
        with step("Gateway"):
            gateway = Service(
                "Gateway",
                [sys.executable, "-m", "gateway", "--port", str(settings.gateway_port)],
                log=logs / "gateway.log",
                environment=settings_environment(settings),
            )
            stack.callback(gateway.stop)
            gateway.wait_until(
                lambda: answers(f"http://127.0.0.1:{settings.gateway_port}/readyz"), seconds=30
            )
        with step("Dagster"):
            dagster = Dagster(settings, ui_port=settings.dagster_port)
            dagster.prepare()
            stack.callback(dagster.stop)
            dagster.start()
        console.print(f"\nDagster    http://127.0.0.1:{settings.dagster_port}")
        console.print(f"ClickHouse {settings.warehouse.url}  (user {settings.warehouse.user})")
        console.print(f"Gateway    http://127.0.0.1:{settings.gateway_port}")
        console.print(f"Logs       {logs}\n\nCtrl-C stops them all.", soft_wrap=True)
        watched = [gateway, *dagster.services]
        while not stop.wait(1.0):
            for service in watched:
                if service.has_ended:
                    raise ServiceError(
                        f"{service.name} ended with code {service.process.returncode}:\n{service.tail()}",
                        fix=f"Read the whole log, {service.log}, then start again; nothing is lost.",
                    )
        started = time.perf_counter()
        console.print("Stopping")
    console.print(f"Stopped in {time.perf_counter() - started:.1f} s.")
