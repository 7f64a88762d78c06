"""One dbt run in a process of its own, as a clock sees it, with every statement's time as the engine reports it.

`run` starts `python -m benchmarks.lib.dbt_process`, which does what Mailhouse does: dbt in its own process, the project
as `prepare_project` left it. There dbt's client is listened to; what comes back is one `Statement` for each.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warehouse.errors import MailhouseError
from warehouse.settings import PROJECT_ROOT, MailhouseSettings

_COMMENT = re.compile(r"^\s*/\*\s*(\{.*?\})\s*\*/\s*", re.DOTALL)

_KINDS = {
    "insert": re.compile(r"insert\b", re.IGNORECASE),
    "create or replace": re.compile(r"create or replace\b", re.IGNORECASE),
    "create": re.compile(r"create\b", re.IGNORECASE),
    "exchange": re.compile(r"exchange\b", re.IGNORECASE),
    "replace partition": re.compile(r"alter table .* replace partition\b", re.IGNORECASE),
    "comment": re.compile(r"alter table .* (modify comment|comment column)\b", re.IGNORECASE),
    "other alter": re.compile(r"alter\b", re.IGNORECASE),
    "drop": re.compile(r"drop\b", re.IGNORECASE),
    "system tables": re.compile(r"(select|with)\b.*\bfrom system\.", re.IGNORECASE),
}


class BenchmarkError(MailhouseError):
    """A run that is measured failed."""


@dataclass(frozen=True)
class Statement:
    """One statement of dbt's.

    Attributes:
        node: name of the model or seed, '' outside of them.
        started: seconds since the process began.
        seconds: as the engine reports them in X-ClickHouse-Summary; by dbt's clock where it reports none.
        cpu: CPU seconds of the engine's process meanwhile: this statement's, if dbt runs one at a time.
        sql: the text, cut.
    """

    node: str
    started: float
    seconds: float
    cpu: float
    sql: str

    @property
    def kind(self) -> str:
        """What the statement does, in a word or two: `insert`, `create or replace`, `question` and so on."""
        return next((kind for kind, pattern in _KINDS.items() if pattern.match(self.sql)), "question")


@dataclass(frozen=True)
class Run:
    """One dbt run.

    Attributes:
        wall_seconds: from the start of the process to its end.
        statements: everything dbt asked the engine.
        nodes: number of models and seeds that were built.
    """

    wall_seconds: float
    statements: tuple[Statement, ...]
    nodes: int

    @property
    def engine_seconds(self) -> float:
        """Time during which the engine worked on a statement; on several at once it counts once."""
        busy, until = 0.0, 0.0
        for one in sorted(self.statements, key=lambda one: one.started):
            end = one.started + one.seconds
            busy += max(0.0, end - max(one.started, until))
            until = max(until, end)
        return busy

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the engine on all statements, if dbt ran one at a time."""
        return sum(one.cpu for one in self.statements)

    def by_kind(self) -> dict[str, tuple[int, float, float]]:
        """Number, seconds and CPU seconds of the statements of each kind, by CPU the dearest first."""
        return self._added("kind")

    def by_node_and_number(self) -> dict[str, tuple[int, float, float]]:
        """The same by model and seed, '' for what is asked outside of them."""
        return self._added("node")

    def _added(self, by: str) -> dict[str, tuple[int, float, float]]:
        found: dict[str, tuple[int, float, float]] = {}
        for one in self.statements:
            key = getattr(one, by)
            count, seconds, cpu = found.get(key, (0, 0.0, 0.0))
            found[key] = count + 1, seconds + one.seconds, cpu + one.cpu
        return dict(sorted(found.items(), key=lambda item: -item[1][2]))

    def by_node(self) -> dict[str, tuple[float, float]]:
        """Seconds and CPU seconds of each node's statements, dearest first."""
        found: dict[str, tuple[float, float]] = {}
        for one in self.statements:
            seconds, cpu = found.get(one.node, (0.0, 0.0))
            found[one.node] = seconds + one.seconds, cpu + one.cpu
        return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, of all its threads; 0 where the system does not tell."""
    try:
        # the clock of another process, as clock_getcpuclockid(3) names it: nanoseconds, where /proc counts hundredths
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def run(settings: MailhouseSettings, pid: int, *args: str) -> Run:
    """Run dbt in a new process and wait for it.

    Args:
        settings: reach the engine, and say what time it is.
        pid: the engine's process.
        args: dbt's.

    Raises:
        BenchmarkError: dbt failed; the message is dbt's.
    """
    environment = {
        **os.environ,
        "MAILHOUSE_HOME": str(settings.home),
        "MAILHOUSE_WAREHOUSE_PORT": str(settings.warehouse_port),
        "MAILHOUSE_CLOCK_OFFSET": repr(settings.clock_offset),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.lib.dbt_process", str(out), str(pid), *args],
            cwd=PROJECT_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise BenchmarkError(
                f"dbt {' '.join(args)} failed:\n{done.stderr[-4000:] or done.stdout[-4000:]}"
            )
        written = json.loads(out.read_text())
    return Run(seconds, tuple(Statement(**one) for one in written["statements"]), written["nodes"])


def main(out: str, pid: str, *args: str) -> int:
    """Run dbt here and write what was asked to a file."""
    began = time.perf_counter()
    from dbt.adapters.clickhouse import httpclient

    from orchestration.lib.dbt_runs import ModelsError, invoke, load_manifest

    statements: list[Statement] = []

    def note(sql: str, before: tuple[float, float], result: Any) -> None:
        started, cpu = before
        seconds = time.perf_counter() - started
        cpu = cpu_seconds(int(pid)) - cpu
        # a query's result has a summary, and a command's is one
        summary = getattr(result, "summary", None) or {}
        if summary.get("elapsed_ns"):
            seconds = int(summary["elapsed_ns"]) / 1e9
        found = _COMMENT.match(sql)
        said = json.loads(found[1]) if found else {}
        node = str(said.get("node_id", "")).split(".")[-1]
        text = sql[found.end() :] if found else sql
        statements.append(Statement(node, started - began, seconds, cpu, " ".join(text.split())[:160]))

    class Listening(httpclient.ChHttpClient):
        def query(self, sql: str, **options: Any) -> Any:
            before = time.perf_counter(), cpu_seconds(int(pid))
            result = super().query(sql, **options)
            note(sql, before, result)
            return result

        def command(self, sql: str, **options: Any) -> Any:
            before = time.perf_counter(), cpu_seconds(int(pid))
            result = super().command(sql, **options)
            note(sql, before, result)
            return result

        def columns_in_query(self, sql: str, **options: Any) -> Any:
            before = time.perf_counter(), cpu_seconds(int(pid))
            result = super().columns_in_query(sql, **options)
            note(sql, before, None)
            return result

    httpclient.ChHttpClient = Listening
    settings = MailhouseSettings.load()
    try:
        result = invoke([*args, "--no-write-json"], settings, manifest=load_manifest(settings))
    except ModelsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    written = {"statements": [asdict(one) for one in statements], "nodes": len(result.result.results)}
    Path(out).write_text(json.dumps(written))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
