{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['is_month', 'dimension', 'goal', 'settles_on', 'from_state', 'to_state'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

{%- set months = due_attribution_months() %}
{%- set conversion_bit = 'bitShiftLeft(1::UInt128, 64)' %}
{%- set window_ms = var('attribution_window_days') * 86400000 %}

{% if is_incremental() and not months -%}
{{ nothing_due() }}

{%- else -%}
with

touches as (

    -- numbers instead of names, since arrays of names are what costs
    select
        *,
        {{ attribution_place('kind', 'campaign', 'channel') }} as place
    from {{ ref('int_attribution__touches') }}
    where
        {{ near_months('touched_at', months) }}
        -- a message touches only while it lives: partitions of older ones are not read
        and {{ near_months('created_at', months, before=var('attribution_window_days') + var('message_life_days')) }}

),

(

    {{ attribution_places(months) }}

) as places,

conversions as (

    select * from {{ ref('conversions') }}
    where {{ near_months('converted_at', months) }}

),

goals as (

    select groupUniqArray(goal::String) as goals from {{ ref('conversions') }}

),

touched as (

    select
        contact_id,
        -- the time, a bit for conversions, the place: one number, which sorts five times as fast as a tuple of them
        groupArray(bitOr(bitShiftLeft(toUnixTimestamp64Milli(touched_at)::UInt128, 65), place::UInt128)) as moments
    from touches
    group by contact_id

),

reached as (

    select
        contact_id,
        goal,
        groupArray(bitOr(bitShiftLeft(toUnixTimestamp64Milli(converted_at)::UInt128, 65), {{ conversion_bit }})) as moments
    from conversions
    group by contact_id, goal

),

contacts as (

    select
        contact_id,
        arrayJoin((select goals from goals)) as goal,
        moments
    from touched

),

histories as (

    -- touches and conversions of one goal, in order; a touch in the very moment of a conversion comes before it
    select
        contacts.goal as goal,
        if(
            empty(reached.moments),
            arraySort(contacts.moments),
            arraySort(arrayConcat(contacts.moments, reached.moments))
        ) as moments
    from contacts
    left join reached on reached.contact_id = contacts.contact_id and reached.goal = contacts.goal

),

steps as (

    -- what each touch came after and what came after it, within the window; before and after everything is a conversion
    select
        goal,
        bitShiftRight(moment, 65)::Int64 as touched_ms,
        toUInt64(moment) as place,
        toUInt64(following) as next_place,
        bitAnd(toUInt8(bitShiftRight(previous, 64)), 1) = 1 or touched_ms - bitShiftRight(previous, 65)::Int64 >= {{ window_ms }} as is_start,
        multiIf(
            bitShiftRight(following, 65)::Int64 - touched_ms >= {{ window_ms }}, 'null',
            bitAnd(toUInt8(bitShiftRight(following, 64)), 1) = 1, 'conversion',
            'step'
        )::Enum8('null', 'conversion', 'step') as outcome
    from histories
    array join
        moments as moment,
        arrayPushFront(arrayPopBack(moments), {{ conversion_bit }}) as previous,
        arrayPushBack(arrayPopFront(moments), bitShiftLeft(1::UInt128, 120)) as following
    where
        bitAnd(toUInt8(bitShiftRight(moment, 64)), 1) = 0
        and {{ in_months("fromUnixTimestamp64Milli(touched_ms, 'UTC')", months) }}

),

counted as (

    select
        goal,
        toDate(intDiv(touched_ms, 86400000)::UInt16) as touched_on,
        is_start,
        outcome,
        place,
        if(outcome = 'step', next_place, 0) as next_place,
        count() as touches_count
    from steps
    group by goal, touched_on, is_start, outcome, place, next_place

),

named as (

    select
        counted.goal as goal,
        counted.touched_on as touched_on,
        counted.is_start as is_start,
        counted.touches_count as touches_count,
        transform(counted.place, places.1, places.5, '') as state,
        transform(counted.place, places.1, places.4, '') as channel,
        if(counted.outcome = 'step', transform(counted.next_place, places.1, places.5, ''), concat('(', toString(counted.outcome), ')')) as next_state,
        if(counted.outcome = 'step', transform(counted.next_place, places.1, places.4, ''), concat('(', toString(counted.outcome), ')')) as next_channel
    from counted

),

transitions as (

    select
        goal,
        touched_on,
        arrayJoin(arrayConcat(
            [tuple('campaign', state, next_state), tuple('channel', channel, next_channel)],
            if(is_start, [tuple('campaign', '(start)', state), tuple('channel', '(start)', channel)], [])
        )) as transition,
        sum(named.touches_count) as touches_count
    from named
    group by goal, touched_on, transition

),

months as (

    {% if months is none -%}
    select distinct toYYYYMM(assumeNotNull({{ attribution_touched_at() }})) as month
    from {{ ref('int_messages__followed') }}
    where sent_at is not null and {{ attribution_touched_at() }} is not null

    union distinct

    select distinct toYYYYMM(converted_at) as month from conversions
    {%- else -%}
    select arrayJoin([{{ months | join(', ') }}]::Array(UInt32)) as month
    {%- endif %}

),

hashes as (

    {{ conversion_hashes(months) }}

)

select
    toYYYYMM(touched_on)::UInt32 as month,
    false::Bool as is_month,
    transition.1::LowCardinality(String) as dimension,
    goal::LowCardinality(String) as goal,
    transition.2::LowCardinality(String) as from_state,
    transition.3::LowCardinality(String) as to_state,
    touches_count::UInt64 as touches_count,
    -- until then the touch may still lead to something
    touched_on + {{ var('attribution_window_days') + 1 }} as settles_on,
    0::UInt64 as conversions_hash,
    ''::LowCardinality(String) as settings,
    toDateTime64(0, 3, 'UTC') as messages_seen_at
from transitions

union all

select
    months.month::UInt32 as month,
    true::Bool as is_month,
    ''::LowCardinality(String) as dimension,
    ''::LowCardinality(String) as goal,
    ''::LowCardinality(String) as from_state,
    ''::LowCardinality(String) as to_state,
    0::UInt64 as touches_count,
    toDate(0) as settles_on,
    coalesce(hashes.conversions_hash, 0)::UInt64 as conversions_hash,
    '{{ attribution_settings() }}'::LowCardinality(String) as settings,
    {{ messages_seen_at() }} as messages_seen_at
from months
left join hashes on hashes.month = months.month

{%- endif %}
