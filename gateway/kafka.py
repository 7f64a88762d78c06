"""Events out of Kafka by ClickHouse's own Kafka engine: no process of ours, statements that an administrator runs.

A ClickHouse server reads the topic itself and a materialised view moves each message into `raw.events`; what is no
event goes to `raw.quarantined_rows`. Kafka delivers at least once, so that a message may be stored twice: models count
it once by its event_id, as they do with every load. The gateway does not see these events: triggers fire on what is
posted to it, journeys and segments see either.

Messages are what /v1/events takes, one JSON object each.
"""

from __future__ import annotations

import re

from gateway.events import EMAIL, TYPE
from warehouse.errors import InputError

_BROKERS = re.compile(r"[A-Za-z0-9._\-]+:\d{1,5}(,[A-Za-z0-9._\-]+:\d{1,5})*")
_NAME = re.compile(r"[A-Za-z0-9._\-]{1,200}")
_TABLE = "raw.kafka_events"

# what is read of a message; `said` is its properties, null where ClickHouse cannot store them
_READ = """
    select
        JSONExtractString(message, 'event_id') as given_id,
        if(given_id = '', lower(hex(sipHash128(message))), given_id) as event_id,
        JSONExtractString(message, 'type') as event_type,
        if(JSONExtractString(message, 'source') = '', _topic, JSONExtractString(message, 'source')) as event_source,
        JSONExtractString(message, 'email') as event_email,
        JSONExtractString(message, 'external_id') as event_external_id,
        JSONExtractString(message, 'anonymous_id') as event_anonymous_id,
        toDateTime64(ifNull(_timestamp_ms, now64(3, 'UTC')), 3, 'UTC') as sent_at,
        if(
            JSONHas(message, 'occurred_at'),
            parseDateTime64BestEffortOrNull(JSONExtractString(message, 'occurred_at'), 3, 'UTC'),
            sent_at
        ) as happened_at,
        if(JSONHas(message, 'properties'), JSONExtractRaw(message, 'properties'), '{{}}') as said,
        concat(_topic, '/', toString(_partition)) as place,
        _offset as place_offset,
        message,
        multiIf(
            not isValidJSON(message), 'the message is no JSON',
            not match(event_type, '{type}'), 'type is no noun.verb',
            event_email = '' and event_external_id = '' and event_anonymous_id = '', 'the event is nobody''s',
            event_email != '' and not match(event_email, '{email}'), 'email is no address',
            isNull(happened_at), 'occurred_at is no time',
            not startsWith(said, '{{') or isNull(accurateCastOrNull(said, 'JSON')), 'properties cannot be stored',
            ''
        ) as problem
    from {table}
"""


def statements(brokers: str, topic: str, *, group: str = "mailhouse", consumers: int = 1) -> list[str]:
    """The statements that make ClickHouse read a topic, in their order; each is safe to run again.

    Args:
        brokers: `host:port`, several with commas.
        group: consumer group; the topic's offsets are kept under it.
        consumers: readers at once, at most as many as the topic has partitions.

    Raises:
        InputError: a name that cannot be one.
    """
    for value, pattern, what in ((brokers, _BROKERS, "list of brokers"), (topic, _NAME, "topic"),
                                 (group, _NAME, "consumer group")):  # fmt: skip
        if not pattern.fullmatch(value):
            raise InputError(f"{value!r} is no {what}.", fix="Write brokers like kafka-1:9092,kafka-2:9092.")
    if not 1 <= consumers <= 64:
        raise InputError(f"{consumers} consumers are not possible.", fix="Take 1 to 64.")
    return [
        f"create table if not exists {_TABLE} (message String) engine = Kafka settings "
        f"kafka_broker_list = '{brokers}', kafka_topic_list = '{topic}', kafka_group_name = '{group}', "
        f"kafka_format = 'RawBLOB', kafka_num_consumers = {consumers}, kafka_max_block_size = 10000",
        *views(_TABLE),
    ]


def views(table: str) -> list[str]:
    """The two materialised views over a table of messages."""
    read = _READ.format(table=table, type=_quoted(TYPE), email=_quoted(EMAIL))
    return [
        f"""
create materialized view if not exists raw.kafka_events_loaded to raw.events as
select event_id, event_type as type, event_source as source, event_email as email,
    event_external_id as external_id, event_anonymous_id as anonymous_id, assumeNotNull(happened_at) as occurred_at,
    sent_at as received_at, assumeNotNull(accurateCastOrNull(said, 'JSON')) as properties, 'kafka' as run_id
from ({read}) where problem = ''
""",  # noqa: S608 - texts of this module, and names that were checked
        f"""
create materialized view if not exists raw.kafka_events_refused to raw.quarantined_rows as
select 'kafka' as source, 'event' as object, place as file, toUInt64(place_offset) as line, problem as reason,
    substring(message, 1, 2000) as content, 'kafka' as run_id
from ({read}) where problem != ''
""",  # noqa: S608
    ]


def _quoted(pattern: str) -> str:
    return pattern.replace("\\", "\\\\").replace("'", "\\'")
