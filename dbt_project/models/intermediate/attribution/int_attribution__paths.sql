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

converting as (

    select distinct contact_id, month from conversions

),

effects as (

    -- a few goals for each campaign and month
    select
        month as effects_month,
        state,
        mapFromArrays(groupArray(goal::String), groupArray(removal_effect)) as effects
    from {{ ref('int_attribution__effects') }}
    where not is_month and dimension = 'campaign'
    group by month, state

),

near as (

    -- a touch belongs to every month in which a conversion may follow it, so that no array outgrows a month
    select
        contact_id as touched_id,
        arrayJoin({{ months_between('touched_at', 'touched_at + ' ~ window) }}) as touched_month,
        message_id,
        kind,
        campaign,
        channel,
        state,
        tie,
        touched_at
    from {{ ref('int_attribution__touches') }}
    where
        {{ near_months('touched_at', months) }}
        -- a message touches only while it lives: partitions of older ones are not read
        and {{ near_months('created_at', months, before=var('attribution_window_days') + var('message_life_days')) }}

),

weighed as (

    select
        near.*,
        own.effects as own_effects,
        others.effects as others_effects
    from near
    left join effects as own on own.effects_month = near.touched_month and own.state = near.state
    left join (select * from effects where state = '(others)') as others on others.effects_month = near.touched_month
    where (touched_id, touched_month) in (select contact_id, month from converting)

),

histories as (

    select
        touched_id,
        touched_month,
        arraySort(touch -> tuple(touch.1, touch.2), groupArray(tuple(
            touched_at,
            tie,
            message_id,
            kind::String,
            campaign::String,
            channel::String,
            own_effects,
            others_effects
        ))) as touches
    from weighed
    group by touched_id, touched_month

),

paths as (

    select
        conversions.*,
        arrayFilter(
            touch -> touch.1 <= converted_at and touch.1 > converted_at - {{ window }},
            histories.touches
        ) as path
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
    arrayMap(touch -> touch.4, path) as kinds,
    arrayMap(touch -> touch.5, path) as campaigns,
    arrayMap(touch -> touch.6, path) as channels,
    arrayMap(touch -> touch.1, path) as touched_at,
    arrayMap(
        touch -> multiIf(mapContains(touch.7, goal), touch.7[goal], mapContains(touch.8, goal), touch.8[goal], -1.),
        path
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
