"""CDNOW, the data set that models of customer lifetime are published with: our summaries beside the published ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from models import Models

from warehouse.loads import load_crm_records, load_events

DATA = Path(os.environ.get("MAILHOUSE_DATA_DIR") or Path(__file__).parents[3] / "shared/data")
CDNOW = DATA / "cdnow"
CALIBRATED_TO = datetime(1997, 9, 30, 23, 59, tzinfo=UTC)
"""End of the 39 weeks that published parameters are fitted to; the data go on to June 1998."""
pytestmark = pytest.mark.skipif(
    not CDNOW.is_dir(), reason=f"{CDNOW} is not on this machine; name the folder in MAILHOUSE_DATA_DIR"
)


@pytest.fixture(scope="module")
def purchases() -> pl.DataFrame:
    """One row a line of the file: customer, day, pieces, dollars."""
    lines = [line.split() for line in (CDNOW / "CDNOW_sample.txt").read_text().splitlines() if line.strip()]
    return (
        pl.DataFrame(lines, schema=["master", "customer", "day", "pieces", "dollars"], orient="row")
        .with_columns(pl.col("customer").cast(pl.Int64), pl.col("day").str.to_date("%Y%m%d"))
        .with_row_index("line")
    )


@pytest.fixture(scope="module")
def built(models: Models, purchases: pl.DataFrame) -> Iterator[Models]:
    """Customers as CRM contacts, purchases as orders, seen on the last day of the calibration."""
    noon = pl.col("day").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC") + pl.duration(hours=12)
    customers = purchases.select(pl.col("customer").unique().sort())
    load_crm_records(
        models.warehouse,
        customers.select(
            pl.lit("shop").alias("source"),
            pl.lit("contact").alias("object"),
            pl.col("customer").cast(pl.String).alias("external_id"),
            pl.lit(datetime(1997, 1, 1, tzinfo=UTC)).alias("updated_at"),
            pl.lit(False).alias("is_deleted"),
            pl.concat_str(
                pl.lit('{"email": "customer-'), pl.col("customer").cast(pl.String), pl.lit('@example.com"}')
            ).alias("properties"),
        ),
    )
    items = pl.concat_str(
        pl.lit('{"order_id": "'),
        pl.col("line").cast(pl.String),
        pl.lit(
            '", "currency": "USD", "items": [{"line_number": 1, "product_id": "CD", "quantity": 1, "unit_price": "'
        ),
        pl.col("dollars"),
        pl.lit('"}]}'),
    )
    load_events(
        models.warehouse,
        # a few purchases cost nothing, which for us is no sale, but count in the published figures: a cent
        purchases.with_columns(
            pl.when(pl.col("dollars").cast(pl.Float64) > 0)
            .then("dollars")
            .otherwise(pl.lit("0.01"))
            .alias("dollars")
        ).select(
            pl.format("shop:{}", "line").alias("event_id"),
            pl.lit("order.placed").alias("type"),
            pl.lit("shop").alias("source"),
            pl.col("customer").cast(pl.String).alias("external_id"),
            noon.alias("occurred_at"),
            noon.alias("received_at"),
            items.alias("properties"),
        ),
    )
    models.now = CALIBRATED_TO
    models.build(
        "--select",
        "+purchase_summaries",
        "+contacts",
        "+orders",
        "--exclude-resource-type",
        "unit_test",
        "test",
    )
    models.build("--select", "purchase_summaries,resource_type:test", command="test")
    yield models


def test_every_purchase_is_an_order(built: Models, purchases: pl.DataFrame) -> None:
    assert purchases.height == 6_919
    assert built.rows("select uniqExact(contact_id), count() from marts.orders") == [(2_357, 6_919)]
    days = purchases.select("customer", "day").unique().height
    assert built.value("select uniqExact(contact_id, toDate(ordered_at)) from marts.orders") == days


def test_summaries_equal_the_published_ones(built: Models) -> None:
    """All customers; the published ones are in weeks, to two places."""
    published = pl.read_csv(CDNOW / "cdnow_customers_summary.csv")
    assert published.height == 2_357
    ours = built.frame(
        """
        select toInt64(extract(email, '[0-9]+')) as ID, frequency, recency_days / 7 as recency, age_days / 7 as T,
            monetary_value, revenue
        from marts.purchase_summaries inner join marts.contacts as contacts using contact_id
        """.replace("join marts.", "join dbt_test_marts.")
    )
    both = published.join(ours, on="ID", suffix="_ours")
    assert both.height == 2_357
    wrong = both.filter(
        (pl.col("frequency") != pl.col("frequency_ours"))
        | ((pl.col("recency") - pl.col("recency_ours")).abs() > 0.0051)
        | ((pl.col("T") - pl.col("T_ours")).abs() > 0.0051)
    )
    assert wrong.height == 0, wrong
    assert both.filter((pl.col("frequency") == 0) != (pl.col("monetary_value") == 0)).height == 0
