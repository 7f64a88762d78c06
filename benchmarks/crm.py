"""What it takes to keep contacts in step with a CRM of a million.

    python benchmarks/crm.py             1,000,000 contacts
    python benchmarks/crm.py --quick     100,000
    python benchmarks/crm.py --check     exit code 1 unless every target holds

**Initial load**: all contacts of a HubSpot that answers at once (`benchmarks/lib/crm_server.py`, over HTTP, in a
process of its own) into an embedded engine, by a process of its own: contacts a second, its peak memory, calls beside
the least that HubSpot's limits allow. Then once more, killed half way with SIGKILL and started again: nothing is
missing, nothing is twice, and at most one batch is asked for again.

Rates are by seconds of the processor, of loader and engine together: the clock also counts what the server takes, and
whatever else runs on the machine. The last line is one JSON object with all figures.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# the folder of this file has names of ours in it: imports must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.lib import crm_server
from benchmarks.lib.dbt_process import cpu_seconds
from crm.hubspot import BATCH, PAGE
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.errors import MailhouseError
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

CONTACTS_A_SECOND = 5_000.0
MEMORY_MB = 400.0
CALLS = 1.05
"""Times the least possible."""
_LIB = Path(__file__).parent / "lib"


class BenchmarkError(MailhouseError):
    """The benchmark cannot be run here."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure beside what is allowed: `at least` or `at most` `bound`; no bound, no target."""

    name: str
    value: float
    kind: str = ""
    bound: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the target holds."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.kind == "at least" else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Place:
    """Where parts measure: an engine with empty raw tables, a CRM of so many contacts, and settings that reach them."""

    settings: MailhouseSettings
    engine: int
    url: str
    server: int
    contacts: int

    def environment(self) -> dict[str, str]:
        """Of processes that use both."""
        return {
            **os.environ,
            "MAILHOUSE_HOME": str(self.settings.home),
            "MAILHOUSE_WAREHOUSE_PORT": str(self.settings.warehouse_port),
            "MAILHOUSE_HUBSPOT_TOKEN": crm_server.TOKEN,
            "MAILHOUSE_HUBSPOT_BASE_URL": self.url,
        }

    def calls(self) -> dict[str, int]:
        """What the CRM was asked since the last time."""
        return httpx.get(f"{self.url}/calls").json()

    def empty(self) -> None:
        """Forget all that was loaded."""
        with Warehouse.connect(self.settings) as warehouse:
            warehouse.execute("drop database if exists raw sync")
            migrate(warehouse)
        self.calls()


@contextmanager
def place(contacts: int) -> Iterator[Place]:
    """An engine and a CRM, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mailhouse-crm-") as folder:
        home = Path(folder)
        settings = MailhouseSettings(home=home, warehouse_port=free_port(), warehouse_url=None)
        port = free_port()
        command = [sys.executable, str(_LIB / "crm_server.py"), str(port), str(contacts)]
        with launcher.start(settings) as engine:
            child = subprocess.Popen(command)
            try:
                url = f"http://127.0.0.1:{port}"
                until = time.monotonic() + 30
                while True:
                    try:
                        httpx.get(f"{url}/calls")
                        break
                    except httpx.ConnectError:
                        if time.monotonic() > until or child.poll() is not None:
                            raise BenchmarkError(
                                "The CRM's server does not start.", fix="See above."
                            ) from None
                        time.sleep(0.05)
                one = Place(settings, engine.pid, url, child.pid, contacts)
                one.empty()
                yield one
            finally:
                child.kill()
                child.wait()


def start_load(where: Place) -> subprocess.Popen[str]:
    """A process that loads contacts."""
    command = [sys.executable, str(_LIB / "crm_loading.py"), "hubspot", "contact"]
    return subprocess.Popen(command, env=where.environment(), stdout=subprocess.PIPE, text=True)


def finish_load(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a load took.

    Raises:
        BenchmarkError: it failed.
    """
    output = process.communicate()[0]
    if process.returncode:
        raise BenchmarkError("The load failed.", fix="See above.")
    return json.loads(output.splitlines()[-1])


def initial_load(where: Place, console: Console) -> list[Figure]:
    """All contacts, once in one go, once killed half way."""
    contacts = where.contacts
    # a search returns 200 at most, and archived records must be asked for
    least = -(-contacts // PAGE) + 1
    where.empty()
    engine, server = cpu_seconds(where.engine), cpu_seconds(where.server)
    took = finish_load(start_load(where))
    engine, server = cpu_seconds(where.engine) - engine, cpu_seconds(where.server) - server
    calls = sum(where.calls().values())
    console.print(
        f"  {contacts:,} contacts in {took['seconds']:.1f} s by the clock; processor: loader "
        f"{took['cpu_seconds']:.1f} s, engine {engine:.1f} s, server {server:.1f} s; calls {took['calls']}"
    )
    missing = contacts - _stored(where)

    where.empty()
    process = start_load(where)
    assert process.stdout is not None
    read = 0
    while read < contacts // 2:
        line = process.stdout.readline()
        if not line:
            raise BenchmarkError("The load ended before it could be killed.", fix="See above.")
        read = json.loads(line)["read"]
    # in the midst of the next batch
    time.sleep(0.05)
    process.kill()
    process.communicate()
    finish_load(start_load(where))
    repeated = sum(where.calls().values()) - calls
    with Warehouse.connect(where.settings) as warehouse:
        twice = int(warehouse.value("select count() - uniqExact(external_id) from raw.crm_records"))
    return [
        Figure(
            "contacts a second of the processor",
            round(contacts / (took["cpu_seconds"] + engine)),
            "at least",
            CONTACTS_A_SECOND,
        ),
        Figure("contacts a second by the clock", round(contacts / took["seconds"])),
        Figure("peak memory of the loader, MB", round(took["peak_bytes"] / 1e6, 1), "at most", MEMORY_MB),
        Figure("calls", calls),
        Figure("calls, times the least possible", round(calls / least, 4), "at most", CALLS),
        Figure("contacts missing", missing, "at most", 0),
        Figure("after kill -9: contacts missing", contacts - _stored(where), "at most", 0),
        Figure("after kill -9: contacts stored twice", twice, "at most", 0),
        # the batch that was being read, and the two calls with which a first load begins and ends
        Figure("after kill -9: calls repeated", repeated, "at most", BATCH // PAGE + 2),
    ]


def _stored(where: Place) -> int:
    with Warehouse.connect(where.settings) as warehouse:
        return int(warehouse.value("select uniqExact(external_id) from raw.crm_records"))


PARTS = {"initial load": initial_load}
"""Each measures on a place of its own and returns figures."""


def report(found: dict[str, list[Figure]], console: Console) -> bool:
    """Print figures beside targets; whether all hold."""
    table = Table("part", "figure", "measured", "allowed", "")
    for part, figures in found.items():
        for one in figures:
            allowed = "" if one.bound is None else f"{one.kind} {one.bound:,g}"
            table.add_row(part, one.name, f"{one.value:,}", allowed, "" if one.holds else "MISSED")
    console.print(table)
    return all(one.holds for figures in found.values() for one in figures)


def main() -> None:
    """Parse arguments, measure, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100,000 contacts")
    parser.add_argument("--check", action="store_true", help="exit code 1 unless every target holds")
    parser.add_argument("--only", choices=list(PARTS), help="one part")
    given = parser.parse_args()
    console = Console(stderr=True)
    contacts = 100_000 if given.quick else 1_000_000
    found: dict[str, list[Figure]] = {}
    try:
        for name, part in PARTS.items():
            if given.only in (None, name):
                console.print(f"[bold]{name}[/], {contacts:,} contacts")
                with place(contacts) as where:
                    found[name] = part(where, console)
    except MailhouseError as error:
        console.print(f"[red]{error}[/]")
        sys.exit(2)
    holds = report(found, console)
    figures = {part: {one.name: one.value for one in figures} for part, figures in found.items()}
    print(json.dumps({"benchmark": "crm", "contacts": contacts, **figures, "holds": holds}))
    if given.check and not holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
