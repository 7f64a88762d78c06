"""Predictions from the warehouse and back: promoted if better, scored anew each day, and a plain word where
data lack.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from location import Location

from ml.predictions.lifetime import BetaGeoModel, purchase_summaries
from ml.predictions.propensity import FEATURES
from orchestration.lib.model_store import FORMAT_VERSION, ModelStore, ModelStoreError
from orchestration.lib.predictions import Report, refresh_predictions
from warehouse.client import Warehouse

NOW = datetime(2011, 6, 27, 3, 30, tzinfo=UTC)
MODELS = ("churn", "purchase", "lifetime_value")
LONG_AGO = pl.lit(date(2010, 12, 1))
CHECKS = ("is_calibrated", "has_not_drifted")


def sales(n: int, seed: int = 0) -> pl.DataFrame:
    """Orders of customers who leave: contact, day, revenue; half a year of them."""
    random = np.random.default_rng(seed)
    rows = []
    for contact in range(1, n + 1):
        day = date(2010, 12, 1) + timedelta(days=int(random.integers(0, 150)))
        rate = random.choice([1 / 200, 1 / 12])
        while day < NOW.date():
            rows.append((contact, day, round(float(random.gamma(3.0, 10.0)) + 1, 2)))
            if random.random() < 0.1:
                break
            day += timedelta(days=1 + int(min(random.exponential(1 / max(rate, 1e-4)), 10_000)))
    return pl.DataFrame(
        rows, schema={"contact_id": pl.Int64, "ordered_on": pl.Date, "revenue": pl.Float64}, orient="row"
    )


def features(orders: pl.DataFrame, days: list[date]) -> pl.DataFrame:
    """The columns of contact_features that orders tell, as of each day."""
    frames = []
    for day in days:
        past = orders.filter(pl.col("ordered_on") < day)
        counts = past.group_by("contact_id").agg(
            pl.len().alias("orders_count"),
            pl.col("revenue").sum(),
            (pl.lit(day) - pl.col("ordered_on").max()).dt.total_days().sub(1).alias("days_since_order"),
            *(
                (pl.col("ordered_on") >= day - timedelta(days=back)).sum().alias(f"orders_{back}d")
                for back in (30, 90, 365)
            ),
        )
        summaries = purchase_summaries(past, day - timedelta(days=1)).rename(
            {"recency": "recency_days", "age": "age_days"}
        )
        frames.append(summaries.join(counts, on="contact_id").with_columns(pl.lit(day).alias("as_of")))
    frame = pl.concat(frames)
    return frame.with_columns(
        *(
            pl.lit(None if name.startswith("days_") or name == "silence" else 0.0, pl.Float64).alias(name)
            for name in FEATURES
            if name not in frame.columns
        )
    ).select("contact_id", "as_of", *(pl.col(name).cast(pl.Float64) for name in FEATURES))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore.under(tmp_path)


class World:
    """A warehouse with what predictions read, made by hand."""

    def __init__(self, warehouse: Warehouse, store: ModelStore) -> None:
        self.warehouse, self.store = warehouse, store

    def fill(self, orders: pl.DataFrame, now: datetime = NOW) -> None:
        today = now.date()
        days = [
            today - timedelta(days=k)
            for k in range(371)
            if k == 0 or (today - timedelta(days=k)).weekday() == 0
        ]
        for database in ("features", "marts"):
            self.warehouse.execute(f"drop database if exists {database}")
            self.warehouse.execute(f"create database {database}")
        columns = ", ".join(f"{name} Nullable(Float64)" for name in FEATURES)
        for table, types in {
            "features.feature_dates": "as_of Date",
            "features.contact_features": f"contact_id Int64, as_of Date, {columns}",
            "marts.contacts": "contact_id Int64, is_deleted Bool",
            "marts.orders": (
                "contact_id Nullable(Int64), ordered_at DateTime64(3, 'UTC'), revenue Decimal(18, 2), is_sale Bool"
            ),
        }.items():
            self.warehouse.execute(f"create table {table} ({types}) engine = MergeTree order by tuple()")
        self.warehouse.insert("features.feature_dates", pl.DataFrame({"as_of": days}))
        first = orders["ordered_on"].min() or today
        used = [day for day in days if day > first]
        if used:
            self.warehouse.insert("features.contact_features", features(orders, used))
        contacts = orders.select(pl.col("contact_id").unique()).with_columns(is_deleted=pl.lit(False))
        self.warehouse.insert("marts.contacts", contacts)
        self.warehouse.insert(
            "marts.orders",
            orders.select(
                "contact_id",
                pl.col("ordered_on").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").alias("ordered_at"),
                pl.col("revenue").cast(pl.Decimal(18, 2)),
                pl.lit(True).alias("is_sale"),
            ),
        )

    def refresh(self, now: datetime = NOW) -> dict[str, Report]:
        return {report.model: report for report in refresh_predictions(self.warehouse, self.store, now)}

    def scores(self) -> pl.DataFrame:
        return self.warehouse.frame(
            "select model, model_version, as_of, count() as n, uniqExact(contact_id) as people, "
            "min(score) as low, max(score) as high from raw.predictions group by model, model_version, as_of "
            "order by model, model_version, as_of"
        )

    def verdicts(self) -> dict[str, int]:
        rows = self.warehouse.frame(
            "select model, count() as n from raw.model_evaluations where metric = 'promoted' group by model"
        )
        return dict(rows.iter_rows())


@pytest.fixture
def world(warehouse: Warehouse, store: ModelStore) -> Iterator[World]:
    yield World(warehouse, store)
    for database in ("features", "marts"):
        warehouse.execute(f"drop database if exists {database}")


@pytest.mark.slow
def test_models_are_promoted_scored_anew_and_replaced_only_by_better_ones(world: World) -> None:
    world.fill(sales(1_200))
    first = world.refresh()
    assert {name: report.is_new for name, report in first.items()} == dict.fromkeys(MODELS, True)
    for report in first.values():
        assert report.judgement is not None and report.judgement.loss < report.judgement.baseline_loss
        assert report.scored > 500 and "Promoted" in report.statement
        assert "data:image/png" in report.card and report.drift is not None
    scores = world.scores()
    assert scores["model"].to_list() == ["churn", "lifetime_value", "next_order", "purchase"]
    assert (scores["n"] == scores["people"]).all()
    assert set(scores["as_of"]) == {NOW.replace(hour=3, minute=30) - timedelta(hours=3, minutes=30)}
    chances = scores.filter(pl.col("model").is_in(["churn", "purchase"]))
    assert (chances["low"] >= 0).all() and (chances["high"] <= 1).all()
    assert world.verdicts() == dict.fromkeys(scores["model"], 1)
    evaluated = world.warehouse.frame(
        "select metric, value from raw.model_evaluations where model = 'churn' and metric != 'promoted'"
    )
    assert {"log_loss", "recency_log_loss", "base_rate_log_loss", "auc", "lift"} <= set(evaluated["metric"])

    # an hour later, the same data: the challenger is the same, and equal is not better; scores are replaced
    again = world.refresh(NOW + timedelta(hours=1))
    assert [report.is_new for report in again.values()] == [False] * 3
    assert all("stays in place" in report.statement for report in again.values())
    assert world.scores().equals(scores)
    assert len(list(world.store.folder.glob("*/*.model"))) == 3

    # a version whose file was tampered with is not used, and what takes its place has to beat the baseline
    path = world.store.path("purchase", first["purchase"].version)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    after = world.refresh(NOW + timedelta(hours=2))["purchase"]
    assert after.is_new and "damaged" in after.statement
    assert world.verdicts()["purchase"] == 2


@pytest.mark.parametrize(
    ("orders", "said"),
    [
        pytest.param(sales(0), "there are no orders", id="nobody"),
        pytest.param(sales(1, seed=4), "not enough data", id="one", marks=pytest.mark.slow),
        pytest.param(
            pl.DataFrame({"contact_id": range(1, 301), "revenue": [9.99] * 300}).with_columns(
                ordered_on=LONG_AGO
            ),
            "it happened",
            id="all bought once, long ago, and never again",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            pl.DataFrame({"contact_id": list(range(1, 61)) * 30, "revenue": [5.0] * 1_800}).with_columns(
                ordered_on=LONG_AGO + pl.duration(days=7) * (pl.int_range(0, 1_800) // 60)
            ),
            "it happened",
            id="all buy every week, for the same",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            pl.DataFrame(
                {"contact_id": [1, 2], "revenue": [1.0, 2.0], "ordered_on": [date(2011, 6, 20)] * 2}
            ),
            "days of history",
            id="a shop of last week",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_where_data_lack_it_is_said_and_nothing_is_predicted(
    world: World, orders: pl.DataFrame, said: str
) -> None:
    world.fill(orders)
    reports = world.refresh()
    assert set(reports) == set(MODELS)
    for report in reports.values():
        assert report.statement.startswith("Not enough data"), report.statement
        assert report.version == "" and report.scored == 0 and report.judgement is None
    assert said in reports["churn"].statement.lower()
    assert world.scores().height == 0 and world.verdicts() == {}
    assert not list(world.store.folder.glob("*/*.model"))


def fitted() -> BetaGeoModel:
    model = BetaGeoModel()
    model.parameters_ = {"r": 0.2, "alpha": 4.4, "a": 0.8, "b": 2.4}
    return model


def test_a_model_comes_back_as_it_was(store: ModelStore) -> None:
    digest = store.save("churn", "v1", fitted(), created_at=NOW, metadata={"rows": 3})
    found = store.load("churn", "v1", sha256=digest)
    assert found.model.parameters_ == fitted().parameters_ and found.header["metadata"] == {"rows": 3}
    assert found.sha256 == digest
    with pytest.raises(ModelStoreError, match="not the one that was promoted"):
        store.load("churn", "v1", sha256="0" * 64)
    with pytest.raises(ModelStoreError, match="cannot be read"):
        store.load("churn", "v2")
    with pytest.raises(ModelStoreError, match="letters, digits"):
        store.path("../churn", "v1")
    store.path("churn", "v1").rename(store.path("churn", "v3"))
    with pytest.raises(ModelStoreError, match="is of churn v1"):
        store.load("churn", "v3")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": FORMAT_VERSION + 1}, f"format {FORMAT_VERSION + 1} is not known"),
        ({"format": "something"}, "no file of a model"),
        ({"sha256": "0" * 64}, "damaged"),
        ({"libraries": {"scikit-learn": "0.1.2"}}, r"written with scikit-learn 0\.1\.2"),
        (None, "no file of a model"),
    ],
)
def test_files_that_are_not_understood_are_refused(store: ModelStore, change: dict | None, said: str) -> None:
    store.save("churn", "v1", fitted(), created_at=NOW, metadata={})
    path = store.path("churn", "v1")
    line, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(
        body if change is None else json.dumps(json.loads(line) | change).encode() + b"\n" + body
    )
    with pytest.raises(ModelStoreError, match=said):
        store.load("churn", "v1")


class Stranger:
    """No part of a model."""

    def __reduce__(self) -> tuple:
        return (print, ("unpickled",))


def test_what_does_not_belong_into_a_model_is_not_unpickled(
    store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.save("churn", "v1", Stranger(), created_at=NOW, metadata={})
    with pytest.raises(ModelStoreError, match=r"builtins\.print does not belong"):
        store.load("churn", "v1")
    assert "unpickled" not in capsys.readouterr().out


def test_old_versions_go_and_the_one_in_place_stays(store: ModelStore) -> None:
    for number in range(13):
        store.save("churn", f"v{number:02}", number, created_at=NOW, metadata={})
    assert store.prune("churn", {"v00"}) == [f"v{number:02}" for number in (*range(12, 2, -1), 0)]
    assert store.load("churn", "v00").model == 0


def test_the_demo_is_predicted(location: Location) -> None:
    """Through Dagster: cards and checks in the UI, scores in the warehouse, segments and a mart that read
    them.
    """
    key = dg.AssetKey(["raw", "predictions"])
    event = location.instance.get_latest_materialization_event(key)
    assert event is not None and event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    for model in MODELS:
        assert "Promoted" in metadata[f"{model}_statement"].value, metadata[f"{model}_statement"].value
        assert metadata[f"{model}_contacts"].value == 2_931
        assert "data:image/png" in metadata[f"{model}_card"].value
    records = location.instance.event_log_storage.get_asset_check_summary_records(
        [dg.AssetCheckKey(key, f"{model}_{check}") for model in MODELS for check in CHECKS]
    )  # fmt: skip
    assert len(records) == 6
    assert all(record.last_check_execution_record is not None for record in records.values())
    found = location.warehouse.frame(
        """
        select count() as n,
            countIf(churn_probability is null or lifetime_value <= 0 or next_order_on <= '2011-06-26') as odd,
            sum(expected_orders) as orders
        from marts.contact_predictions
        """
    ).row(0, named=True)
    assert found["n"] == 2_931 and found["odd"] == 0 and found["orders"] > 2_931
