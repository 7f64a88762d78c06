from __future__ import annotations

import polars as pl
import pytest

from warehouse.settings import PROJECT_ROOT


@pytest.fixture(scope="session")
def online_retail() -> pl.DataFrame:
    """Lines of real orders: 168,662 of 2,931 contacts."""
    path = PROJECT_ROOT / "demo/data/online_retail.parquet"
    if not path.exists():
        pytest.skip("demo/data/online_retail.parquet is not there")
    lines = pl.read_parquet(path)
    return lines.filter(
        pl.col("CustomerID").is_not_null()
        & ~pl.col("InvoiceNo").str.starts_with("C")
        & (pl.col("Quantity") > 0)
        & (pl.col("UnitPrice") > 0)
    ).select(
        contact_id="CustomerID",
        product_id="StockCode",
        ordered_at=pl.col("InvoiceDate").str.to_datetime("%m/%d/%y %H:%M", time_zone="UTC", time_unit="ms"),
        quantity="Quantity",
    )
