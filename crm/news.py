"""What the webhooks of CRMs told of, as their events are stored, but for echoes of what we wrote."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from crm.base import Kind, stamp
from warehouse.client import Warehouse

_KINDS: Final[dict[str, Kind]] = {"contact": "contact", "company": "company", "deal": "deal", "task": "task"}

# by the value where the CRM tells it, else by the second
_STRANGE: Final = """
    with events as (
        select
            source, toString(type) as type, splitByChar('.', type)[1] as kind, occurred_at, loaded_at, external_id,
            ifNull(properties.value::Nullable(String), '') as value,
            ifNull(properties.merged_into::Nullable(String), '') as merged_into,
            -- the external_id of an event is the contact's, whatever it is about
            multiIf(
                kind = 'contact' and external_id != '', external_id,
                kind = 'contact', ifNull(properties.contact_id::Nullable(String), ''),
                kind = 'company', ifNull(properties.company_id::Nullable(String), ''),
                kind = 'deal', ifNull(properties.deal_id::Nullable(String), ''),
                ifNull(properties.task_id::Nullable(String), '')
            ) as record_id
        from raw.events
        where loaded_at > {since:DateTime64(3, 'UTC')} and source in {crms:Array(String)}
            and match(type, '^(contact|company|deal|task)\\\\.')
    ),
    writes as (
        select object, source, external_id, groupArray(fields) as all_fields,
            groupArray(coalesce(record_at, recorded_at)) as all_at
        from raw.crm_pushes
        where recorded_at > {since:DateTime64(3, 'UTC')} - toIntervalHour(1)
            and (object, source, external_id) in (select kind, source, record_id from events)
        group by object, source, external_id
    ),
    told as (
        select events.source as source, events.type as type, events.kind as kind, events.record_id as record_id,
            events.merged_into as merged_into, events.occurred_at as occurred_at, events.loaded_at as loaded_at,
            arrayExists(
                (fields, at) -> if(
                    events.value != '',
                    has(mapValues(fields), events.value),
                    abs(dateDiff('second', at, events.occurred_at)) <= 2
                ),
                writes.all_fields, writes.all_at
            ) as is_echo
        from events
        left any join writes
            on writes.object = events.kind and writes.source = events.source
            and writes.external_id = events.record_id
    )
"""


def news(warehouse: Warehouse, crms: Collection[str], since: datetime) -> tuple[set[Kind], datetime]:
    """What webhooks told of since, but for echoes of what we wrote: kinds of records, and how far that goes.

    Args:
        warehouse: where their events are stored.
        crms: names of the CRMs.
        since: events stored until then have been looked at.
    """
    found = warehouse.frame(
        f"""
        {_STRANGE}
        select told.kind as kind, max(told.loaded_at) as loaded_at, countIf(not is_echo) as strange
        from told group by kind
        """,  # noqa: S608
        {"since": stamp(since), "crms": list(crms)},
    )
    newest = found["loaded_at"].max()
    strange: set[Kind] = {
        _KINDS[kind] for kind, count in found.select("kind", "strange").iter_rows() if count
    }
    return strange, newest if isinstance(newest, datetime) else since


@dataclass(frozen=True)
class Named:
    """What webhooks told of one kind of records.

    Attributes:
        ids: records that have changed since we read them, each once.
        merges: id, time, and the id of the record that is left, of each record that was merged away.
        through: how far that goes.
    """

    ids: list[str]
    merges: list[tuple[str, datetime, str]]
    through: datetime


def named(
    warehouse: Warehouse, crm: str, kind: Kind, since: datetime, *, has_whole_seconds: bool = False
) -> Named:
    """Records that webhooks named since, but for echoes of ours and for those that are stored as they are now.

    Args:
        warehouse: where their events, and the records, are stored.
        crm: name of the CRM.
        kind: what kind of records.
        since: events stored until then have been looked at.
        has_whole_seconds: the CRM dates records by the second, and what is read of a second that is over is all of it.
    """
    parameters = {"since": stamp(since), "crms": [crm], "kind": kind}
    through = warehouse.frame(
        f"{_STRANGE} select max(loaded_at) as newest, count() as rows from told where kind = {{kind:String}}",  # noqa: S608
        parameters,
    ).row(0, named=True)
    if not through["rows"]:
        return Named([], [], since)
    second = (
        "or (newest >= toStartOfSecond(occurred_at) and newest_loaded_at > occurred_at + toIntervalSecond(3))"
        if has_whole_seconds
        else ""
    )
    found = warehouse.frame(
        f"""
        {_STRANGE},
        -- of a merge the record that is left tells
        wanted as (
            select if(merged_into != '', merged_into, record_id) as id, occurred_at,
                match(type, '[.](deleted|erased)$') as is_end
            from told where kind = {{kind:String}} and not is_echo and id != ''
        ),
        stored as (
            select external_id, max(updated_at) as newest, argMax(loaded_at, updated_at) as newest_loaded_at,
                argMax(is_deleted, tuple(updated_at, is_deleted)) as is_gone
            from raw.crm_records
            where source in {{crms:Array(String)}} and object = {{kind:String}}
                and external_id in (select id from wanted)
            group by external_id
        )
        select distinct id
        from wanted left any join stored on stored.external_id = wanted.id
        where not if(is_end, is_gone, newest >= occurred_at {second})
        order by id
        """,  # noqa: S608
        parameters,
    )
    merges = warehouse.frame(
        f"""
        {_STRANGE}
        select distinct record_id, occurred_at, merged_into from told
        where kind = {{kind:String}} and merged_into != '' and merged_into != record_id and record_id != ''
            and type like '%.merged'
        order by occurred_at, record_id
        """,  # noqa: S608
        parameters,
    )
    return Named(found["id"].to_list(), list(merges.iter_rows()), through["newest"])
