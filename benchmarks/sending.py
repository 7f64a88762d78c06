"""What sending costs: a campaign from the warehouse to an SMTP server, beside the best and beside the obvious.

    python benchmarks/sending.py             100,000 recipients, then 1,000,000 for the memory: some fifteen minutes
    python benchmarks/sending.py --quick     20,000 recipients, within a minute
    python benchmarks/sending.py --check     exit code 1 unless every target holds

All of it in one run on one machine, into the same sink (`smtp-sink` of Debian's postfix package):

1. **The sink's ceiling**: `smtp-source -d`, ten sessions, messages as long as ours. It is written in C, makes one
   message and sends it again and again.
2. **Ours, end to end**: `prepare` and `deliver` as the Dagster asset calls them. The audience is frozen in an embedded
   ClickHouse and read with profile, consent, suppression and six recommendations; checks; claims under a frequency cap
   in a SQLite ledger; 30 KB of personalised HTML with text part and RFC 8058 headers; SMTP; outcomes recorded.
3. **The obvious loop**: jinja2, `email.message.EmailMessage` and `smtplib` on one connection, with the same template.
4. **An HTTP provider**, SendGrid's with 1,000 messages a call, against a server of this machine that accepts at once:
   CPU time of making the payload from rendered messages, and of everything, rendering and httpx included.

Ours and the ceiling take turns; medians count. CPU time is that of our processes, workers included, without the engine
and the sink; memory is their proportional set size, sampled. Targets are those of docs/sending.md.

The last line is one JSON object with all figures.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import smtplib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

# the folder of this file has names of ours in it: imports must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jinja2
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from benchmarks.lib.newsletter import marts, write_content
from campaigns.identity import message_ids
from orchestration.lib.campaign_runs import deliver, prepare
from senders.composing import Envelope
from senders.ledger import Ledger
from senders.message import Message, Status
from senders.mjml import compile_mjml, read_source
from senders.pipeline import rows_of
from senders.plan import SendPlan
from senders.providers.http import Call
from senders.providers.sendgrid import SendGridProvider
from senders.rendering import make_environment
from senders.settings import SenderSettings
from senders.workers import Window, Worker, needed_columns, settle_process
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.errors import MailhouseError
from warehouse.schema import migrate

NOW = datetime(2026, 6, 29, 8, 30, tzinfo=UTC)
CEILING = 1.0
NAIVE = 40.0
CPU_MICROSECONDS = 180.0
MEMORY_MB = 600.0
WORKER_MB = 75.0
GROWTH = 1.15
PAYLOAD_MICROSECONDS = 15.0
SESSIONS = 10


class BenchmarkError(MailhouseError):
    """The benchmark cannot be run here."""


@dataclass
class Sent:
    """One send: recipients, seconds by the clock, CPU seconds of our processes, their memory in MB at most."""

    messages: int
    seconds: float
    cpu: float
    memory: float

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds


@contextmanager
def sink() -> Iterator[int]:
    """A server that takes every message and keeps none; its port."""
    program = shutil.which("smtp-sink") or shutil.which("smtp-sink", path="/usr/sbin")
    if program is None:
        raise BenchmarkError("smtp-sink is not on this machine.", fix="apt-get install postfix")
    port = free_port()
    process = subprocess.Popen([program, "-u", "nobody", f"127.0.0.1:{port}", "1000"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 10
    while True:
        try:
            with smtplib.SMTP("127.0.0.1", port, timeout=2):
                break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError("smtp-sink does not start.", fix="Run it by hand to see why.") from None
            time.sleep(0.05)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def ceiling(port: int, messages: int, length: int) -> float:
    """Messages a second of smtp-source."""
    program = shutil.which("smtp-source") or shutil.which("smtp-source", path="/usr/sbin")
    assert program is not None
    started = time.perf_counter()
    subprocess.run(
        [program, "-d", "-s", str(SESSIONS), "-l", str(length), "-m", str(messages), f"127.0.0.1:{port}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return messages / (time.perf_counter() - started)


class Memory:
    """Proportional set size of this process and those it started, but for the engine and the sink; samples the peak."""

    def __init__(self, strangers: set[int]) -> None:
        self.strangers = strangers
        self.peak = 0.0
        self.workers_peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            own = _pss(os.getpid())
            workers = [_pss(pid) for pid in _children(os.getpid()) if pid not in self.strangers]
            self.peak = max(self.peak, own + sum(workers))
            self.workers_peak = max([self.workers_peak, *workers])


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def _pss(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        return 0.0
    return 0.0


def cpu() -> float:
    """CPU seconds of this process and of children that have ended."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def ours(settings: SenderSettings, warehouse: Warehouse, strangers: set[int]) -> tuple[Sent, float]:
    """Send the campaign once, with a ledger of its own; also the worker's peak memory."""
    ledger = settings.home / "ledger.db"
    for path in settings.home.glob("ledger.db*"):
        path.unlink()
    for table in ("audiences", "audience_members"):
        warehouse.execute(f"drop table if exists campaigns.{table} sync")
    # its tables are made once an installation, not once a send
    Ledger.open(settings).close()
    started, before = time.perf_counter(), cpu()
    with Memory(strangers) as memory:
        prepared = prepare(settings, warehouse, "newsletter")
        summary = deliver(prepared)
    seconds, used = time.perf_counter() - started, cpu() - before
    if summary.sent != prepared.summary.sendable or summary.unknown or summary.failed:
        raise BenchmarkError(f"Not everything was sent: {summary}.", fix="See the ledger.")
    with Ledger.open(settings) as opened:
        counts = opened.counts("campaign", "newsletter", prepared.occurrence_key)
    if counts["sent"] != summary.sent or not ledger.exists():
        raise BenchmarkError(f"The ledger says {counts}.", fix="See the ledger.")
    return Sent(summary.sent, seconds, used, memory.peak), memory.workers_peak


def naive(settings: SenderSettings, warehouse: Warehouse, port: int, messages: int) -> float:
    """Messages a second of the loop that one writes first."""
    folder = settings.content_dir / "templates"
    compiled = compile_mjml(
        read_source(folder / "newsletter.mjml", folder, str), make_environment(autoescape=True)
    )
    environment = jinja2.Environment(autoescape=True)
    environment.filters["money"] = lambda value: f"£{value:,.2f}"
    template = environment.from_string(compiled.html)
    text = jinja2.Environment(autoescape=False).from_string(  # noqa: S701 - plain text
        compiled.text.replace("| money", "")
    )
    rows = warehouse.frame(
        f"select * from marts.contact_profiles order by contact_id limit {messages}"
    ).to_dicts()
    products = [{"name": f"Lamp {n}", "price": 3.5, "url": f"https://shop.example/p/{n}"} for n in range(6)]
    started = time.perf_counter()
    with smtplib.SMTP("127.0.0.1", port) as smtp:
        for contact in rows:
            context: dict[str, Any] = {
                "contact": contact, "recommendations": products, "company_name": "Shop", "postal_address": "1 Road",
                "unsubscribe_url": "https://mail.example.com/u/1",
            }  # fmt: skip
            message = EmailMessage()
            message["From"], message["To"], message["Subject"] = (
                "shop@example.com",
                contact["email"],
                "Six things",
            )
            message.set_content(text.render(context))
            message.add_alternative(template.render(context), subtype="html")
            smtp.send_message(message)
    return messages / (time.perf_counter() - started)


class _Measured(SendGridProvider):
    """SendGrid's provider, and the CPU seconds that its payloads took."""

    payload_seconds = 0.0

    def calls(self, batch: Sequence[Message]) -> Iterator[Call]:
        started = time.process_time()
        made = list(super().calls(batch))
        self.payload_seconds += time.process_time() - started
        return iter(made)


def over_http(settings: SenderSettings, warehouse: Warehouse, rounds: int) -> tuple[float, float]:
    """CPU microseconds a message of an HTTP provider: of the payload alone, and with rendering and the call."""
    port = free_port()
    program = Path(__file__).parent / "lib" / "prompt_provider.py"
    with subprocess.Popen([sys.executable, str(program), str(port)], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            prepared = prepare(settings, warehouse, "newsletter")
            plan = SendPlan.from_campaign(prepared.spec, prepared.occurrence)
            template = prepared.templates.template(
                plan.template, subject=plan.subject, preheader=plan.preheader
            )
            frames = [next(prepared.audience.batches(1_000))]
            windows = [
                Window(
                    [],
                    message_ids(plan.kind, plan.name, frame["contact_id"].to_list(), plan.occurrence),
                    rows_of(frame, needed_columns(template, plan.channel), template.source.product_fields),
                )
                for frame in (one.filter(one["skip_reason"] == "") for one in frames)
            ]
            found: list[tuple[float, float]] = []
            with _Measured(SecretStr("SG.key"), base_url=f"http://127.0.0.1:{port}") as provider:
                worker = Worker(plan, Envelope.of(plan, settings), template, provider)
                settle_process()
                # the first round compiles and connects
                for _ in range(rounds + 1):
                    for window in windows:
                        provider.payload_seconds, started = 0.0, time.process_time()
                        answer = worker.work(window)
                        seconds = time.process_time() - started
                        if {one.status for one in answer.deliveries} != {Status.SENT}:
                            raise BenchmarkError("Not everything was sent over HTTP.", fix="See its answers.")
                        count = len(answer.deliveries)
                        found.append((1e6 * provider.payload_seconds / count, 1e6 * seconds / count))
        finally:
            server.kill()
    payload, everything = zip(*found[1:], strict=True)
    return statistics.median(payload), statistics.median(everything)


def make(warehouse: Warehouse, contacts: int) -> None:
    """The warehouse as a campaign finds it."""
    migrate(warehouse)
    for statement in marts(contacts):
        warehouse.execute(statement)


def run(given: argparse.Namespace, console: Console, home: Path) -> dict[str, Any]:
    """Everything, in order."""
    recipients = given.recipients or (20_000 if given.quick else 100_000)
    write_content(home / "content")
    with sink() as port:
        settings = SenderSettings(
            home=home,
            content_dir=home / "content",
            warehouse_port=free_port(),
            warehouse_url=None,
            provider="smtp",
            smtp_url=SecretStr(f"smtp://127.0.0.1:{port}?tls=none"),
            smtp_connections=SESSIONS,
            from_email="shop@example.com",
            from_name="The Shop",
            company_name="Shop Ltd",
            postal_address="1 High Street, York",
            clock_offset=(NOW - datetime.now(UTC)).total_seconds(),
        )
        with (
            launcher.start(settings) as server,
            Warehouse.connect(settings, comment="benchmark") as warehouse,
        ):
            strangers = {server.pid, *_children(os.getpid())}
            make(warehouse, recipients)
            length = given.length
            runs: list[Sent] = []
            tops: list[float] = []
            worker_memory = 0.0
            for _ in range(given.rounds):
                tops.append(ceiling(port, recipients // 2, length))
                console.print(f"  smtp-source: {tops[-1]:,.0f} a second")
                sent, worker = ours(settings, warehouse, strangers)
                worker_memory = max(worker_memory, worker)
                runs.append(sent)
                console.print(
                    f"  ours: {sent.rate:,.0f} a second, {1e6 * sent.cpu / sent.messages:.0f} microseconds of CPU each"
                )
            obvious = naive(settings, warehouse, port, 200 if given.quick else 1_000)
            console.print(f"  the obvious loop: {obvious:,.0f} a second")
            payload, over_all = over_http(settings, warehouse, 2 + given.rounds)
            console.print(f"  HTTP: {payload:.1f} microseconds of payload, {over_all:.0f} with everything")
            growth = None
            if not given.quick:
                make(warehouse, 10 * recipients)
                larger, _ = ours(settings, warehouse, strangers)
                growth = larger.memory / statistics.median(one.memory for one in runs)
                console.print(
                    f"  ours, {larger.messages:,}: {larger.rate:,.0f} a second, {larger.memory:.0f} MB"
                )
                runs_memory = max(larger.memory, *(one.memory for one in runs))
            else:
                runs_memory = max(one.memory for one in runs)
    rate = statistics.median(one.rate for one in runs)
    return {
        "benchmark": "sending",
        "recipients": recipients,
        "rate": round(rate),
        "ceiling": round(statistics.median(tops)),
        "of_ceiling": round(statistics.median(o.rate / t for o, t in zip(runs, tops, strict=True)), 3),
        "of_naive": round(rate / obvious, 1),
        "cpu_microseconds": round(statistics.median(1e6 * one.cpu / one.messages for one in runs), 1),
        "http_payload_microseconds": round(payload, 1),
        "http_cpu_microseconds": round(over_all, 1),
        "memory_mb": round(runs_memory),
        "worker_memory_mb": round(worker_memory),
        "memory_growth": None if growth is None else round(growth, 3),
    }


def judge(found: dict[str, Any], console: Console) -> bool:
    """Print figures beside targets; whether all hold."""
    targets = [
        ("of smtp-source, in the same sink", found["of_ceiling"], CEILING, "at least"),
        ("of the obvious loop", found["of_naive"], NAIVE, "at least"),
        ("CPU of ours a message, microseconds", found["cpu_microseconds"], CPU_MICROSECONDS, "at most"),
        (
            "HTTP payload a message, microseconds",
            found["http_payload_microseconds"],
            PAYLOAD_MICROSECONDS,
            "at most",
        ),
        ("memory of a worker, MB", found["worker_memory_mb"], WORKER_MB, "at most"),
        ("memory of all processes, MB", found["memory_mb"], MEMORY_MB, "at most"),
    ]
    if found["memory_growth"] is not None:
        targets.append(
            ("memory with ten times as many, of before", found["memory_growth"], GROWTH, "at most")
        )
    table = Table("target", "measured", "allowed", "")
    holds = True
    for name, value, bound, kind in targets:
        good = value >= bound if kind == "at least" else value <= bound
        holds = holds and good
        table.add_row(name, f"{value:,}", f"{kind} {bound:g}", "" if good else "MISSED")
    console.print(table)
    return holds


def main() -> None:
    """Parse arguments, measure, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="within a minute")
    parser.add_argument("--check", action="store_true", help="exit code 1 unless every target holds")
    parser.add_argument("--recipients", type=int, help="contacts of the campaign")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=37_000, help="bytes of a message of smtp-source")
    given = parser.parse_args()
    console = Console(stderr=True)
    try:
        with tempfile.TemporaryDirectory(prefix="mailhouse-sending-") as folder:
            found = run(given, console, Path(folder))
    except MailhouseError as error:
        console.print(f"[red]{error}[/]")
        sys.exit(2)
    holds = judge(found, console)
    print(json.dumps({**found, "holds": holds}))
    if given.check and not holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
