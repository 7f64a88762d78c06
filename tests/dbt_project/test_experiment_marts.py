"""Marts of experiments beside a reference in Python: exposures, windows, machines, sums by day, new metrics."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from models import PREFIX, Models, moment

from campaigns.journey_state import define_tables

pytestmark = pytest.mark.slow

OWN = (
    *(
        "stg_ledger__experiments",
        "stg_journeys__moves",
        "path:models/metrics",
        "path:models/intermediate/experiments",
    ),
    *("path:models/marts/experiments", "--exclude-resource-type", "unit_test", "test"),
)
WEEK = timedelta(days=7)


def record(models: Models, name: str, owner_kind: str, owner: str, window: timedelta = WEEK) -> None:
    """What a file says of an experiment."""
    spec = {"owner_kind": owner_kind, "owner": owner, "window_seconds": int(window.total_seconds())}
    models.warehouse.insert(
        "raw.campaigns",
        pl.DataFrame(
            {
                "kind": ["experiment"], "name": [name], "version": ["v"], "experiment": [name],
                "spec": [json.dumps(spec)],
                "description": [""], "channel": [""], "category": [""], "segment": [""], "goal_event": [""],
                "goal_where": [""], "goal_within_seconds": [0],
            }
        ).cast({"goal_within_seconds": pl.UInt32}),
    )  # fmt: skip


_BEFORE = (
    """
    create table {prefix}intermediate.int_messages__followed (
        message_hash UInt64, message_id String, ledger_contact_id Int64, identity_id Int64,
        kind LowCardinality(String), name LowCardinality(String), occurrence LowCardinality(String),
        experiment LowCardinality(String), variant LowCardinality(String), status LowCardinality(String),
        reason LowCardinality(String), created_at DateTime64(3, 'UTC'), sent_at Nullable(DateTime64(3, 'UTC')),
        first_opened_at Nullable(DateTime64(3, 'UTC')), first_clicked_at Nullable(DateTime64(3, 'UTC')),
        unsubscribed_at Nullable(DateTime64(3, 'UTC')), complained_at Nullable(DateTime64(3, 'UTC')),
        bounced_at Nullable(DateTime64(3, 'UTC')), rebuilt_at DateTime64(3, 'UTC') default now64(3)
    ) engine = ReplacingMergeTree(rebuilt_at) partition by toYYYYMM(created_at)
        order by (name, occurrence, message_hash)
    """,
    """
    create table {prefix}intermediate.int_contacts__identified (
        identity_id Int64, contact_id Int64, kind String, message_contact_id Int64
    ) engine = MergeTree order by identity_id
    """,
    """
    create table {prefix}intermediate.int_goals__reached (
        is_month Bool, kind LowCardinality(String), campaign LowCardinality(String), contact_id Int64,
        reached_at DateTime64(3, 'UTC')
    ) engine = MergeTree order by contact_id
    """,
    """
    create table {prefix}intermediate.int_increments__taken (
        model String, taken_at DateTime64(3, 'UTC'), taken_on Date
    ) engine = MergeTree order by model
    """,
    """
    create table {prefix}marts.orders (
        contact_id Nullable(Int64), ordered_at DateTime64(3, 'UTC'), revenue Decimal(18, 2), is_sale Bool
    ) engine = MergeTree order by ordered_at
    """,
)
_TIMES = {
    "opens": "first_opened_at", "clicks": "first_clicked_at", "unsubscribes": "unsubscribed_at",
    "complaints": "complained_at", "bounces": "bounced_at",
}  # fmt: skip


class Test:
    """Messages of an experiment and what people did: in what the marts stand on, and for the reference."""

    __test__ = False

    def __init__(self, models: Models) -> None:
        self.models, self.dice = models, random.Random(3)
        self.messages: dict[str, dict[str, Any]] = {}
        self.orders: list[tuple[int, datetime, float]] = []
        self.goals: list[tuple[int, datetime]] = []
        for name in ("intermediate", "marts"):
            models.warehouse.execute(f"create database {PREFIX}{name}")
        for statement in _BEFORE:
            models.warehouse.execute(statement.format(prefix=PREFIX))

    def send(self, day: str, contacts: range, *, mixed: int = -1) -> None:
        for number in contacts:
            variant = {9: "remainder", 8: "holdout"}.get(number % 10, "warm" if number % 2 else "plain")
            if number == mixed:
                variant = "plain" if variant == "warm" else "warm"
            at = moment(day) + timedelta(minutes=self.dice.randrange(600))
            status = "skipped" if variant == "holdout" else "failed" if number % 17 == 0 else "sent"
            self.messages[f"{day}-{number}"] = {
                "message_id": f"{day}-{number}", "ledger_contact_id": number, "identity_id": number, "kind": "campaign",
                "name": "win_back", "occurrence": day, "experiment": "tone", "variant": variant, "status": status,
                "reason": "holdout" if variant == "holdout" else "", "created_at": at,
                "sent_at": at if status == "sent" else None, **dict.fromkeys(_TIMES.values()),
            }  # fmt: skip
        self.store(self.messages)

    def store(self, ids: Iterable[str]) -> None:
        """Put messages down as they are by now."""
        times = ("created_at", "sent_at", *_TIMES.values())
        frame = pl.DataFrame([self.messages[one] for one in ids], infer_schema_length=None).with_columns(
            pl.col("message_id").hash().alias("message_hash"), pl.col(*times).cast(pl.Datetime("ms", "UTC"))
        )
        self.models.warehouse.insert(f"{PREFIX}intermediate.int_messages__followed", frame)

    def happen(self, count: int) -> None:
        """People answer, some of them long after the window."""
        sent = [name for name, one in self.messages.items() if one["status"] == "sent"]
        touched = {self.dice.choice(sent) for _ in range(count)}
        for name in touched:
            message = self.messages[name]
            column = self.dice.choice(list(_TIMES.values()))
            at = message["sent_at"] + timedelta(hours=self.dice.randrange(1, 300))
            message[column] = min(message[column] or at, at)
        self.store(sorted(touched))
        number = self.dice.randrange(100)
        at = moment("06-04") + timedelta(hours=self.dice.randrange(200))
        self.goals.append((number, at))
        self.models.warehouse.insert(
            f"{PREFIX}intermediate.int_goals__reached",
            pl.DataFrame(
                {
                    "is_month": [False], "kind": ["campaign"], "campaign": ["win_back"], "contact_id": [number],
                    "reached_at": [at],
                }
            ),
        )  # fmt: skip

    def buy(self, count: int) -> None:
        rows = [
            (
                self.dice.randrange(120),
                moment("04-20") + timedelta(hours=self.dice.randrange(1400)),
                float(self.dice.randrange(1, 90)),
            )
            for _ in range(count)
        ]
        frame = pl.DataFrame(rows, schema=["contact_id", "ordered_at", "revenue"], orient="row").with_columns(
            pl.col("ordered_at").cast(pl.Datetime("ms", "UTC")), pl.lit(True).alias("is_sale")
        )
        self.models.warehouse.insert(f"{PREFIX}marts.orders", frame)
        self.orders += rows

    def build(self, offset: timedelta = timedelta(0)) -> None:
        self.models.build("--select", *OWN, offset=offset)

    def reference(self) -> dict[tuple[str, str, str], tuple[float, ...]]:
        """contacts, sum, squares, then squares and products of before and of below, by variant, metric and day."""
        of: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for one in self.messages.values():
            went = one["status"] == "sent" or one["variant"] == "holdout"
            if went and one["variant"] != "remainder":
                of[one["ledger_contact_id"]].append(one)
        sums: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0] * 9)
        for number, messages in of.items():
            if len({one["variant"] for one in messages}) > 1:
                continue
            first = min(messages, key=lambda one: one["created_at"])
            since = first["created_at"]
            values: dict[str, tuple[float, float, float]] = {}
            for metric, column in _TIMES.items():
                columns = (column, "first_clicked_at") if metric == "opens" else (column,)
                times = [one[name] for one in messages for name in columns if one[name]]
                values[metric] = (float(bool(times) and min(times) < since + WEEK), 0.0, 0.0)
            reached = [at for who, at in self.goals if who == number]
            values["conversions"] = (float(bool(reached) and since <= min(reached) < since + WEEK), 0.0, 0.0)
            mine = [(at, amount) for who, at, amount in self.orders if who == number]
            after = [amount for at, amount in mine if since <= at < since + WEEK]
            before = [amount for at, amount in mine if since - timedelta(days=56) <= at < since]
            orders = float(len(after))
            values["order_revenue"] = (sum(after), sum(before), 0.0)
            values["orders_placed"] = (orders, float(len(before)), 0.0)
            values["average_order_value"] = (sum(after), 0.0, orders)
            for metric, (value, earlier, below) in values.items():
                row = sums[first["variant"], metric, f"{since:%F}"]
                products = (earlier, earlier**2, value * earlier, below, below**2, value * below)
                for at, more in enumerate((1, value, value**2, *products)):
                    row[at] += more
        return {key: tuple(row) for key, row in sums.items()}

    def found(self) -> dict[tuple[str, str, str], tuple[float, ...]]:
        rows = self.models.rows(
            """
            select variant, metric, toString(exposed_on), toFloat64(contacts_count), value_sum, value_square_sum,
                before_sum, before_square_sum, product_sum,
                denominator_sum, denominator_square_sum, denominator_product_sum
            from marts.experiment_sums where experiment = 'tone'
            """
        )
        return {row[:3]: row[3:] for row in rows}


def test_sums_are_those_of_the_reference_day_after_day(models: Models) -> None:
    models.clear()
    test = Test(models)
    record(models, "tone", "campaign", "win_back")
    test.send("05-28", range(80))
    test.happen(150)
    test.buy(150)
    test.build()
    reference = test.reference()
    assert test.found() == reference
    assert {key[0] for key in reference} == {"plain", "warm", "holdout"}
    assert reference["warm", "clicks", "2011-05-28"][1] > 0

    # a second round, to some of them again, and in one case another variant; late answers to the first
    test.send("06-03", range(40, 120), mixed=45)
    for _ in range(5):
        test.happen(40)
    test.buy(60)
    test.build()
    assert test.found() == test.reference()
    assert models.value("select countIf(is_mixed) from marts.experiment_exposures") == 1
    stamp = models.value("select max(rebuilt_at) from marts.experiment_sums")

    # nothing new: weeks later nothing is summed anew, unless a metric was added, which tells of the past, too
    later = timedelta(days=40)
    test.build(later)
    assert models.value("select max(rebuilt_at) from marts.experiment_sums") == stamp
    models.warehouse.execute(
        f"alter table {PREFIX}marts.experiment_sums delete where metric = 'orders_placed' settings mutations_sync = 1"
    )
    test.build(later)
    assert test.found() == test.reference()


def test_a_split_of_a_journey_exposes_whoever_went_through_it(models: Models) -> None:
    models.clear()
    Test(models)
    warehouse = models.warehouse
    warehouse.execute("drop database if exists campaigns")
    define_tables(warehouse)
    try:
        record(models, "first_order.offer", "journey", "first_order.offer")
        day = "toDateTime64('2011-06-01 12:00:00', 3, 'UTC')"
        later = "toDateTime64('2011-06-03 12:00:00', 3, 'UTC')"
        move = "(1, 'first_order', {}, {}, 1, 'v', '{}', '{}', '{}', '', '{}', {})"
        moves = [
            move.format(1, 1, "offer", "plain", "hello", "hash 7", day),
            move.format(2, 1, "offer", "warm", "", "hash 600000", day),
            move.format(3, 1, "offer", "plain", "hello", "outside its layer", day),
            move.format(1, 2, "hello", "goal", "", "", later).replace("'', '', ", "'', 'goal', "),
        ]
        warehouse.execute(
            f"""
            insert into campaigns.journey_moves (tick, journey, contact_id, sequence, entry, version, previous_step,
                outcome, step, ending, cause, entered_at)
            values {", ".join(moves)}
            """
        )
        warehouse.execute("insert into campaigns.journey_ticks (journey, tick) values ('first_order', 1)")
        models.build("--select", *OWN)
        # a second time, with the tests of the models
        models.build("--select", *OWN[:5], "--exclude", "path:models/staging")
        rows = models.rows(
            """
            select contact_id, variant, is_converted, message_id, is_mixed from marts.experiment_exposures
            order by contact_id
            """
        )
        # a way without a message exposes as well; who is outside the layer is not tested
        assert rows == [(1, "plain", True, "", False), (2, "warm", False, "", False)]
    finally:
        warehouse.execute("drop database if exists campaigns")
