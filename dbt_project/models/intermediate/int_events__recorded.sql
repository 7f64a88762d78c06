{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='slot',
        order_by=['type', 'identity_id', 'occurred_at'],
        indexes=[{'name': 'by_loaded_on', 'definition': 'loaded_on type minmax granularity 1'}],
        query_settings={
            'throw_on_max_partitions_per_insert_block': 0,
            'join_use_nulls': 0
        }
    )
}}

{#- nullable columns would cost a tenth of the whole here, so the joins below give 0 for what has no match -#}
{#- whole load days are built anew; asked before, so that ClickHouse reads the rows of these days and no others -#}
{%- set due_loads = due_loads() %}
{%- set days, months = due_loads.days, due_loads.months %}

with

loaded as (

    select
        *,
        toDate(loaded_at, 'UTC') as loaded_on
    from {{ ref('stg_events__events') }}

),

due as (

    select * from loaded
    {% if days is not none -%}
    where {{ was_loaded_on('loaded_at', days) }}
    {%- endif %}

),

due_hashes as (

    -- not `due`: each look at all that an event is costs the engine more than to read this
    select event_hash, message_hash from {{ source('raw', 'events') }}
    {% if days is not none -%}
    where {{ was_loaded_on('loaded_at', days) }}
    {%- endif %}

),

{% if days is none -%}
(

    -- rows of each load day: looked up in a list, since a join copies all that goes through it
    select tuple(groupArray(size_of), groupArray(day_loads_count))
    from (
        select loaded_on as size_of, count() as day_loads_count
        from due
        group by loaded_on
    )

) as sizes,

{% endif -%}
(

    -- what was loaded more than once, today or before: a list, since both halves of `once` ask for it
    select groupArray(event_hash)
    from (
        select event_hash
        from {{ source('raw', 'events') }}
        {% if days is not none -%}
        where
            {{ 'toYYYYMM(occurred_at) in (' ~ months | join(', ') ~ ')' if months else 'false' }}
            and event_hash in (select event_hash from due_hashes)
        {%- endif %}
        group by event_hash
        having count() > 1
    )

) as repeated,

once as (

    select *, 1 as loads_count
    from due
    where event_hash not in (select arrayJoin(repeated))

    union all

    -- the load that came first counts, with those of the same day that repeat it
    select *
    from (
        select *, count() over (partition by event_id, toYYYYMM(occurred_at), loaded_on) as loads_count
        from loaded
        where
            event_hash in (select arrayJoin(repeated))
            {% if days is not none -%}
            and {{ 'toYYYYMM(occurred_at) in (' ~ months | join(', ') ~ ')' if months else 'false' }}
            {%- endif %}
        order by loaded_at, received_at, occurred_at, type, source, email, external_id
        limit 1 by event_id, toYYYYMM(occurred_at)
    )
    {% if days is not none -%}
    where {{ is_of_days('loaded_on', days) }}
    {%- endif %}

),

followed_links as (

    -- in one pass over what happened to messages: each name of `due` is a copy of it that is read again
    select
        loaded_on,
        message_hash,
        arraySort(groupArrayIf(tuple(toUnixTimestamp64Milli(occurred_at), url), type = 'clicked')) as links,
        groupArrayIf(toUnixTimestamp64Milli(occurred_at), type = 'delivered') as delivered_ms
    from due
    where
        type in ('clicked', 'delivered')
        and message_hash != 0
        {% if days is none -%}
        -- of all that was ever delivered, what was clicked is little
        and message_hash in (select message_hash from due where type = 'clicked')
        {%- endif %}
    group by loaded_on, message_hash
    having notEmpty(links)

),

quick as (

    -- clicks that no hand did: too many different links of one message within two seconds, or too soon after the delivery
    select
        loaded_on as quick_on,
        message_hash as quick_hash,
        if(
            length(arrayDistinct(arrayMap(link -> link.2, links))) >= {{ machine_number('links_in_a_burst') }},
            arrayFilter(
                start -> length(arrayDistinct(arrayMap(
                    link -> link.2, arrayFilter(link -> link.1 >= start and link.1 <= start + 2000, links)
                ))) >= {{ machine_number('links_in_a_burst') }},
                arrayDistinct(arrayMap(link -> link.1, links))
            ),
            []
        ) as starts,
        arrayJoin(arrayFilter(
            clicked -> arrayExists(start -> clicked >= start and clicked <= start + 2000, starts)
                or arrayExists(
                    moment -> clicked >= moment
                        and clicked <= moment + 1000 * coalesce({{ machine_number('seconds_after_delivery') }}, -1),
                    delivered_ms
                ),
            arrayDistinct(arrayMap(link -> link.1, links))
        )) as quick_ms
    from followed_links

),

addressed as (

    -- whom a message is for never changes; of several rows of one message the newest knows the first load
    select
        message_hash as known_message_hash,
        any(messages.identity_id) as message_identity_id,
        toDate(min(messages.first_loaded_at), 'UTC') - {{ var('load_overlap_days') }} as known_from
    from {{ ref('int_messages__addressed') }} as messages
    {% if days is not none -%}
    where message_hash in (select message_hash from due_hashes where message_hash != 0)
    {%- endif %}
    group by message_hash

),

visitors as (

    select visitor_id as shared_visitor_id, turns
    from {{ newest(ref('int_visitors__shared')) }}
    {% if days is not none -%}
    where visitor_id in (
        select {{ visitor_of('source', 'anonymous_id') }} from {{ source('raw', 'events') }}
        where {{ was_loaded_on('loaded_at', days) }} and external_id = '' and email = '' and anonymous_id != ''
    )
    {%- endif %}

)

select
    ---------- ids
    event_id,
    multiIf(
        is_message_known, message_identity_id,
        -- a visitor who was several people, alone
        once.external_id = '' and once.email = '' and notEmpty(visitors.turns),
        {{ visitor_at('shared_visitor_id', 'visitors.turns', 'once.occurred_at') }},
        {{ identity_of('source', 'external_id', 'email', 'anonymous_id') }}
    )::Int64 as identity_id,
    message_id,
    external_id,
    anonymous_id,
    once.message_hash as message_hash,

    ---------- text
    type,
    source,
    email,
    bounce_class,
    url,

    ---------- booleans
    (
        is_machine or (
            type = 'clicked'
            and (loaded_on, once.message_hash, toUnixTimestamp64Milli(occurred_at)) in (
                select quick_on, quick_hash, quick_ms from quick
            )
        )
    )::Bool as is_machine,
    (coalesce(known_message_hash, 0) != 0 and coalesce(known_from <= loaded_on, false))::Bool as is_message_known,

    ---------- numerics
    loads_count::UInt32 as loads_count,
    {% if days is none -%}
    transform(loaded_on, sizes.1, sizes.2, 0::UInt64)::UInt64 as day_loads_count,
    {%- else -%}
    {{ due_loads.count }}::UInt64 as day_loads_count,
    {%- endif %}

    ---------- semi-structured
    properties,

    ---------- timestamps
    occurred_at,
    received_at,
    loaded_at,
    loaded_on,
    {{ due_loads.slot }} as slot,
    {{ stamp() }} as recorded_at
from once
left any join addressed on addressed.known_message_hash = once.message_hash
left any join visitors on visitors.shared_visitor_id = {{ visitor_of('once.source', 'once.anonymous_id') }}
