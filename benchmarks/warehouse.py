"""What the warehouse costs: all models from raw events, one more day, the same with twice the history, and by hand.

    python benchmarks/warehouse.py             1 M contacts and 100 M events over two years, about an hour
    python benchmarks/warehouse.py --quick     a two-hundredth, within a minute on a machine that does nothing else
    python benchmarks/warehouse.py --check     exit code 1 unless every target holds

An embedded engine is started on a free port over an empty folder. A seeded shop (`benchmarks/lib/history.py`) is made
inside ClickHouse and loaded in the order of time. Then, all through a process of dbt as Mailhouse starts it:

1. **Full build**: all seeds and models from the raw tables, one at a time, so that a statement's seconds are its own.
2. **By hand**: for each large mart the best query we know over raw events (`benchmarks/lib/handwritten.py`), written
   into a table of the same order; twice, the better one counts. A mart is charged for all models that exist for it
   alone and, where it is a view, for one read of it all. Where both can be said in numbers, the numbers must be equal.
3. **A day**: its events (a hundredth of the history's number, from a fifth of the contacts) and its mail are loaded,
   with late ones of the weeks before; then dbt builds all models but views, which read what is there. Several days,
   the median counts. The clock runs from the start of dbt's process to its end.
4. **Twice the history**: as much again before the first day, all models from scratch, then days as in 3.

Engine time of a run is the time during which the engine worked on at least one of its statements, each as
X-ClickHouse-Summary reports it (`elapsed_ns`): waiting for dbt is not in it, and what runs at once counts once. Beside
it stands the CPU time of the engine's process, merges in the background included; by that a mart is compared with the
query by hand, because other programs of the machine disturb it least. Targets are those of docs/warehouse.md. With
--quick a day is too small to be set against the full build, and history is not doubled: what is left is checked.

The last line is one JSON object with all figures. `--explain` prints what the first day is made of: statements, engine
and CPU seconds by model and by kind of statement. For that days run one model at a time, so that each statement's CPU
time is its own; `--statements FILE` notes the dearest statements of each run.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

# the folder of this file has a name of ours in it: `import warehouse` must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console
from rich.table import Table

from benchmarks.lib.dbt_process import BenchmarkError, Run, cpu_seconds, run
from benchmarks.lib.handwritten import SEGMENT_MODELS, Comparison, comparisons
from benchmarks.lib.history import Shop
from orchestration.lib.dbt_runs import prepare_project
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.errors import MailhouseError, WarehouseError
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

LAST_DAY = date(2026, 6, 30)
FULL_SECONDS = 120.0
DAY_SHARE = 1 / 20
DAY_WALL_SECONDS = 15.0
TWICE = 1.15
BY_HAND = 2.0
SEGMENTS_SECONDS = 5.0
SEGMENTS = 20
_NO_TESTS = ("--exclude-resource-type", "test", "unit_test")
_BYTES_AN_EVENT = 90  # raw and marts, with what is written beside them while they are built
_VIEWS = {"orders": "marts.orders", "messages": "marts.messages", "engagement": "marts.engagement"}


@dataclass(frozen=True)
class Size:
    """How much is made and measured."""

    contacts: int
    events: int
    history_days: int
    day_events: int
    days: int
    is_quick: bool

    @classmethod
    def of(cls, given: argparse.Namespace) -> Size:
        """The size asked for."""
        quick = given.quick
        events = given.events or (500_000 if quick else 100_000_000)
        contacts = given.contacts or (10_000 if quick else 1_000_000)
        return cls(
            contacts // 10 * 10,
            events,
            120 if quick else 730,
            max(1_000, events // 100),
            given.days or (1 if quick else 3),
            quick,
        )


@dataclass(frozen=True)
class Pair:
    """A mart's models and the query by hand: seconds of the engine and of CPU."""

    seconds: float
    cpu: float
    hand_seconds: float
    hand_cpu: float

    @property
    def ratio(self) -> float:
        """CPU time of the models, of that of the query by hand: other programs of the machine change it least."""
        return self.cpu / max(self.hand_cpu, 0.01)


@dataclass
class Measured:
    """Figures of a benchmark."""

    size: Size
    full: Run | None = None
    full_cpu: float = 0.0
    days: list[Run] = field(default_factory=list)
    days_cpu: list[float] = field(default_factory=list)
    touched: list[int] = field(default_factory=list)
    by_hand: dict[str, Pair] = field(default_factory=dict)
    different: list[str] = field(default_factory=list)
    segments_seconds: float = 0.0
    segments: int = 0
    twice_full: Run | None = None
    twice_days: list[Run] = field(default_factory=list)
    stored: dict[str, Any] = field(default_factory=dict)


@contextmanager
def engine(home: Path, memory_mb: int) -> Iterator[tuple[MailhouseSettings, launcher.RunningServer]]:
    """An embedded engine over an empty folder, on a free port."""
    port = free_port()
    settings = MailhouseSettings(home=home, warehouse_port=port, warehouse_url=None)
    with launcher.start(settings, options={"memory-mb": str(memory_mb)}) as server:
        yield settings, server


def at(settings: MailhouseSettings, moment: datetime) -> MailhouseSettings:
    """The same settings at a time."""
    return settings.model_copy(update={"clock_offset": (moment - datetime.now(UTC)).total_seconds()})


def morning_after(day: date) -> datetime:
    """When a day's load is modelled."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1, minutes=30)


class Benchmark:
    """One benchmark under way.

    Args:
        size: how much.
        settings: reach the engine.
        pid: the engine's process.
        console: is told what goes on.
        statements: takes the dearest models and statements of each run; nobody if None.
        explain: build days one model at a time and tell what the first is made of.
    """

    def __init__(
        self,
        size: Size,
        settings: MailhouseSettings,
        pid: int,
        console: Console,
        statements: Path | None,
        explain: bool = False,
    ) -> None:
        self.size, self.settings, self.pid, self.console = size, settings, pid, console
        self.statements, self.explain = statements, explain
        self.warehouse = Warehouse.connect(settings, comment="benchmark")
        self.shop = Shop(self.warehouse, size.contacts, LAST_DAY)
        self.measured = Measured(size)

    def run(self) -> Measured:
        """Everything, in order."""
        size, found = self.size, self.measured
        migrate(self.warehouse)
        prepare_project(self.settings)
        first_day = LAST_DAY - timedelta(days=size.history_days - 1)
        with self._told(f"{size.events:,} events of {size.contacts:,} contacts"):
            self.shop.add_people(first_day)
            self.shop.add_history(size.history_days, size.events)
            self._settle()
        # views for BI cost nothing but dbt's own time
        skipped = ("path:models/bi",) if size.is_quick else ()
        found.full, found.full_cpu = self._dbt(
            "full build",
            LAST_DAY,
            "build",
            *_NO_TESTS,
            "--threads",
            "1",
            *(("--exclude", *skipped) if skipped else ()),
        )
        found.stored = self._stored()
        self._compare()
        found.days, found.days_cpu = self._days(1)
        if not size.is_quick:
            with self._told("as much again before it"):
                self.shop.add_history(size.history_days, size.events, until=first_day - timedelta(days=1))
                self._settle()
            found.twice_full, _ = self._dbt(
                "full build of twice the history",
                LAST_DAY + timedelta(days=size.days),
                *("build", *_NO_TESTS, "--full-refresh"),
            )
            found.twice_days, _ = self._days(1 + size.days)
        return found

    def _days(self, first: int) -> tuple[list[Run], list[float]]:
        runs, cpu = [], []
        for number in range(first, first + self.size.days):
            day = LAST_DAY + timedelta(days=number)
            self.shop.add_day(day, self.size.day_events, self.size.events // self.size.history_days)
            self._settle()
            self.measured.touched.append(
                int(
                    self.warehouse.value(
                        "select uniqExact(multiIf(email != '', email, external_id)) from raw.events "
                        "where toDate(loaded_at, 'UTC') = {day:Date}",
                        {"day": str(day)},
                    )
                )
            )
            done, seconds = self._dbt(
                f"day {number}",
                day,
                *("run", "--exclude", "config.materialized:view"),
                *(("--threads", "1") if self.explain else ()),
            )
            if self.explain and number == 1:
                explain(done, self.console)
            runs.append(done)
            cpu.append(seconds)
        return runs, cpu

    def _dbt(self, what: str, day: date, *args: str) -> tuple[Run, float]:
        before = cpu_seconds(self.pid)
        done = run(at(self.settings, morning_after(day)), self.pid, *args)
        self._note(what, done)
        cpu = cpu_seconds(self.pid) - before
        self.console.print(
            f"  {what}: {done.engine_seconds:.1f} s of the engine, {done.wall_seconds:.1f} s by the clock, "
            f"{done.nodes} models"
        )
        return done, cpu

    def _note(self, what: str, done: Run) -> None:
        if self.statements is not None:
            with self.statements.open("a") as file:
                file.write("\n".join(dearest(what, done)) + "\n")

    def _compare(self) -> None:
        """Each mart beside the query by hand."""
        found = self.measured
        assert found.full is not None
        self.warehouse.execute("create database if not exists by_hand")
        costs = found.full.by_node()
        segments = set(
            self.warehouse.frame("select name from system.tables where database = 'segments'")["name"]
        )
        found.segments = len(segments)
        found.segments_seconds = sum(costs[name][0] for name in segments if name in costs)
        as_of = f"toDateTime64('{morning_after(LAST_DAY):%F %T}', 3, 'UTC')"
        for one in comparisons(as_of):
            of_segments = one.nodes == (SEGMENT_MODELS,)
            own = [
                cost for node, cost in costs.items() if (node in segments if of_segments else one.has(node))
            ]
            if not own:
                continue
            if one.mart in _VIEWS:
                own.append(self._cost(f"select * from {_VIEWS[one.mart]} format Null"))
            pair = Pair(sum(cost[0] for cost in own), sum(cost[1] for cost in own), *self._by_hand(one))
            found.by_hand[one.mart] = pair
            self.console.print(
                f"  {one.mart}: {pair.seconds:.2f} s (CPU {pair.cpu:.2f}), "
                f"by hand {pair.hand_seconds:.2f} s (CPU {pair.hand_cpu:.2f})"
            )

    def _by_hand(self, one: Comparison) -> tuple[float, float]:
        costs = []
        name = one.mart.replace(" ", "_")
        for _ in range(2):
            self.warehouse.execute(f"drop table if exists by_hand.{name} sync")
            # what was written before would else be merged at this one's expense
            self._settle()
            costs.append(
                self._cost(
                    f"create table by_hand.{name} engine = MergeTree order by {one.order_by} as {one.query}"
                )
            )
        if one.read:
            mart, ours = (
                self.warehouse.frame(sql).row(0)
                for sql in (one.read, one.same.format(table=f"by_hand.{name}"))
            )
            if [float(value) for value in mart] != [float(value) for value in ours]:
                self.measured.different.append(f"{one.mart}: {mart}, by hand {ours}")
        self.warehouse.execute(f"drop table by_hand.{name} sync")
        return min(costs, key=lambda cost: cost[1])

    def _cost(self, sql: str) -> tuple[float, float]:
        """Run a statement; its seconds, as the engine reports them, and CPU seconds."""
        settings = {"join_use_nulls": "0", "throw_on_max_partitions_per_insert_block": "0"}
        started, cpu = time.perf_counter(), cpu_seconds(self.pid)
        summary = self.warehouse.client.command(sql, settings=settings)
        elapsed = getattr(summary, "summary", {}).get("elapsed_ns")
        seconds = int(elapsed) / 1e9 if elapsed else time.perf_counter() - started
        return seconds, cpu_seconds(self.pid) - cpu

    def _settle(self) -> None:
        """Wait until merges in the background are done: a day's load comes hours after the one before."""
        until = time.monotonic() + (3 if self.size.is_quick else 300)
        while time.monotonic() < until and self.warehouse.value("select count() from system.merges"):
            time.sleep(0.25)

    def _stored(self) -> dict[str, Any]:
        """How much there is."""
        sizes = self.warehouse.frame(
            "select if(database = 'raw', 'raw', 'models') as place, sum(bytes_on_disk) as bytes from system.parts "
            "where active and database not in ('system', 'by_hand') group by place"
        )
        rows = "select count() from raw.events"
        return {
            "events": self.warehouse.value(rows),
            **dict(zip(sizes["place"], sizes["bytes"], strict=True)),
        }

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.console.print(f"  {what}: made in {time.perf_counter() - started:.0f} s")


@dataclass(frozen=True)
class Verdict:
    """One target: what was measured, what is allowed; None where this size cannot tell."""

    what: str
    figure: float
    unit: str
    limit: float | None

    @property
    def holds(self) -> bool:
        """Whether the target is met, or cannot be told."""
        return self.limit is None or self.figure <= self.limit


def median(runs: Sequence[Run], figure: str) -> float:
    """Median of a figure of several runs."""
    return statistics.median(getattr(one, figure) for one in runs)


def verdicts(found: Measured) -> list[Verdict]:
    """Every target."""
    assert found.full is not None
    full, day = found.full.engine_seconds, median(found.days, "engine_seconds")
    is_large = not found.size.is_quick
    judged = [
        Verdict("full build, engine time", full, "s", FULL_SECONDS),
        Verdict("a day, engine time, of the full build", day / full, "x", DAY_SHARE if is_large else None),
        Verdict(
            "a day, by the clock with dbt's start", median(found.days, "wall_seconds"), "s", DAY_WALL_SECONDS
        ),
        Verdict(
            f"segments recomputed, as if there were {SEGMENTS}",
            found.segments_seconds * SEGMENTS / max(found.segments, 1),
            "s",
            SEGMENTS_SECONDS,
        ),
    ]
    if found.twice_days:
        twice = median(found.twice_days, "engine_seconds")
        judged.append(Verdict("a day after twice the history, of a day before", twice / day, "x", TWICE))
    for mart, pair in found.by_hand.items():
        # what dbt asks beside it weighs more than a query of a fraction of a second
        limit = BY_HAND if pair.hand_cpu > 1 else None
        judged.append(Verdict(f"{mart}, of the query by hand, CPU", pair.ratio, "x", limit))
    judged.append(Verdict("marts that say other numbers than the query by hand", len(found.different), "", 0))
    return judged


def report(found: Measured, judged: Sequence[Verdict], console: Console) -> None:
    """The tables."""
    assert found.full is not None
    runs = Table("run", "engine s", "engine CPU s", "clock s", "models")
    runs.add_row(*_row("full build", found.full, found.full_cpu))
    for number, (one, cpu) in enumerate(zip(found.days, found.days_cpu, strict=True), 1):
        runs.add_row(*_row(f"day {number} ({found.touched[number - 1]:,} contacts)", one, cpu))
    if found.twice_full:
        runs.add_row(*_row("full build, twice the history", found.twice_full))
    for number, one in enumerate(found.twice_days, 1):
        runs.add_row(*_row(f"day {number} after twice the history", one))
    console.print(runs)
    hands = Table("mart", "its models, s", "CPU s", "by hand, s", "CPU s", "ratio of CPU")
    for mart, pair in found.by_hand.items():
        numbers = (pair.seconds, pair.cpu, pair.hand_seconds, pair.hand_cpu, pair.ratio)
        hands.add_row(mart, *(f"{number:.2f}" for number in numbers))
    console.print(hands)
    table = Table("target", "measured", "allowed", "")
    for one in judged:
        allowed = "not judged" if one.limit is None else f"{one.limit:.3g} {one.unit}".rstrip()
        table.add_row(
            one.what, f"{one.figure:.3g} {one.unit}".rstrip(), allowed, "" if one.holds else "MISSED"
        )
    console.print(table)
    for line in found.different:
        console.print(line, soft_wrap=True)


def explain(one: Run, console: Console, models: int = 40) -> None:
    """What a run is made of: statements and their cost by kind and by model, dearest first."""
    cpu = one.cpu_seconds
    for title, rows in (("kind of statement", one.by_kind()), ("model", one.by_node_and_number())):
        table = Table(title, "statements", "engine s", "CPU s", "of all CPU")
        for name, (count, seconds, of_cpu) in list(rows.items())[:models]:
            table.add_row(
                name or "(outside of models)",
                *(str(count), f"{seconds:.2f}", f"{of_cpu:.3f}", f"{of_cpu / max(cpu, 0.01):.1%}"),
            )
        console.print(table)
    console.print(
        f"  {len(one.statements)} statements, {cpu:.1f} s of CPU; by the clock {one.wall_seconds:.1f} s, of them "
        f"{one.statements[0].started:.1f} s until the first statement and {one.engine_seconds:.1f} s in the engine"
    )


def _row(what: str, one: Run, cpu: float | None = None) -> tuple[str, ...]:
    return (
        what,
        f"{one.engine_seconds:.2f}",
        "" if cpu is None else f"{cpu:.1f}",
        f"{one.wall_seconds:.1f}",
        str(one.nodes),
    )


def figures(found: Measured, judged: Sequence[Verdict]) -> dict[str, Any]:
    """All figures, for a machine."""
    assert found.full is not None
    size = found.size
    return {
        "benchmark": "warehouse",
        "contacts": size.contacts,
        "events": size.events,
        "day_events": size.day_events,
        "touched_contacts": found.touched,
        "stored": found.stored,
        "full_engine_seconds": round(found.full.engine_seconds, 3),
        "full_cpu_seconds": round(found.full_cpu, 1),
        "day_engine_seconds": [round(one.engine_seconds, 3) for one in found.days],
        "day_cpu_seconds": [round(one, 1) for one in found.days_cpu],
        "day_wall_seconds": [round(one.wall_seconds, 2) for one in found.days],
        "twice_full_engine_seconds": round(found.twice_full.engine_seconds, 3) if found.twice_full else None,
        "twice_day_engine_seconds": [round(one.engine_seconds, 3) for one in found.twice_days],
        "by_hand": {
            name: [round(number, 3) for number in (pair.seconds, pair.cpu, pair.hand_seconds, pair.hand_cpu)]
            for name, pair in found.by_hand.items()
        },
        "segments": [found.segments, round(found.segments_seconds, 3)],
        "holds": all(one.holds for one in judged),
        "missed": [one.what for one in judged if not one.holds],
    }


def dearest(what: str, one: Run) -> Iterator[str]:
    """Lines: a run's dearest models and statements."""
    yield f"== {what}: {one.engine_seconds:.2f} s of the engine, {one.wall_seconds:.2f} s by the clock"
    for node, (seconds, cpu) in list(one.by_node().items())[:60]:
        yield f"{seconds:9.3f} {cpu:9.2f}  {node or '(outside of models)'}"
    for statement in sorted(one.statements, key=lambda statement: -statement.seconds)[:40]:
        yield f"{statement.seconds:9.3f} {statement.cpu:9.2f}  {statement.node}: {statement.sql}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exit code 1 with --check if a target is missed, 2 if it cannot be measured."""
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size, within a minute")
    parser.add_argument("--check", action="store_true", help="exit code 1 unless every target holds")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="print statements and CPU of the first day by model and by kind",
    )
    parser.add_argument("--events", type=int, help="events of the history (default: 100 million)")
    parser.add_argument("--contacts", type=int, help="contacts (default: 1 million)")
    parser.add_argument("--days", type=int, help="days that are measured, the median counts (default: 3)")
    parser.add_argument(
        "--memory-mb", type=int, default=8_000, help="the engine's limit for all queries together"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the engine's data goes while it runs (default: the system's)"
    )
    parser.add_argument(
        "--statements", type=Path, metavar="FILE", help="takes the dearest models and statements of each run"
    )
    given = parser.parse_args(arguments)
    size = Size.of(given)
    console = Console(stderr=False)
    try:
        found = _measured(size, given, console)
    except MailhouseError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    judged = verdicts(found)
    report(found, judged, console)
    sys.stdout.write(json.dumps(figures(found, judged)) + "\n")
    return 1 if given.check and not all(one.holds for one in judged) else 0


def _measured(size: Size, given: argparse.Namespace, console: Console) -> Measured:
    folder = given.folder or Path(tempfile.gettempdir())
    needed = _BYTES_AN_EVENT * size.events * (1 if size.is_quick else 2)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BenchmarkError(
            f"{folder} has {free / 2**30:.0f} GiB free; {size.events:,} events need about {needed / 2**30:.0f}.",
            fix="Name another folder with --folder, or fewer events with --events.",
        )
    with tempfile.TemporaryDirectory(prefix="warehouse-benchmark-", dir=folder) as home:
        try:
            with engine(Path(home), given.memory_mb) as (settings, server):
                return Benchmark(size, settings, server.pid, console, given.statements, given.explain).run()
        except WarehouseError as error:
            raise BenchmarkError(f"A query of the benchmark failed: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
