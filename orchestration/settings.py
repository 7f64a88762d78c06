"""Settings of what Dagster runs, and when."""

from __future__ import annotations

from datetime import date

from pydantic import Field

from warehouse.settings import MailhouseSettings


class OrchestrationSettings(MailhouseSettings):
    """What only Dagster needs to know.

    Attributes:
        first_load_day: the first day on which this warehouse may have loaded rows; backfills reach back to it.
        recommend_again_after_days: days after which a product that a contact bought may be recommended to it again; 0:
            never.
        recommend_per_category: at most so many products of one category of the catalogue in a list of ten; 0: no limit.
        recommend_diversity: how much lists avoid products alike, 0 (not at all) to 1.
    """

    first_load_day: date = date(2026, 1, 1)
    recommend_again_after_days: int = Field(0, ge=0)
    recommend_per_category: int = Field(0, ge=0)
    recommend_diversity: float = Field(0.0, ge=0, le=1)
