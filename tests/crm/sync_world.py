"""The warehouse's part of a sync's world: identity and profiles as models would build them, made by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from crm.base import Connector, Kind
from crm.settings import CrmSettings
from crm.sync_store import WarehouseStore
from warehouse.client import Warehouse
from warehouse.loads import LoadResult
from warehouse.settings import MailhouseSettings


def make_models(warehouse: Warehouse) -> None:
    """Empty tables in the place of the models that a sync reads."""
    for database in ("intermediate", "marts"):
        warehouse.execute(f"drop database if exists {database}")
        warehouse.execute(f"create database {database}")
    warehouse.execute(
        """
        create table intermediate.int_contacts__identified (
            identity_id Int64, contact_id Int64, previous_contact_id Int64, kind LowCardinality(String),
            source LowCardinality(String), identifier String, moved_at DateTime64(3, 'UTC')
        ) engine = ReplacingMergeTree(moved_at) order by identity_id
        """
    )
    warehouse.execute(
        """
        create table intermediate.int_consents__latest (
            identity_id Int64, channel String, purpose String,
            last_change Tuple(occurred_at DateTime64(3, 'UTC'), withdrawn_until DateTime64(3, 'UTC')),
            recorded_at DateTime64(3, 'UTC')
        ) engine = MergeTree order by identity_id
        """
    )
    make_profiles(warehouse, "select 0::Int64 as contact_id where false")


def make_profiles(warehouse: Warehouse, people: str) -> None:
    """A new build of the profiles; `people` is a query of contact_id and of columns that are not empty."""
    given = warehouse.frame(f"describe table ({people})")["name"].to_list()
    text, moment = "null::Nullable(String)", "null::Nullable(DateTime64(3, 'UTC'))"
    columns = {
        "email": "concat('p', toString(contact_id), '@example.com')",
        **dict.fromkeys(
            ("first_name", "last_name", "country", "city", "timezone", "locale", "phone", "push_token"), text
        ),
        "rfm_segment": "''", "engagement_band": "'never'", "orders_count": "0::UInt32",
        "revenue": "0::Decimal(18, 2)", "average_order_value": "0::Decimal(18, 2)", "engagement_score": "0::Float64",
        **dict.fromkeys(("is_deleted", "is_suppressed", "has_marketing_consent"), "false"),
        **dict.fromkeys(("last_order_at", "last_message_at", "last_opened_at", "last_clicked_at"), moment),
        "segments": "[]::Array(String)",
    }  # fmt: skip
    rest = (name if name in given else f"{sql} as {name}" for name, sql in columns.items())
    values = ", ".join(["contact_id", *rest])
    warehouse.execute("drop table if exists marts.contact_profiles sync")
    warehouse.execute(
        "create table marts.contact_profiles engine = MergeTree order by contact_id"
        f" as select {values} from ({people})"
    )


def identify(warehouse: Warehouse, contact_of: str = "toInt64(extract(external_id, '[0-9]+'))") -> None:
    """Identity of the records that are stored: `contact_of` is SQL of `source` and `external_id`."""
    warehouse.execute(
        f"""
        insert into intermediate.int_contacts__identified
        select reinterpretAsInt64(sipHash64(source, external_id)) as identity, {contact_of}, 0, 'record', source,
            external_id, now64(3)
        from (select distinct source, external_id from raw.crm_records where object = 'contact')
        where identity not in (select identity_id from intermediate.int_contacts__identified)
        """
    )


class CheckedStore(WarehouseStore):
    """The warehouse, and a test that may die before each write."""

    def __init__(self, warehouse: Warehouse, settings: CrmSettings, before: Callable[[str], None]) -> None:
        super().__init__(warehouse, settings)
        self.before = before

    def pull(self, connector: Connector, kind: Kind) -> LoadResult:
        """Load."""
        self.before("records")
        return super().pull(connector, kind)

    def add_decisions(self, decisions) -> None:
        """Store."""
        self.before("decisions")
        super().add_decisions(decisions)

    def add_pushes(self, rows) -> None:
        """Store."""
        self.before("pushes")
        super().add_pushes(rows)

    def add_withdrawals(self, candidates, versions) -> int:
        """Store."""
        self.before("withdrawals")
        return super().add_withdrawals(candidates, versions)

    def finish(self, mark) -> None:
        """Store."""
        self.before("mark")
        super().finish(mark)


def crm_settings(settings: MailhouseSettings) -> CrmSettings:
    """Settings of CRMs with the same warehouse and home."""
    return CrmSettings(home=settings.home, warehouse_port=settings.warehouse_port)


def stamp(moment: datetime) -> str:
    """As SQL wants it."""
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"[:-3]
