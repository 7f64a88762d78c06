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

_CRM_CURSORS = (
    """
    create table if not exists raw.crm_cursors (
        source LowCardinality(String),
        object LowCardinality(String),
        cursor String,
        stored_at DateTime64(6, 'UTC')
    ) engine = ReplacingMergeTree(stored_at) order by (source, object)
    comment 'How far the records of a CRM have been read: source, object. The latest stored_at counts.'
    """,
)

_CONSENT_PROOF = (
    """
    alter table raw.consents
        add column if not exists text_digest String,
        add column if not exists user_agent String,
        add column if not exists page String,
        add column if not exists requested_at Nullable(DateTime64(3, 'UTC')),
        add column if not exists requested_ip String,
        add column if not exists confirmed_at Nullable(DateTime64(3, 'UTC')),
        add column if not exists recorded_by String
    """,
    """
    create table if not exists raw.consent_texts (
        text_digest String,
        text_version String,
        purpose LowCardinality(String),
        channel LowCardinality(String),
        content String,
        recorded_at DateTime64(3, 'UTC'),
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by (purpose, channel, text_version, text_digest)
    comment 'The words of one version of what people agreed to: purpose, channel, text_version, text_digest.'
    """,
    """
    create table if not exists raw.retention_runs (
        table_name LowCardinality(String),
        action LowCardinality(String),
        rule String,
        until DateTime64(3, 'UTC'),
        rows_count UInt64,
        partitions_count UInt32,
        ran_at DateTime64(3, 'UTC'),
        run_id String,
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by (ran_at, table_name)
    comment 'What one rule of content/retention.yaml deleted or pseudonymised in one run: table_name, rule, ran_at.'
    """,
)

_IDENTITY_CHANGES = (
    """
    create table if not exists raw.identity_changes (
        change_id String,
        action LowCardinality(String),
        contact_id Int64,
        into_contact_id Int64,
        source LowCardinality(String),
        external_id String,
        email String,
        into_source LowCardinality(String),
        into_external_id String,
        into_email String,
        undoes String,
        reason String,
        actor String,
        occurred_at DateTime64(3, 'UTC'),
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by change_id
    comment 'One decision by hand about who is who: change_id. People by source and external_id, or by email.'
    """,
    # a visitor whom several people have used is looked up by its id
    "alter table raw.events add index if not exists by_anonymous_id anonymous_id type bloom_filter(0.01) granularity 4",
    "alter table raw.events materialize index by_anonymous_id settings mutations_sync = 1",
)

_IMPORTS = (
    """
    create table if not exists raw.imports (
        import_id String,
        status LowCardinality(String),
        source LowCardinality(String),
        file String,
        digest String,
        size UInt64,
        imported_by String,
        basis LowCardinality(String),
        purpose LowCardinality(String),
        channels Array(String),
        text_version String,
        options JSON,
        rows UInt64,
        new UInt64,
        changed UInt64,
        unchanged UInt64,
        repeated UInt64,
        refused UInt64,
        consents UInt64,
        outcome JSON,
        started_at DateTime64(3, 'UTC'),
        changed_at DateTime64(3, 'UTC'),
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by (import_id, changed_at)
    comment 'One status of one import of a file of contacts: import_id, changed_at. started, then finished or failed.'
    """,
)

_CRM_SYNC = (
    # looked up for some thousand contacts of a million: small granules
    """
    create table if not exists raw.crm_pushes (
        push_id String,
        object LowCardinality(String),
        source LowCardinality(String),
        external_id String,
        contact_id Int64,
        key String,
        fields Map(LowCardinality(String), String),
        is_new Bool,
        known_at DateTime64(3, 'UTC'),
        status LowCardinality(String),
        reason String,
        record_at Nullable(DateTime64(3, 'UTC')),
        run_id String default '',
        recorded_at DateTime64(3, 'UTC'),
        index by_recorded_at recorded_at type minmax granularity 1
    ) engine = MergeTree order by (object, source, external_id, push_id)
    settings index_granularity = 1024
    comment 'What we wrote to CRMs: a row before the write (status sent) and one with its outcome; push_id, status.'
    """,
    """
    create table if not exists raw.field_decisions (
        contact_id Int64,
        field LowCardinality(String),
        rule LowCardinality(String),
        value String,
        source LowCardinality(String),
        external_id String,
        value_at DateTime64(3, 'UTC'),
        losers String,
        why String,
        content_hash UInt64,
        rules_version LowCardinality(String),
        run_id String default '',
        decided_at DateTime64(3, 'UTC')
    ) engine = MergeTree order by (contact_id, field, decided_at)
    settings index_granularity = 1024
    comment 'One decision whose value of a field of a contact counts: contact_id, field, decided_at. The latest counts.'
    """,
    """
    create table if not exists raw.crm_shown (
        source LowCardinality(String),
        external_id String,
        contact_id Int64,
        fields Map(LowCardinality(String), String),
        fields_hash UInt64,
        shown_at DateTime64(3, 'UTC')
    ) engine = ReplacingMergeTree(shown_at) order by (source, external_id)
    settings index_granularity = 1024
    comment 'What a CRM shows of what we know about a contact: source, external_id. The latest shown_at counts.'
    """,
    """
    create table if not exists raw.crm_syncs (
        started_at DateTime64(3, 'UTC'),
        finished_at DateTime64(3, 'UTC'),
        records_through DateTime64(3, 'UTC'),
        identities_through DateTime64(3, 'UTC'),
        consents_through DateTime64(3, 'UTC'),
        rules_version String,
        profiles_version String,
        is_complete Bool,
        counts Map(String, UInt64),
        failures Map(String, String),
        run_id String default ''
    ) engine = MergeTree order by finished_at
    comment 'One two-way sync that came to its end, and how far it came: finished_at.'
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

_RECTIFICATIONS = (
    """
    create table if not exists raw.rectifications (
        source LowCardinality(String),
        external_id String,
        field LowCardinality(String),
        wrong String,
        value String,
        corrected_at DateTime64(3, 'UTC'),
        loaded_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by (source, external_id, field, corrected_at)
    comment 'One field of one record that was put right, and what was wrong: source, external_id, field, corrected_at.'
    """,
)

MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "raw tables", _CREATE_RAW),
    Migration(2, "campaign files, static lists, indexes of load times", _INCREMENTS),
    Migration(3, "how far CRMs have been read", _CRM_CURSORS),
    Migration(4, "proof and texts of consents, what retention deleted", _CONSENT_PROOF),
    Migration(5, "merges and splits by hand, visitors by their ids", _IDENTITY_CHANGES),
    Migration(6, "imports of files of contacts", _IMPORTS),
    Migration(7, "two-way sync with CRMs", _CRM_SYNC),
    Migration(8, "erasures, restrictions and the audit log", _PRIVACY),
    Migration(9, "fields that were put right", _RECTIFICATIONS),
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
