"""Credit of messages: public figures, an independent Markov chain, and that a day's increment equals a rebuild."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from models import PREFIX, Models, moment, order

DATA = Path(os.environ.get("MAILHOUSE_DATA_DIR") or Path(__file__).parents[3] / "shared/data")
PATHS = DATA / "attribution_paths"
MODELS = ("first_touch", "last_touch", "linear", "position_based", "time_decay", "data_driven")
START = datetime(2011, 3, 1, tzinfo=UTC)
HALF_LIFE_HOURS = 7 * 24
NO_TESTS = ("--exclude-resource-type", "unit_test", "test")
MOMENT = "{} DateTime64(3, 'UTC')"
public_paths = pytest.mark.skipif(
    not PATHS.is_dir(), reason=f"{PATHS} is not on this machine; name the folder in MAILHOUSE_DATA_DIR"
)


def read_paths() -> list[dict[str, Any]]:
    """The public paths: channels in order, and how often they led to a conversion and to nothing."""
    with gzip.open(PATHS / "mta_data.csv.gz", "rt") as file:
        return [
            {
                "channels": row["path"].split(" > "),
                "conversions": int(row["total_conversions"]),
                "nulls": int(row["total_null"]),
                "value": float(row["total_conversion_value"]),
            }
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def paths() -> list[dict[str, Any]]:
    return read_paths()


@pytest.fixture(scope="module")
def credited(models: Models, paths: list[dict[str, Any]]) -> Iterator[Models]:
    """Every model of attribution over the public paths, put where our touches and conversions come from.

    Each journey is a person; their touches are an hour apart, the conversion an hour after the last one.
    """
    stamp = pl.DataFrame({"at": [START]})
    # no message of ours is behind them: what places there are is read off messages, who touched whom off touches
    channels = sorted({channel for path in paths for channel in path["channels"]})
    put(
        models,
        "intermediate.int_messages__followed",
        pl.DataFrame({"name": channels, "channel": channels}).with_columns(
            pl.lit("campaign").alias("kind"),
            *(
                pl.lit(START).alias(name)
                for name in ("rebuilt_at", "created_at", "sent_at", "first_opened_at", "first_clicked_at")
            ),
        ),
        f"""
        name LowCardinality(String), channel LowCardinality(String), kind LowCardinality(String),
        {MOMENT.format("rebuilt_at")}, {MOMENT.format("created_at")},
        sent_at Nullable(DateTime64(3, 'UTC')), first_opened_at Nullable(DateTime64(3, 'UTC')),
        first_clicked_at Nullable(DateTime64(3, 'UTC'))
        """,
    )
    put(
        models,
        "intermediate.int_contacts__identified",
        stamp.rename({"at": "moved_at"}),
        MOMENT.format("moved_at"),
    )
    journeys = pl.DataFrame(
        [
            (number, path["value"] / path["conversions"] if converted else 0.0, converted)
            for number, path in enumerate(paths)
            for converted, count in ((True, path["conversions"]), (False, path["nulls"]))
            for _ in range(count)
        ],
        schema={"path": pl.Int64, "value": pl.Float64, "is_converted": pl.Boolean},
        orient="row",
    ).with_row_index("contact_id", offset=1)
    steps = pl.DataFrame(
        {"path": range(len(paths)), "channel": [path["channels"] for path in paths]},
        schema={"path": pl.Int64, "channel": pl.List(pl.String)},
    )
    touches = (
        journeys.join(steps, on="path")
        .explode("channel", empty_as_null=True)
        .with_columns(pl.int_range(pl.len()).over("contact_id").alias("position"))
    )
    hours = (
        pl.lit(START).dt.replace_time_zone(None) + pl.duration(hours=pl.col("position"))
    ).dt.replace_time_zone("UTC")
    put(
        models,
        "intermediate.int_attribution__touches",
        touches.select(
            pl.format("{}-{}", "contact_id", "position").alias("message_id"),
            pl.col("contact_id").cast(pl.Int64),
            pl.lit("campaign").alias("kind"),
            pl.col("channel").alias("campaign"),
            "channel",
            pl.format("campaign/{}", "channel").alias("state"),
            pl.lit(0, dtype=pl.UInt64).alias("tie"),
            pl.lit(START).alias("created_at"),
            hours.alias("touched_at"),
        ),
        """
        message_id String, contact_id Int64, kind LowCardinality(String), campaign LowCardinality(String),
        channel LowCardinality(String), state LowCardinality(String), tie UInt64,
        created_at DateTime64(3, 'UTC'), touched_at DateTime64(3, 'UTC')
        """,
    )
    lengths = touches.group_by("contact_id").agg(pl.len().alias("position"))
    put(
        models,
        "marts.conversions",
        journeys.filter("is_converted")
        .join(lengths, on="contact_id")
        .select(
            pl.format("order:{}", "contact_id").alias("conversion_id"),
            pl.col("contact_id").cast(pl.Int64),
            pl.lit("order").alias("goal"),
            pl.lit(0).cast(pl.Decimal(18, 2)).alias("revenue"),
            hours.alias("converted_at"),
        ),
        """
        conversion_id String, contact_id Int64, goal LowCardinality(String), revenue Decimal(18, 2),
        converted_at DateTime64(3, 'UTC')
        """,
    )
    values = journeys.filter("is_converted").select(pl.format("order:{}", "contact_id").alias("id"), "value")
    put(models, "staging.path_values", values, "id String, value Float64")
    models.build(
        *("--select", "int_attribution__transitions+", "--exclude", "path:models/bi", "--full-refresh"),
        *("--exclude-resource-type", "unit_test"),
    )
    yield models


def put(models: Models, name: str, frame: pl.DataFrame, columns: str) -> None:
    """A table in the place of a model."""
    table = f"{PREFIX}{name}"
    models.warehouse.execute(f"create database if not exists {table.split('.')[0]}")
    models.warehouse.execute(f"drop table if exists {table}")
    models.warehouse.execute(f"create table {table} ({columns}) engine = MergeTree order by tuple()")
    models.warehouse.insert(table, frame)


def removal(paths: list[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """Chance of a conversion, and removal effects, by solving the chain anew without each channel."""
    names = sorted({channel for path in paths for channel in path["channels"]})
    index = {name: number for number, name in enumerate(names)}
    start, goal, lost = len(names), len(names) + 1, len(names) + 2
    counts = np.zeros((len(names) + 3, len(names) + 3))
    for path in paths:
        states = [start, *(index[channel] for channel in path["channels"])]
        for here, there in pairwise(states):
            counts[here, there] += path["conversions"] + path["nulls"]
        counts[states[-1], goal] += path["conversions"]
        counts[states[-1], lost] += path["nulls"]
    chances = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def reaching(removed: int | None) -> float:
        kept = [state for state in range(start + 1) if state != removed]
        within = np.eye(len(kept)) - chances[np.ix_(kept, kept)]
        return float(np.linalg.solve(within, chances[kept, goal])[-1])

    whole = reaching(None)
    return whole, {name: 1 - reaching(number) / whole for name, number in index.items()}


@public_paths
def test_first_last_and_linear_equal_the_public_figures(credited: Models) -> None:
    reference = json.loads((PATHS / "reference_heuristic.json").read_text())
    expected = reference["heuristic_ChannelAttribution_2_2_5"]
    sums = ", ".join(f"sum({model}_conversions) as {model}" for model in MODELS)
    found = {
        row["channel"]: row
        for row in credited.frame(
            f"select channel, {sums} from marts.attribution_by_channel group by channel"
        ).to_dicts()
    }
    assert set(found) == set(expected)
    values = {
        row["channel"]: row
        for row in credited.frame(
            """
            select channel, sum(first_touch_credit * value) as first_touch,
                sum(last_touch_credit * value) as last_touch, sum(linear_credit * value) as linear
            from marts.attribution_touchpoints as touchpoints
            inner join staging.path_values as path_values on id = conversion_id
            group by channel
            """.replace("join staging.", f"join {PREFIX}staging.")
        ).to_dicts()
    }
    for channel, figures in expected.items():
        assert found[channel]["first_touch"] == figures["first_touch_conversions"], channel
        assert found[channel]["last_touch"] == figures["last_touch_conversions"], channel
        assert found[channel]["linear"] == pytest.approx(figures["linear_touch_conversions"], rel=1e-11)
        for model, name in (("first_touch", "first"), ("last_touch", "last"), ("linear", "linear")):
            wanted = figures[f"{name}_touch_value"]
            assert values[channel][model] == pytest.approx(wanted, rel=1e-11), (channel, model)
    for model in MODELS:
        total = sum(row[model] for row in found.values())
        assert total == pytest.approx(reference["totals"]["conversions"], rel=1e-11), model
    assert sum(row["linear"] for row in values.values()) == pytest.approx(
        reference["totals"]["value"], rel=1e-11
    )


@public_paths
def test_removal_effects_equal_a_chain_solved_without_each_channel(
    credited: Models, paths: list[dict[str, Any]]
) -> None:
    whole, expected = removal(paths)
    assert 0.2 < whole < 0.25
    total = sum(expected.values())
    for dimension in ("channel", "campaign"):
        rows = credited.frame(
            f"select * from marts.attribution_removal_effects where dimension = '{dimension}'"
        ).to_dicts()
        assert len({row["month"] for row in rows}) == 3, "learned from in the months after, too"
        assert {row["kind"] for row in rows} == {"" if dimension == "channel" else "campaign"}
        assert {row["name"] for row in rows} == set(expected)
        for row in rows:
            assert row["removal_effect"] == pytest.approx(expected[row["name"]], rel=1e-9)
            assert row["removal_share"] == pytest.approx(expected[row["name"]] / total, rel=1e-9)
            assert row["conversion_probability"] == pytest.approx(whole, rel=1e-9)


@public_paths
def test_credit_on_every_path_is_what_each_model_says(credited: Models, paths: list[dict[str, Any]]) -> None:
    _, effects = removal(paths)
    rows = credited.frame(
        """
        select * from marts.attribution_touchpoints
        where cityHash64(conversion_id) % 20 = 0 order by conversion_id, position
        """
    ).to_dicts()
    by_conversion = defaultdict(list)
    for row in rows:
        by_conversion[row["conversion_id"]].append(row)
    assert len(by_conversion) > 500
    for touches in by_conversion.values():
        count = len(touches)
        assert [touch["position"] for touch in touches] == list(range(1, count + 1))
        ends = {1: [1.0], 2: [0.5, 0.5]}.get(count, [0.4, *[0.2 / max(count - 2, 1)] * (count - 2), 0.4])
        # one touch an hour, the conversion an hour after the last
        decayed = [0.5 ** ((count - place) / HALF_LIFE_HOURS) for place in range(count)]
        removed = [effects[touch["channel"]] for touch in touches]
        expected = {
            "first_touch": [1.0] + [0.0] * (count - 1),
            "last_touch": [0.0] * (count - 1) + [1.0],
            "linear": [1 / count] * count,
            "position_based": ends,
            "time_decay": [one / sum(decayed) for one in decayed],
            "data_driven": [one / sum(removed) for one in removed],
        }
        for model, shares in expected.items():
            assert [touch[f"{model}_credit"] for touch in touches] == pytest.approx(shares, rel=1e-9), model


class History:
    """Random messages, opens and orders of a few people over some months, loaded bit by bit."""

    def __init__(self, models: Models, seed: int) -> None:
        self.models = models
        self.dice = random.Random(seed)
        self.people = [f"p{number}@example.com" for number in range(12)]
        self.sent: list[tuple[str, datetime]] = []
        self.orders: list[tuple[str, str]] = []
        self.count = 0
        for number, email in enumerate(self.people):
            models.contact(str(number), email, "01-01")
        ids = models.warehouse.frame(
            "select arrayJoin({emails:Array(String)}) as email, toInt64(bitShiftRight(sipHash64(email), 1)) as id",
            {"emails": self.people},
        )
        self.ids = dict(ids.rows())

    def campaigns(self, *goals: tuple[str, str, str, int]) -> None:
        """Goals of campaigns: name, event, condition, seconds."""
        rows = [
            {
                "kind": "campaign", "name": name, "version": "1", "description": "", "channel": "email",
                "category": "marketing", "segment": "", "goal_event": event, "goal_where": where,
                "goal_within_seconds": within, "experiment": "", "spec": "{}",
            }
            for name, event, where, within in goals
        ]  # fmt: skip
        frame = pl.DataFrame(rows).with_columns(pl.col("goal_within_seconds").cast(pl.UInt32))
        self.models.warehouse.insert("raw.campaigns", frame)

    def go_on(self, first_day: datetime, days: int, count: int) -> None:
        """More messages of these days; opens, orders and cancellations, some of messages long ago."""
        rows, events = [], []
        for _ in range(count):
            self.count += 1
            email = self.dice.choice(self.people)
            at = first_day + timedelta(minutes=self.dice.randrange(days * 1440))
            message_id = f"m{self.count}"
            self.sent.append((message_id, at))
            rows.append(
                {
                    "message_id": message_id, "sequence": 1, "status": "sent", "kind": "campaign",
                    "name": self.dice.choice(["spring", "win_back", "news", "quiet"]), "occurrence": f"{at:%F}",
                    "contact_id": self.ids[email], "email": email, "channel": self.dice.choice(["email", "sms"]),
                    "changed_at": at, "details": "{}",
                }
            )  # fmt: skip
        frame = pl.DataFrame(rows).with_columns(
            pl.col("sequence").cast(pl.UInt32), pl.col("changed_at").cast(pl.Datetime("ms", "UTC"))
        )
        self.models.warehouse.insert("raw.messages", frame)
        for _ in range(count):
            self.count += 1
            message_id, at = self.dice.choice(self.sent)
            events.append(
                {
                    "id": f"e{self.count}", "type": self.dice.choice(["opened", "clicked"]), "message_id": message_id,
                    "at": at + timedelta(minutes=self.dice.randrange(20_000)), "is_machine": self.dice.random() < 0.3,
                }
            )  # fmt: skip
            number, email = f"o{self.count}", self.dice.choice(self.people)
            when = first_day + timedelta(minutes=self.dice.randrange(days * 1440))
            if self.dice.random() < 0.5:
                self.orders.append((number, email))
                events.append(order(number, when, f"{self.dice.randrange(1, 99)}.50", email=email))
            elif self.orders and self.dice.random() < 0.3:
                number, email = self.dice.choice(self.orders)
                cancelled = order(number, when, email=email)
                events.append(cancelled | {"id": f"x{self.count}", "type": "order.cancelled"})
            if self.dice.random() < 0.1:
                deal = {"amount": self.dice.randrange(1000)}
                events.append(
                    {
                        "id": f"d{self.count}",
                        "type": "deal.closed",
                        "at": when,
                        "email": email,
                        "properties": deal,
                    }
                )
        self.models.events(*events)


SELECTED = (
    "--select", "+attribution_touchpoints", "+attribution_by_campaign", "+attribution_removal_effects",
    "+campaign_conversions",
)  # fmt: skip
COMPARED = (
    "attribution_touchpoints",
    "attribution_by_campaign",
    "attribution_removal_effects",
    "campaign_conversions",
)


def contents(models: Models) -> dict[str, list[tuple[Any, ...]]]:
    """Rows of the marts; numbers to nine digits, since sums may be taken in another order."""
    found = {}
    for table in COMPARED:
        frame = models.frame(f"select * from marts.{table}")
        assert frame.height > 0, table
        floats = [name for name, kind in frame.schema.items() if kind == pl.Float64]
        frame = frame.with_columns(pl.col(name).round_sig_figs(9) + 0.0 for name in floats)
        found[table] = sorted(frame.rows(), key=str)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2])
def test_increments_equal_a_rebuild(models: Models, seed: int) -> None:
    models.clear()
    history = History(models, seed)
    history.campaigns(
        ("spring", "order.placed", "", 14 * 86_400),
        ("win_back", "order.placed", "revenue >= 40", 20 * 86_400),
        ("news", "deal.closed", "event.amount < 800", 86_400),
    )
    history.go_on(moment("01-05"), 100, 250)
    models.build(*SELECTED, *NO_TESTS)
    before = contents(models)
    built = models.rows(
        "select month, rebuilt_at from intermediate.int_attribution__paths where is_month order by 1"
    )
    assert len(built) >= 4
    # a day with little: what is closed stays as it is, to the row
    history.go_on(moment("06-20"), 5, 10)
    models.build(*SELECTED, *NO_TESTS, offset=timedelta(hours=1))
    # two people turn out to be one, in all months
    history.models.contact("0", history.people[1], "06-25")
    history.models.contact("77", history.people[0], "06-25", source="hubspot")
    history.go_on(moment("05-20"), 30, 40)
    models.build(*SELECTED, *NO_TESTS, offset=timedelta(hours=2))
    after = contents(models)
    assert after != before
    models.build(*SELECTED, "--full-refresh", *NO_TESTS, offset=timedelta(hours=2))
    rebuilt = contents(models)
    for table in COMPARED:
        assert after[table] == rebuilt[table], table


@pytest.mark.slow
def test_closed_months_are_left_alone(models: Models) -> None:
    models.clear()
    history = History(models, 3)
    history.go_on(moment("01-05"), 160, 300)
    # as it would have come in: what was loaded yesterday and today is looked at again
    for table, at in (("messages", "changed_at"), ("events", "occurred_at")):
        models.warehouse.execute(
            f"alter table raw.{table} update loaded_at = {at} where true settings mutations_sync = 2"
        )
    models.build(*SELECTED, *NO_TESTS)
    stamps = "select month, rebuilt_at from intermediate.int_attribution__paths where is_month order by month"
    before = dict(models.rows(stamps))
    models.events(order("last", "06-26", email=history.people[0]))
    models.build(*SELECTED, *NO_TESTS, offset=timedelta(hours=1))
    after = dict(models.rows(stamps))
    changed = {month for month in after if after[month] != before.get(month)}
    assert 201106 in changed
    assert changed.isdisjoint({201101, 201102, 201103, 201104})
