"""Marts of experiments beside a reference in Python: exposures, windows, machines, sums by day, new metrics."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from models import Models, moment, order

from campaigns.journey_state import define_tables

pytestmark = pytest.mark.slow

SELECT = ("+experiment_sums", "--exclude-resource-type", "unit_test", "test")
OWN = (
    "int_experiments__messages",
    "experiment_exposures",
    "experiment_sums",
    "--exclude-resource-type",
    "unit_test",
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


class Test:
    """Messages of an experiment and what people did: in the warehouse and for the reference."""

    __test__ = False

    def __init__(self, models: Models) -> None:
        self.models, self.dice = models, random.Random(3)
        self.messages: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.orders: list[tuple[int, datetime, float]] = []
        self.ids: dict[int, int] = {}

    def people(self, count: int) -> None:
        for number in range(count):
            self.models.contact(str(number), f"p{number}@example.com", "01-01")
        self.models.build("--select", "+contacts", "--exclude-resource-type", "unit_test", "test")
        rows = self.models.frame("select contact_id, email from marts.contacts")
        self.ids = {int(str(email)[1:].split("@")[0]): contact_id for contact_id, email in rows.iter_rows()}

    def send(self, day: str, contacts: range, *, mixed: int = -1) -> None:
        rows: list[dict[str, Any]] = []
        for number in contacts:
            variant = "warm" if number % 2 else "plain"
            if number % 10 == 9:
                variant = "remainder"
            elif number % 10 == 8:
                variant = "holdout"
            if number == mixed:
                variant = "plain" if variant == "warm" else "warm"
            at = moment(day) + timedelta(minutes=self.dice.randrange(600))
            message = {
                "message_id": f"{day}-{number}", "number": number, "variant": variant, "at": at,
                "status": "skipped" if variant == "holdout" else "failed" if number % 17 == 0 else "sent",
            }  # fmt: skip
            self.messages.append(message)
            rows.append(
                {
                    "message_id": message["message_id"], "sequence": 0, "status": message["status"],
                    "reason": "holdout" if variant == "holdout" else "", "kind": "campaign", "name": "win_back",
                    "occurrence": day, "contact_id": self.ids[number], "email": f"p{number}@example.com",
                    "channel": "email", "provider": "smtp", "experiment": "tone", "variant": variant,
                    "changed_at": at, "details": "{}",
                }
            )  # fmt: skip
        frame = pl.DataFrame(rows).with_columns(
            pl.col("sequence").cast(pl.UInt32), pl.col("changed_at").cast(pl.Datetime("ms", "UTC"))
        )
        self.models.warehouse.insert("raw.messages", frame)

    def happen(self, count: int) -> None:
        sent = [one for one in self.messages if one["status"] == "sent"]
        fresh: list[dict[str, Any]] = []
        for _ in range(count):
            message = self.dice.choice(sent)
            kind = self.dice.choices(
                ["opened", "clicked", "unsubscribed", "complained", "bounced"], [6, 6, 2, 1, 1]
            )[0]
            event = {
                "id": f"e{len(self.events) + len(fresh)}", "type": kind, "message_id": message["message_id"],
                "at": message["at"] + timedelta(hours=self.dice.randrange(1, 300)), "source": "smtp",
            }  # fmt: skip
            if kind in ("opened", "clicked"):
                event["is_machine"] = self.dice.random() < 0.4
            fresh.append(event)
        self.models.events(*fresh)
        self.events += fresh

    def buy(self, count: int) -> None:
        rows = []
        for _ in range(count):
            number, at = (
                self.dice.choice(list(self.ids)),
                moment("04-20") + timedelta(hours=self.dice.randrange(1400)),
            )
            amount = self.dice.randrange(1, 90)
            rows.append(order(f"o{len(self.orders)}", at, f"{amount}.00", email=f"p{number}@example.com"))
            self.orders.append((number, at, float(amount)))
        self.models.events(*rows)

    def reference(self) -> dict[tuple[str, str, str], tuple[float, ...]]:
        """contacts, sum, squares, before, squares, products, by variant, metric and day."""
        of: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for one in self.messages:
            went = one["status"] == "sent" or one["variant"] == "holdout"
            if went and one["variant"] != "remainder":
                of[one["number"]].append(one)
        sums: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0] * 6)
        by_message: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in self.events:
            by_message[event["message_id"]].append(event)
        for number, messages in of.items():
            if len({one["variant"] for one in messages}) > 1:
                continue
            first = min(messages, key=lambda one: one["at"])
            values: dict[str, tuple[float, float]] = {}
            happened = [event for one in messages for event in by_message[one["message_id"]]]
            for metric, kinds in (
                ("opens", ("opened", "clicked")), ("clicks", ("clicked",)), ("unsubscribes", ("unsubscribed",)),
                ("complaints", ("complained",)), ("bounces", ("bounced",)),
            ):  # fmt: skip
                times = [e["at"] for e in happened if e["type"] in kinds and not e.get("is_machine")]
                is_in = bool(times) and min(times) < first["at"] + WEEK
                values[metric] = (float(is_in), 0.0)
            values["conversions"] = (0.0, 0.0)
            mine = [(at, amount) for who, at, amount in self.orders if who == number]
            after = [amount for at, amount in mine if first["at"] <= at < first["at"] + WEEK]
            before = [amount for at, amount in mine if first["at"] - timedelta(days=56) <= at < first["at"]]
            values["order_revenue"] = (sum(after), sum(before))
            values["orders_placed"] = (float(len(after)), float(len(before)))
            for metric, (value, earlier) in values.items():
                row = sums[first["variant"], metric, f"{first['at']:%F}"]
                for at, more in enumerate((1, value, value**2, earlier, earlier**2, value * earlier)):
                    row[at] += more
        return {key: tuple(row) for key, row in sums.items()}

    def found(self) -> dict[tuple[str, str, str], tuple[float, ...]]:
        rows = self.models.rows(
            """
            select variant, metric, toString(exposed_on), toFloat64(contacts_count), value_sum, value_square_sum,
                before_sum, before_square_sum, product_sum
            from marts.experiment_sums where experiment = 'tone'
            """
        )
        return {row[:3]: row[3:] for row in rows}


def test_sums_are_those_of_the_reference_day_after_day(models: Models) -> None:
    models.clear()
    test = Test(models)
    test.people(120)
    record(models, "tone", "campaign", "win_back")
    test.send("05-28", range(80))
    test.happen(150)
    test.buy(150)
    models.build("--select", *SELECT)
    assert test.found() == test.reference()
    reference = test.reference()
    assert {key[0] for key in reference} == {"plain", "warm", "holdout"}

    # a second round, to some of them again, and in one case another variant; late answers to the first
    test.send("06-03", range(40, 120), mixed=45)
    test.happen(200)
    test.buy(60)
    models.build("--select", *SELECT)
    assert test.found() == test.reference()
    assert models.value("select countIf(is_mixed) from marts.experiment_exposures") == 1
    stamp = models.value("select max(rebuilt_at) from marts.experiment_sums")

    # nothing new: weeks later nothing is summed anew, unless a metric was added, which tells of the past, too
    later = timedelta(days=40)
    models.build("--select", *OWN, offset=later)
    assert models.value("select max(rebuilt_at) from marts.experiment_sums") == stamp
    models.warehouse.execute(
        "alter table dbt_test_marts.experiment_sums delete where metric = 'orders_placed' settings mutations_sync = 1"
    )
    models.build("--select", *OWN, offset=later)
    assert test.found() == test.reference()


def test_a_split_of_a_journey_exposes_whoever_went_through_it(models: Models) -> None:
    models.clear()
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
        models.build("--select", *SELECT)
        # a second time, with the models' own tests
        models.build(
            "--select", *OWN[:3], "stg_ledger__experiments", "int_experiments__moves", "path:models/metrics"
        )
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
