"""Settings of what Dagster runs, and when."""

from __future__ import annotations

from datetime import date

from warehouse.settings import MailhouseSettings


class OrchestrationSettings(MailhouseSettings):
    """What only Dagster needs to know.

    Attributes:
        first_load_day: the first day on which this warehouse may have loaded rows; backfills reach back to it.
    """

    first_load_day: date = date(2026, 1, 1)
