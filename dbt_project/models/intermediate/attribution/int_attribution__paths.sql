{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        partition_by='month',
        order_by=['is_month', 'goal', 'converted_at', 'conversion_id'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

{#- no on_schema_change: dbt reads the names in a tuple's type with quotes here and without them there, and sees a change -#}

{%- set months = due_attribution_months(has_effects=true) %}
{%- set window = 'toIntervalDay(' ~ var('attribution_window_days') ~ ')' %}

{% if is_incremental() and not months -%}
{{ nothing_due() }}

{%- else -%}
with

conversions as (

    select
        *,
        toYYYYMM(converted_at) as month
    from {{ ref('conversions') }}
    where {{ in_months('converted_at', months) }}

),

(

    {{ attribution_places(months) }}

) as places,

(

    -- a few goals for each campaign and month: numbers and effects
    select tuple(groupArray(cityHash64(month, goal::String, state::String)), groupArray(removal_effect))
    from {{ ref('int_attribution__effects') }}
    where
        not is_month
        and dimension = 'campaign'
        {% if months is not none -%}
        and month in ({{ months | join(', ') }})
        {%- endif %}

) as learned,

near as (

    -- a touch belongs to every month in which a conversion may follow it, so that no array outgrows a month
    select
        contact_id as touched_id,
        arrayJoin({{ months_between('touched_at', 'touched_at + ' ~ window) }}) as touched_month,
        message_id,
        {{ attribution_place('kind', 'campaign', 'channel') }} as place,
        -- the time and, of two in one moment, an order that is always the same: one number, which sorts faster than a tuple
        bitOr(bitShiftLeft(toUnixTimestamp64Milli(touched_at)::UInt128, 64), tie::UInt128) as moment
    from {{ ref('int_attribution__touches') }}
    where
        {{ near_months('touched_at', months) }}
        -- a message touches only while it lives: partitions of older ones are not read
        and {{ near_months('created_at', months, before=var('attribution_window_days') + var('message_life_days')) }}

),

histories as (

    select
        touched_id,
        touched_month,
        groupArray(tuple(moment, place, message_id)) as touches
    from near
    where (touched_id, touched_month) in (select contact_id, month from conversions)
    group by touched_id, touched_month

),

paths as (

    select
        conversions.*,
        arraySort(
            touch -> touch.1,
            arrayFilter(
                touch -> bitShiftRight(touch.1, 64)::Int64 <= toUnixTimestamp64Milli(converted_at)
                    and bitShiftRight(touch.1, 64)::Int64 > toUnixTimestamp64Milli(converted_at - {{ window }}),
                histories.touches
            )
        ) as path,
        arrayMap(touch -> touch.2, path) as path_places
    from conversions
    left join histories
        on histories.touched_id = conversions.contact_id and histories.touched_month = conversions.month

),

months as (

    {% if months is none -%}
    select distinct month from conversions
    {%- else -%}
    select arrayJoin([{{ months | join(', ') }}]::Array(UInt32)) as month
    {%- endif %}

),

conversion_hashes as (

    {{ conversion_hashes(months) }}

),

effect_hashes as (

    {{ effect_hashes(months) }}

)

select
    month::UInt32 as month,
    false::Bool as is_month,
    conversion_id,
    contact_id,
    goal,
    revenue,
    arrayMap(touch -> touch.3, path) as message_ids,
    arrayMap(place -> transform(place, places.1, places.2, ''), path_places) as kinds,
    arrayMap(place -> transform(place, places.1, places.3, ''), path_places) as campaigns,
    arrayMap(place -> transform(place, places.1, places.4, ''), path_places) as channels,
    arrayMap(touch -> fromUnixTimestamp64Milli(bitShiftRight(touch.1, 64)::Int64, 'UTC'), path) as touched_at,
    arrayMap(
        (place, others) -> transform(
            cityHash64(month, goal::String, transform(place, places.1, places.5, '')), learned.1, learned.2, others
        ),
        path_places,
        arrayMap(
            place -> transform(cityHash64(month, goal::String, '(others)'), learned.1, learned.2, -1.), path_places
        )
    ) as effects,
    converted_at,
    0::UInt64 as conversions_hash,
    0::UInt64 as effects_hash,
    ''::LowCardinality(String) as settings,
    toDateTime64(0, 3, 'UTC') as messages_seen_at,
    toDateTime64(0, 3, 'UTC') as rebuilt_at
from paths

union all

select
    months.month::UInt32 as month,
    true::Bool as is_month,
    '' as conversion_id,
    0::Int64 as contact_id,
    ''::LowCardinality(String) as goal,
    0::Decimal(18, 2) as revenue,
    [] as message_ids,
    [] as kinds,
    [] as campaigns,
    [] as channels,
    [] as touched_at,
    [] as effects,
    toDateTime64(0, 3, 'UTC') as converted_at,
    coalesce(conversion_hashes.conversions_hash, 0)::UInt64 as conversions_hash,
    coalesce(effect_hashes.effects_hash, 0)::UInt64 as effects_hash,
    '{{ attribution_settings() }}'::LowCardinality(String) as settings,
    {{ messages_seen_at() }} as messages_seen_at,
    {{ now() }} as rebuilt_at
from months
left join conversion_hashes on conversion_hashes.month = months.month
left join effect_hashes on effect_hashes.month = months.month

{%- endif %}
