"""What a micro-batch of events costs on its way to messages, in process: CPU time, and questions to the warehouse.

    python benchmarks/trigger_path.py [CONTACTS]        100,000 contacts; 50 triggers, one fires for each event

The same world as `benchmarks/gateway.py`, without HTTP and without the stream. For batches of 1, 10, 100 and 1,000
events: milliseconds by the clock until all messages were handed to the SMTP server, CPU milliseconds of this process
and of the engine, until then and with what is written down behind (`keep`), queries, commits of the ledger.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import polars as pl
from sqlalchemy.event import listen

from benchmarks.gateway import await_port, cpu_seconds, make_home, process
from benchmarks.lib.posting import event
from campaigns.resolving import loads_of
from gateway.__main__ import settle_process
from gateway.events import frame_of, parse_event
from gateway.triggers import TriggerHandler
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.loads import append_events
from warehouse.settings import MailhouseSettings

_LIB = Path(__file__).parent / "lib"


def counted(warehouse: Warehouse, counts: Counter[str]) -> None:
    """Count what the warehouse is asked."""
    for name in ("frame", "insert", "insert_select", "execute"):
        setattr(warehouse, name, _counting(name, getattr(warehouse, name), counts))


def _counting(name: str, work: Callable[..., Any], counts: Counter[str]) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        counts[name] += 1
        return work(*arguments, **more)

    return call


def frame(first: int, number: int, run: str) -> pl.DataFrame:
    """Events as the consumer hands them over."""
    now = datetime.now(UTC)
    return frame_of(
        [parse_event(event(one, run, "cart.updated"), "web", now) for one in range(first, first + number)]
    )


def main() -> None:
    """Measure."""
    contacts = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(prefix="mailhouse-trigger-path-") as folder:
        home = Path(folder)
        base = MailhouseSettings(
            home=home, content_dir=home / "content", warehouse_port=free_port(), warehouse_url=None
        )
        smtp, arrivals = free_port(), home / "arrivals"
        arrivals.touch()
        with (
            launcher.start(base) as server,
            process([str(_LIB / "clocked_sink.py"), str(smtp), str(arrivals)], home / "sink.log"),
        ):
            await_port(smtp, home / "sink.log")
            make_home(base, contacts)
            settings = SenderSettings(
                home=home, content_dir=home / "content", warehouse_port=base.warehouse_port, provider="smtp",
                smtp_url=f"smtp://127.0.0.1:{smtp}?tls=none", from_email="shop@example.com",  # pyright: ignore[reportArgumentType]
                company_name="Shop Ltd", postal_address="1 High Street, York",
            )  # fmt: skip
            with (
                Ledger.open(settings) as ledger,
                Warehouse.connect(settings) as warehouse,
                TriggerHandler(settings, ledger, warehouse) as handler,
            ):
                measure(handler, server.pid, arrivals)


def measure(handler: TriggerHandler, engine: int, arrivals: Path) -> None:
    """All batches; prints a line each."""
    counts: Counter[str] = Counter()
    commits = 0

    def committed(_: object) -> None:
        nonlocal commits
        commits += 1

    listen(handler.ledger.engine, "commit", committed)
    counted(handler.warehouse, counts)
    sent, place = 0, 0
    handler.tick(datetime.now(UTC))
    settle_process()
    time.sleep(3)
    for number, rounds in ((1, 3), (1, 20), (10, 10), (100, 5), (1000, 2)):
        walls: list[float] = []
        own = behind = theirs = theirs_behind = 0.0
        asked: Counter[str] = Counter()
        committed_before = 0
        for _ in range(rounds):
            batch = frame(place, number, f"r{time.monotonic_ns()}")
            place, sent = place + number, sent + number
            counts.clear()
            commits = 0
            began, cpu, others = time.perf_counter(), time.process_time(), cpu_seconds(engine)
            handler.handle(batch, datetime.now(UTC))
            until = time.monotonic() + 60
            while arrivals.stat().st_size == 0 or arrivals.read_bytes().count(b"\n") < sent:
                assert time.monotonic() < until, "messages do not come"
                time.sleep(0.001)
            walls.append(time.perf_counter() - began)
            own += time.process_time() - cpu
            theirs += cpu_seconds(engine) - others
            asked += counts
            committed_before += commits
            cpu, others = time.process_time(), cpu_seconds(engine)
            append_events(handler.warehouse, batch)
            handler.keep(loads_of(handler.warehouse, batch))
            behind += time.process_time() - cpu
            theirs_behind += cpu_seconds(engine) - others
            time.sleep(0.3)
        walls.sort()
        questions = {name: round(count / rounds, 1) for name, count in asked.items()}
        print(
            f"{number:5d} events: {1000 * walls[len(walls) // 2]:7.1f} ms (worst {1000 * walls[-1]:7.1f});"
            f" CPU own {1000 * own / rounds:6.1f} engine {1000 * theirs / rounds:6.1f};"
            f" behind own {1000 * behind / rounds:6.1f} engine {1000 * theirs_behind / rounds:6.1f};"
            f" asked {questions},"
            f" {committed_before / rounds:.1f} commits",
            flush=True,
        )


if __name__ == "__main__":
    main()
