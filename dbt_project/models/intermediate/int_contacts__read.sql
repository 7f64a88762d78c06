{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'rebuilt_at'),
        order_by='contact_id',
        query_settings={'optimize_on_insert': 0},
        post_hook="{{ note_taken() }}"
    )
}}

{%- set days = days_to_take() %}
{%- set from %}({{ now() }} - toIntervalDay({{ var('best_hour_days') }})){% endset %}
{%- set is_reading = "type in ('opened', 'clicked') and not is_machine" %}

with

zones as (

    -- what is no time zone is as good as none
    select
        contact_id as known_id,
        if(
            coalesce(contacts.timezone in (select time_zone from system.time_zones), false),
            assumeNotNull(contacts.timezone),
            ''
        )::LowCardinality(String) as timezone
    from {{ ref('contacts') }} as contacts

),

{% if is_incremental() -%}
kept as (

    select
        contact_id as kept_id,
        timezone as kept_timezone
    from {{ this }} final
    where events_count > 0

),

-- the window that was counted last: what has left it since, or come into it, is counted again
(select argMax(counted_from, rebuilt_at) from {{ this }}) as last_from,

(select argMax(counted_until, rebuilt_at) from {{ this }}) as last_until,

(

    -- a list, since it is asked for several times, and a subquery would be run as often
    select groupUniqArray(contact_id)
    from (
        select contact_id
        from {{ ref('int_contacts__identified') }}
        where identity_id in (
            select identity_id
            from {{ ref('int_events__recorded') }}
            where
                {{ is_reading }}
                and (
                    {{ is_recorded_on(days) }}
                    or (occurred_at > least(last_from, {{ from }}) and occurred_at <= greatest(last_from, {{ from }}))
                    or (occurred_at > least(last_until, {{ now() }}) and occurred_at <= greatest(last_until, {{ now() }}))
                )
        )

        union all

        select arrayJoin([contact_id, previous_contact_id]) as contact_id
        from {{ ref('int_contacts__identified') }}
        where moved_at >= {{ last_taken() }}

        union all

        select kept.kept_id as contact_id
        from kept
        inner join zones on zones.known_id = kept.kept_id
        where zones.timezone != kept.kept_timezone
    )

) as touched,

{% endif -%}
identities as (

    select identity_id, contact_id
    from {{ ref('int_contacts__identified') }}
    {% if is_incremental() -%}
    where contact_id in (select arrayJoin(touched))
    {%- endif %}

),

quarters as (

    -- by quarters first, which no time zone splits: a zone is looked up once for each, not for every event
    select
        identities.contact_id as contact_id,
        toStartOfFifteenMinutes(events.occurred_at) as quarter_at,
        count() as events_count
    from {{ ref('int_events__recorded') }} as events
    inner join identities on identities.identity_id = events.identity_id
    where
        {{ is_reading }}
        and events.occurred_at > {{ from }}
        and events.occurred_at <= {{ now() }}
        and {{ loaded_within('loaded_on', var('best_hour_days')) }}
        {% if is_incremental() -%}
        and events.identity_id in (select identity_id from identities)
        {%- endif %}
    group by contact_id, quarter_at

),

local_hours as (

    select
        quarters.contact_id as contact_id,
        toUInt8(if(
            zones.timezone = '',
            toHour(quarters.quarter_at, 'UTC'),
            toUInt8(formatDateTime(quarters.quarter_at, '%H', if(zones.timezone = '', 'UTC', zones.timezone)))
        )) as hour,
        sum(quarters.events_count) as events_count
    from quarters
    inner join zones on zones.known_id = quarters.contact_id
    group by contact_id, hour

    {% if is_incremental() -%}
    union all

    -- whose readings have all left the window keeps a row that outdoes the one before it
    select
        kept_id as contact_id,
        0::UInt8 as hour,
        0::UInt64 as events_count
    from kept
    where kept_id in (select arrayJoin(touched))
    {%- endif %}

),

habits as (

    select
        contact_id,
        sumForEach(hour_counts) as counts,
        sum(hour_count) as events_count
    from (
        select
            contact_id,
            local_hours.events_count::UInt32 as hour_count,
            arrayMap(here -> if(here = hour, hour_count, 0)::UInt32, range(24)) as hour_counts
        from local_hours
    )
    group by contact_id

)

select
    ---------- ids
    habits.contact_id as contact_id,

    ---------- text
    coalesce(zones.timezone, '')::LowCardinality(String) as timezone,

    ---------- numerics
    habits.counts::Array(UInt32) as counts,
    habits.events_count::UInt64 as events_count,

    ---------- timestamps
    {{ from }}::DateTime64(3, 'UTC') as counted_from,
    {{ now() }}::DateTime64(3, 'UTC') as counted_until,
    {{ stamp() }} as rebuilt_at
from habits
left any join zones on zones.known_id = habits.contact_id
