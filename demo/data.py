"""Writes the demo's contacts: the known customers of Online Retail, with what a CRM would add to them.

Orders are read from `demo/data/online_retail.parquet` itself
(`content/sources/online_retail_orders.yaml`); see `demo/data/README.md` for its credit. The data set has no
addresses and no consents: both are assumptions made here, named as such in every row of consent
(`text_version`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

ORDERS = Path(__file__).parent / "data" / "online_retail.parquet"
DATE_FORMAT = "%m/%d/%y %H:%M"
WITHHELD_EVERY = 25
"""Customers whose number is a multiple of this gave no consent."""


@dataclass(frozen=True)
class DemoInputs:
    """What was written: the contacts' file, and how many contacts and consents it holds."""

    contacts_file: Path
    contacts: int
    consents: int


def contacts_frame() -> pl.DataFrame:
    """One row a known customer, by number.

    Columns `external_id`, `email`, `country` (of the last invoice), `created_at` (first invoice), and
    `marketing_consent`, `consent_at` (first purchase), both empty for those without consent: every 25th
    customer, and customers who never bought, since soft opt-in needs a sale. Times are ISO 8601 in UTC.
    """
    bought = ~pl.col("InvoiceNo").str.starts_with("C") & (pl.col("Quantity") > 0) & (pl.col("UnitPrice") > 0)
    known = (
        pl.read_parquet(ORDERS)
        .filter(pl.col("CustomerID").is_not_null())
        .with_columns(pl.col("InvoiceDate").str.to_datetime(DATE_FORMAT).alias("at"))
    )
    iso = "%Y-%m-%dT%H:%M:%SZ"
    consented = (pl.col("CustomerID") % WITHHELD_EVERY != 0) & pl.col("bought_at").is_not_null()
    return (
        known.group_by("CustomerID")
        .agg(
            pl.col("Country").sort_by("at", "InvoiceNo").last(),
            pl.col("at").min().alias("first_at"),
            pl.col("at").filter(bought).min().alias("bought_at"),
        )
        .sort("CustomerID")
        .select(
            pl.col("CustomerID").cast(pl.String).alias("external_id"),
            pl.format("customer-{}@example.com", "CustomerID").alias("email"),
            pl.col("Country").alias("country"),
            pl.col("first_at").dt.strftime(iso).alias("created_at"),
            pl.when(consented).then(pl.lit("yes")).alias("marketing_consent"),
            pl.when(consented).then(pl.col("bought_at").dt.strftime(iso)).alias("consent_at"),
        )
    )


def write_inputs(inbox: Path) -> DemoInputs:
    """Write `inbox/contacts/online_retail.csv`, the same bytes each time; untouched if there already.

    Args:
        inbox: the folder that `content/sources` reads, `inbox` in the home folder.
    """
    frame = contacts_frame()
    path = inbox / "contacts" / "online_retail.csv"
    text = frame.write_csv()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        # whoever reads meanwhile sees the old file or the new one, never half of it
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    return DemoInputs(path, frame.height, frame["marketing_consent"].count())
