"""DDL of the raw tables: versioned, idempotent, the same on the embedded engine, on a server and on a cluster.

Raw tables are append-only. What a table holds is in its comment, and the grain in its `ORDER BY`. A change of the
schema is a new entry at the end of `MIGRATIONS`; entries that have run are recorded in `raw.schema_migrations` and
never edited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warehouse.client import Warehouse


@dataclass(frozen=True)
class Migration:
    """One step of the schema: a number, what it does, and statements that are safe to run again."""

    version: int
    summary: str
    statements: tuple[str, ...]


_CREATE_RAW = (
    """
    create table if not exists raw.crm_records (
        source LowCardinality(String),
        object LowCardinality(String),
        external_id String,
        updated_at DateTime64(3, 'UTC'),
        is_deleted Bool,
        properties JSON,
        loaded_at DateTime64(3, 'UTC') default now64(3),
        run_id String default ''
    ) engine = MergeTree order by (source, object, external_id, updated_at)
    comment 'One version of one CRM object (contact, company, deal): source, object, external_id, updated_at.'
    """,
    """
    create table if not exists raw.events (
        event_id String,
        type LowCardinality(String),
        source LowCardinality(String),
        email String,
        external_id String,
        anonymous_id String,
        message_id String,
        occurred_at DateTime64(3, 'UTC'),
        received_at DateTime64(3, 'UTC'),
        properties JSON,
        esp_event String codec(ZSTD(1)),
        loaded_at DateTime64(3, 'UTC') default now64(3),
        run_id String default '',
        index by_event_id event_id type bloom_filter(0.01) granularity 4
    ) engine = MergeTree partition by toYYYYMM(occurred_at) order by (type, occurred_at, event_id)
    comment 'One event, behaviour or mail, once by event_id. email, external_id, anonymous_id: hints to the contact.'
    """,
    """
    create table if not exists raw.messages (
        message_id String,
        sequence UInt32,
        status LowCardinality(String),
        reason LowCardinality(String),
        kind LowCardinality(String),
        name LowCardinality(String),
        version String,
        occurrence String,
        contact_id Int64,
        email String,
        channel LowCardinality(String),
        provider LowCardinality(String),
        category LowCardinality(String),
        template LowCardinality(String),
        template_version String,
        segment LowCardinality(String),
        segment_version String,
        experiment LowCardinality(String),
        variant LowCardinality(String),
        subject String,
        provider_message_id String,
        provider_reply String,
        changed_at DateTime64(3, 'UTC'),
        details JSON,
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree partition by toYYYYMM(changed_at) order by (message_id, sequence)
    comment 'One status change of one message, copied from the ledger: message_id, sequence.'
    """,
    """
    create table if not exists raw.consents (
        consent_id String,
        source LowCardinality(String),
        email String,
        external_id String,
        channel LowCardinality(String),
        purpose LowCardinality(String),
        is_granted Bool,
        basis LowCardinality(String),
        text_version String,
        ip String,
        occurred_at DateTime64(3, 'UTC'),
        properties JSON,
        loaded_at DateTime64(3, 'UTC') default now64(3),
        run_id String default ''
    ) engine = MergeTree order by (email, external_id, channel, purpose, occurred_at, consent_id)
    comment 'One consent change, the proof of it: consent_id.'
    """,
    """
    create table if not exists raw.products (
        source LowCardinality(String),
        product_id String,
        name String,
        category String,
        price Decimal(18, 2),
        image_url String,
        url String,
        is_available Bool,
        updated_at DateTime64(3, 'UTC'),
        properties JSON,
        loaded_at DateTime64(3, 'UTC') default now64(3),
        run_id String default ''
    ) engine = MergeTree order by (product_id, updated_at)
    comment 'One version of one catalogue product: source, product_id, updated_at. Products are also read off orders.'
    """,
    """
    create table if not exists raw.recommendations (
        model LowCardinality(String),
        model_version String,
        as_of DateTime64(3, 'UTC'),
        contact_id Int64,
        rank UInt16,
        product_id String,
        score Float64,
        reason LowCardinality(String),
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree partition by (model, model_version) order by (contact_id, rank)
    comment 'One ranked product for one contact by one model version. Rerunning a version replaces its partition.'
    """,
    """
    create table if not exists raw.predictions (
        model LowCardinality(String),
        model_version String,
        as_of DateTime64(3, 'UTC'),
        contact_id Int64,
        score Float64,
        properties JSON,
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree partition by (model, model_version) order by contact_id
    comment 'One score of one contact by one model version. Rerunning a version replaces its partition.'
    """,
    """
    create table if not exists raw.model_evaluations (
        model LowCardinality(String),
        model_version String,
        as_of DateTime64(3, 'UTC'),
        metric LowCardinality(String),
        value Float64,
        properties JSON,
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by (model, model_version, metric)
    comment 'One offline metric of one model version: how good it was on the time-based split.'
    """,
    """
    create table if not exists raw.quarantined_rows (
        source LowCardinality(String),
        object LowCardinality(String),
        file String,
        line UInt64,
        reason String,
        content String,
        loaded_at DateTime64(3, 'UTC') default now64(3),
        run_id String default ''
    ) engine = MergeTree order by (source, object, file, line)
    comment 'One input row that could not be loaded: file, line and why. A file loaded again replaces its own rows.'
    """,
)

_INCREMENTS = (
    # models look rows up by hashes, which are made once, when a row is stored
    """
    alter table raw.events
        add column if not exists event_hash UInt64 materialized sipHash64(event_id),
        add column if not exists message_hash UInt64 materialized if(message_id = '', 0, sipHash64(message_id))
    """,
    "alter table raw.messages add column if not exists message_hash UInt64 materialized sipHash64(message_id)",
    # models read what was loaded since they last ran: whole granules of older loads are passed over
    *(
        statement
        for table in ("events", "crm_records", "messages", "consents")
        for statement in (
            f"alter table raw.{table} add index if not exists by_loaded_at loaded_at type minmax granularity 1",
            f"alter table raw.{table} materialize index by_loaded_at settings mutations_sync = 1",
        )
    ),
    """
    create table if not exists raw.campaigns (
        kind LowCardinality(String),
        name String,
        version String,
        description String,
        channel LowCardinality(String),
        category LowCardinality(String),
        segment String,
        goal_event LowCardinality(String),
        goal_where String,
        goal_within_seconds UInt32,
        experiment String,
        spec JSON,
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by (kind, name, loaded_at)
    comment 'One version of one campaign, journey or trigger as its file says: kind, name, version.'
    """,
    """
    create table if not exists raw.list_members (
        list LowCardinality(String),
        source LowCardinality(String),
        email String,
        external_id String,
        is_member Bool,
        changed_at DateTime64(3, 'UTC'),
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by (list, email, external_id, changed_at)
    comment 'One change of who is on a static list: list, email or external_id, changed_at. The latest counts.'
    """,
)

_PRIVACY = (
    """
    create table if not exists raw.erasures (
        erasure_id String,
        pseudonym String,
        kind LowCardinality(String),
        hash String,
        key_id LowCardinality(String),
        is_readmitted Bool,
        recorded_at DateTime64(6, 'UTC') default now64(6)
    ) engine = MergeTree order by (kind, hash, recorded_at)
    comment 'Keyed hash of one name of one person who was erased, and must not be loaded again: kind, hash (newest).'
    """,
    """
    create table if not exists raw.restrictions (
        contact_id Int64,
        email String,
        is_restricted Bool,
        allows_transactional Bool,
        reason String,
        actor String,
        changed_at DateTime64(3, 'UTC'),
        recorded_at DateTime64(6, 'UTC') default now64(6)
    ) engine = MergeTree order by (contact_id, email, recorded_at)
    comment 'Whether data of one contact (0: none) or one address may be processed: contact_id, email (the newest).'
    """,
    """
    create table if not exists raw.audit_log (
        sequence UInt64,
        occurred_at DateTime64(3, 'UTC'),
        actor String,
        verb LowCardinality(String),
        subject String,
        outcome LowCardinality(String),
        reason String,
        counts String,
        previous_hash String,
        hash String,
        recorded_at DateTime64(6, 'UTC') default now64(6)
    ) engine = MergeTree order by (sequence, recorded_at)
    comment 'One step that was taken for the rights of one person, chained to the one before it by its hash: sequence.'
    """,
)

MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "raw tables", _CREATE_RAW),
    Migration(2, "campaign files, static lists, indexes of load times", _INCREMENTS),
    Migration(3, "erasures, restrictions and the audit log", _PRIVACY),
)


def migrate(warehouse: Warehouse) -> list[Migration]:
    """Bring the raw tables up to date; returns the migrations that ran now, none if all had run."""
    warehouse.define("create database if not exists raw")
    warehouse.define(
        """
        create table if not exists raw.schema_migrations (
            version UInt32, summary String, migrated_at DateTime64(3, 'UTC') default now64(3)
        ) engine = MergeTree order by version comment 'Schema steps that have run.'
        """
    )
    done = set(warehouse.frame("select distinct version from raw.schema_migrations")["version"].to_list())
    todo = [migration for migration in MIGRATIONS if migration.version not in done]
    for migration in todo:
        for statement in migration.statements:
            warehouse.define(statement)
        warehouse.execute(
            "insert into raw.schema_migrations (version, summary) values ({version:UInt32}, {summary:String})",
            {"version": migration.version, "summary": migration.summary},
        )
    return todo
