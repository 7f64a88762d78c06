"""Hand-made marts, with the columns that the dbt models promise, on the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from campaigns.specs import CampaignSpec
from warehouse.client import Warehouse
from warehouse.yaml_specs import load_spec

_TABLES = (
    "create database marts",
    "create database segments",
    """
    create table marts.contact_profiles (
        contact_id Int64, email String, first_name Nullable(String), last_name Nullable(String),
        country Nullable(String), city Nullable(String), timezone Nullable(String), locale Nullable(String),
        created_at DateTime64(3, 'UTC'), first_order_at Nullable(DateTime64(3, 'UTC')),
        last_order_at Nullable(DateTime64(3, 'UTC')), orders_count UInt64, items_count UInt64,
        revenue Decimal(18, 2), average_order_value Nullable(Decimal(18, 2)),
        days_since_last_order Nullable(Int64),
        recency_score UInt8, frequency_score UInt8, monetary_score UInt8, rfm_segment LowCardinality(String),
        engagement_score Float64, messages_sent_count UInt64, messages_opened_count UInt64,
        messages_clicked_count UInt64, last_opened_at Nullable(DateTime64(3, 'UTC')),
        last_clicked_at Nullable(DateTime64(3, 'UTC')), is_suppressed Bool, has_marketing_consent Bool,
        segments Array(String)
    ) engine = MergeTree order by contact_id
    """,
    """
    create table marts.suppressed (
        email String, reason String, suppressed_at DateTime64(3, 'UTC'), event_id String
    ) engine = MergeTree order by email
    """,
    "create view marts.suppressions as select *, reason = 'bounced' as is_bounced from marts.suppressed",
    """
    create table marts.consented (
        contact_id Int64, channel String, purpose String, is_granted Bool, basis String, text_version String,
        consent_id String, occurred_at DateTime64(3, 'UTC')
    ) engine = MergeTree order by contact_id
    """,
    "create view marts.consents as select * from marts.consented",
    """
    create table marts.recommendations (
        contact_id Int64, rank UInt16, product_id String, product_name String, price Decimal(18, 2),
        image_url String, url String, model String, model_version String, reason String
    ) engine = MergeTree order by (contact_id, rank)
    """,
    "create table segments.at_risk (contact_id Int64) engine = MergeTree order by contact_id",
    "create table segments.champions (contact_id Int64) engine = MergeTree order by contact_id",
)


@dataclass
class Marts:
    """Writes rows of the hand-made marts."""

    warehouse: Warehouse

    def contacts(self, first: int, last: int, *, segment: str = "at_risk", country: str = "France") -> None:
        """Contacts with consent, in a segment; contact_id from first to last."""
        self.warehouse.execute(
            f"""
            insert into marts.contact_profiles (
                contact_id, email, country, engagement_score, orders_count, segments, last_order_at
            )
            select number, 'c' || toString(number) || '@example.com', '{country}', number, number % 5,
                ['{segment}'], toDateTime64('2011-06-01 00:00:00', 3, 'UTC') - toIntervalDay(number % 100)
            from numbers({first}, {last - first + 1})
            """
        )
        self.warehouse.execute(
            f"insert into segments.{segment} select number from numbers({first}, {last - first + 1})"
        )
        self.warehouse.execute(
            f"""
            insert into marts.consented
            select number, 'email', 'marketing', true, 'opt_in', 'v1', 'consent-' || toString(number),
                toDateTime64('2011-01-01 00:00:00', 3, 'UTC')
            from numbers({first}, {last - first + 1})
            """
        )

    def suppress(self, email: str, reason: str) -> None:
        """One suppression."""
        self.warehouse.execute(
            "insert into marts.suppressed values"
            " ({email:String}, {reason:String}, toDateTime64('2011-06-01', 3, 'UTC'), {event:String})",
            {"email": email, "reason": reason, "event": f"event-{reason}"},
        )


@pytest.fixture
def marts(warehouse: Warehouse) -> Iterator[Marts]:
    """Empty marts and two empty segments."""
    databases = ("campaigns", "segments", "marts")
    for database in databases:
        warehouse.execute(f"drop database if exists {database}")
    for statement in _TABLES:
        warehouse.execute(statement)
    yield Marts(warehouse)
    for database in databases:
        warehouse.execute(f"drop database if exists {database}")


class SpecWriter:
    """Writes campaigns as files and reads them back, as a marketer would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, **changes: object) -> CampaignSpec:
        """A campaign to at_risk; changes are `send__category='transactional'` and the like, None removes."""
        content: dict = {
            "campaign": "win_back",
            "audience": {"segment": "at_risk"},
            "schedule": {"cron": "0 9 * * mon", "timezone": "Europe/London"},
            "send": {"template": "win_back", "category": "marketing", "subject": "We miss you"},
        }
        for key, value in changes.items():
            *parents, last = key.split("__")
            target = content
            for parent in parents:
                target = target.setdefault(parent, {})
            if value is None:
                target.pop(last, None)
            else:
                target[last] = value
        path = self.folder / f"{content['campaign']}.yaml"
        with path.open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(content, file)
        return load_spec(path, CampaignSpec, name_key="campaign")


@pytest.fixture
def write_spec(tmp_path: Path) -> SpecWriter:
    return SpecWriter(tmp_path)
