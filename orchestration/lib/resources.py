"""What assets and sensors share: settings read at run time, the warehouse, and how rows become metadata."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import dagster as dg
import polars as pl

from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings


def open_warehouse(run_id: str) -> Warehouse:
    """The warehouse of the settings in force; the run's id goes into its query log."""
    return Warehouse.connect(MailhouseSettings.load(), comment=f"dagster run {run_id}")


def table_metadata(frame: pl.DataFrame) -> dg.TableMetadataValue:
    """A small frame as a table in Dagster's UI."""
    records = [
        dg.TableRecord({name: _plain(value) for name, value in row.items()}) for row in frame.to_dicts()
    ]
    columns = [dg.TableColumn(name, str(kind)) for name, kind in frame.schema.items()]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def counts_metadata(counts: Mapping[str, int], prefix: str = "") -> dict[str, dg.MetadataValue]:
    """Counts as integers that the UI plots over time."""
    return {prefix + name: dg.MetadataValue.int(value) for name, value in counts.items()}


def _plain(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return value.isoformat() if isinstance(value, datetime) else str(value)
