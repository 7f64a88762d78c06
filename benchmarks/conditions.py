"""What it costs to judge conditions: in process, beside the query that ClickHouse would be asked.

    python benchmarks/conditions.py              50 conditions over 1, 100 and 1,000 rows
    python benchmarks/conditions.py --quick      fewer rounds
    python benchmarks/conditions.py --check      exit code 1 unless the targets hold

Fifty conditions as triggers have them (properties of the event, orders, segments, times, counts of earlier events) are
judged over events of one shop, with the properties that they name as texts: once as `Live` does it, once by the query
over a flat table to an embedded engine, which is what it did before and still does with conditions that it declines.
Both must say the same. Times are of the processor: ours of this process, the query's of this process and the engine's.

Targets: 50 conditions over one row in less than a millisecond, over 1,000 rows in less than 50; a condition is compiled
in less than a millisecond.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

# the folder of this file has a name of ours in it: `import warehouse` must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import polars as pl
from rich.console import Console
from rich.table import Table

from benchmarks.lib.dbt_process import cpu_seconds
from campaigns.evaluating import Rows, compiled, judged
from campaigns.live import JUDGED_COLUMNS, UTC_MS, Live, Needs
from campaigns.predicates import Predicate, parse_predicate
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.settings import MailhouseSettings

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
ONE_ROW, THOUSAND_ROWS, COMPILED = 1.0, 50.0, 1.0
"""Targets in milliseconds."""
PROFILE = {
    "orders_count": "UInt32", "revenue": "Decimal(18, 2)", "engagement_score": "Float64", "country": "Nullable(String)",
    "engagement_band": "LowCardinality(String)", "last_order_at": "Nullable(DateTime64(3, 'UTC'))",
    "days_since_last_order": "Nullable(Int32)", "segments": "Array(String)", "is_suppressed": "Bool",
    "email": "String",
}  # fmt: skip
TEXTS = [
    *(f"event.number = {n} and event.cart_value > 50 and engagement_score >= 0" for n in range(20)),
    *(f"event.cart.value > {n * 10} and orders_count < 3" for n in range(10)),
    "engagement_score >= 20 and has(segments, 'engaged') and event.cart_value > 50",
    "revenue >= 72.50", "revenue / greatest(orders_count, 1) > 20", "orders_count between 1 and 5",
    "last_order_at < now() - interval 90 day", "dateDiff('day', last_order_at, now()) > 30",
    "coalesce(days_since_last_order, 9999) > 60", "country in ('United Kingdom', 'Ireland')",
    "engagement_band = 'never' or country is null", "email ilike '%@example.com'", "lower(email) like 'a%'",
    "hasAny(segments, ['champions', 'loyal']) and not is_suppressed", "event.coupon is not null",
    "length(event.items) > 2", "has(event.tags, 'sale')", "message.name = 'win_back' and event.type = 'clicked'",
    "event_count('product.viewed', '1h') >= 3", "last_event_at('order.placed', '30d') is null",
    "case when revenue > 500 then event.cart_value > 20 else event.cart_value > 50 end",
    "toHour(now()) between 8 and 20",
]  # fmt: skip


def batch(rows: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events, and the state of their contacts."""
    rng = random.Random(rows)
    events: list[dict[str, Any]] = []
    states: list[dict[str, Any]] = []
    for row in range(rows):
        items = [{"sku": f"A-{n}", "quantity": 1, "price": 12.5} for n in range(rng.randrange(1, 5))]
        properties = {
            "number": row % 50, "cart_value": rng.randrange(100), "cart": {"value": round(rng.uniform(1, 150), 2)},
            "items": items, "tags": ["sale", "new"][: rng.randrange(3)],
        }  # fmt: skip
        events.append(
            {
                "row": row, "contact_id": row + 1, "email": "", "as_of": NOW, "event_id": str(row),
                "event_type": rng.choice(("cart.updated", "clicked")), "event_source": "web",
                "event_occurred_at": NOW, "event_properties": json.dumps(properties, separators=(",", ":")),
                "message_kind": "", "message_name": rng.choice(("", "win_back")), "message_template": "",
                "message_occurrence": "",
            }
        )  # fmt: skip
        orders = rng.randrange(6)
        states.append(
            {
                "row": row, "orders_count": orders, "revenue": round(orders * rng.uniform(10, 99), 2),
                "engagement_score": rng.uniform(0, 99), "country": rng.choice((None, "Ireland", "France")),
                "engagement_band": rng.choice(("never", "high")),
                "last_order_at": NOW - timedelta(days=rng.randrange(200)) if orders else None,
                "days_since_last_order": rng.randrange(200) if orders else None,
                "segments": ["engaged", "loyal", "champions"][: rng.randrange(4)], "is_suppressed": rng.random() < 0.1,
                "email": f"{rng.choice('abc')}{row}@example.com", "event_count|product.viewed|3600": rng.randrange(5),
                "last_event_at|order.placed|2592000": NOW - timedelta(days=3) if orders > 3 else None,
            }
        )  # fmt: skip
    state = pl.DataFrame(states, infer_schema_length=None).with_columns(
        pl.col("revenue").cast(pl.Decimal(18, 2)),
        pl.col("segments").cast(pl.List(pl.String)),
        pl.col("country").cast(pl.String),
        pl.col("days_since_last_order").cast(pl.Int64),
        pl.col("event_count|product.viewed|3600").cast(pl.UInt64),
        pl.col("last_order_at", "last_event_at|order.placed|2592000").cast(UTC_MS),
    )
    return pl.DataFrame(events, schema=dict(JUDGED_COLUMNS)), state


def milliseconds(call: Callable[[], Any], rounds: int, clock: Callable[[], float]) -> float:
    """The least cost of a call: what others do on the machine only adds to it."""
    costs: list[float] = []
    for _ in range(rounds):
        started = clock()
        call()
        costs.append((clock() - started) * 1e3)
    return min(costs)


def compile_milliseconds(conditions: list[Predicate], types: dict[str, str]) -> float:
    """The mean cost of compiling a condition."""
    compiled.cache_clear()
    started = time.process_time()
    for predicate in conditions:
        assert compiled(predicate.sql, tuple(types.items())) is not None, predicate.text
    return (time.process_time() - started) * 1e3 / len(conditions)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--check", action="store_true", help="exit code 1 unless the targets hold")
    options = parser.parse_args()
    conditions = {
        f"met {place}": parse_predicate(text, columns=PROFILE, qualifiers=("event", "message"))
        for place, text in enumerate(TEXTS)
    }
    needs = Needs.of(conditions.values())
    types = {
        **{name: kind for name, kind in PROFILE.items() if name in needs.columns},
        "event_count|product.viewed|3600": "UInt64",
        "last_event_at|order.placed|2592000": "Nullable(DateTime64(3, 'UTC'))",
    }
    paths = sorted(needs.properties)
    compile_cost = compile_milliseconds(list(conditions.values()), types)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        settings = MailhouseSettings(home=Path(name), warehouse_port=free_port())
        with (
            launcher.start(settings) as server,
            Warehouse.connect(settings, comment="benchmark") as warehouse,
        ):
            live = Live(warehouse)
            live._columns = dict(PROFILE)

            def both() -> float:
                return time.process_time() + cpu_seconds(server.pid)

            for rows in (1, 100, 1000):
                frame, state = batch(rows)

                def ours(frame: pl.DataFrame = frame, state: pl.DataFrame = state) -> pl.DataFrame:
                    return live._verdicts(frame, state, conditions, needs).frame(frame["row"])

                def query(frame: pl.DataFrame = frame, state: pl.DataFrame = state) -> pl.DataFrame:
                    return live._asked(frame, state, conditions, paths, types)

                found, wanted = ours(), query()
                assert found.equals(wanted.select(found.columns)), "they do not say the same"
                assert not judged(Rows([state, frame], types), conditions, types, paths).declined
                rounds = max(5, (200 if options.quick else 1000) // max(10, rows // 5))
                figures[str(rows)] = {
                    "ours": milliseconds(ours, rounds * 3, time.process_time),
                    "query": milliseconds(query, rounds, both),
                }
    table = Table(title=f"{len(TEXTS)} conditions, milliseconds of CPU", title_justify="left", box=None)
    for column in ("rows", "in process", "ClickHouse", "ratio", "microseconds a row and condition"):
        table.add_column(column, justify="right")
    for rows, one in figures.items():
        each = one["ours"] * 1e3 / int(rows) / len(TEXTS)
        ratio = one["query"] / one["ours"]
        table.add_row(rows, f"{one['ours']:.2f}", f"{one['query']:.1f}", f"{ratio:.0f}", f"{each:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"Compiling a condition: {compile_cost:.2f} ms, once. Targets: {ONE_ROW:g} ms for one row, "
        f"{THOUSAND_ROWS:g} ms for 1,000, {COMPILED:g} ms to compile."
    )
    rounded = {rows: {key: round(value, 3) for key, value in one.items()} for rows, one in figures.items()}
    sys.stdout.write(
        json.dumps({"conditions": len(TEXTS), "compile": round(compile_cost, 3), "rows": rounded}) + "\n"
    )
    ok = (
        figures["1"]["ours"] <= ONE_ROW
        and figures["1000"]["ours"] <= THOUSAND_ROWS
        and compile_cost <= COMPILED
    )
    if options.check and not ok:
        sys.exit(1)


if __name__ == "__main__":
    main()
