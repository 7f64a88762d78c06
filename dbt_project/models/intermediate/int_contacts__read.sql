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
(select argMax(tuple(counted_from, counted_until), rebuilt_at) from {{ this }}) as window,

read_again as (

    select identity_id
    from {{ ref('int_events__recorded') }}
    where
        {{ is_reading }}
        and (
            {{ is_recorded_on(days) }}
            or (occurred_at > least(window.1, {{ from }}) and occurred_at <= greatest(window.1, {{ from }}))
            or (occurred_at > least(window.2, {{ now() }}) and occurred_at <= greatest(window.2, {{ now() }}))
        )

),

touched as (

    select contact_id
    from {{ ref('int_contacts__identified') }}
    where identity_id in (select identity_id from read_again)

    union distinct

    select arrayJoin([contact_id, previous_contact_id]) as contact_id
    from {{ ref('int_contacts__identified') }}
    where moved_at >= {{ last_taken() }}

    union distinct

    select kept.kept_id as contact_id
    from kept
    inner join zones on zones.known_id = kept.kept_id
    where zones.timezone != kept.kept_timezone

),

{% endif -%}
identities as (

    select identity_id, contact_id
    from {{ ref('int_contacts__identified') }}
    {% if is_incremental() -%}
    where contact_id in (select contact_id from touched)
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
        zones.timezone as timezone,
        toUInt8(if(
            timezone = '',
            toHour(quarters.quarter_at, 'UTC'),
            toUInt8(formatDateTime(quarters.quarter_at, '%H', if(timezone = '', 'UTC', timezone)))
        )) as hour,
        sum(quarters.events_count) as events_count
    from quarters
    inner join zones on zones.known_id = quarters.contact_id
    group by contact_id, timezone, hour

),

habits as (

    select
        contact_id,
        timezone,
        groupArrayInsertAt(0, 24)(local_hours.events_count::UInt32, hour) as counts,
        sum(local_hours.events_count) as events_count
    from local_hours
    group by contact_id, timezone

)

select
    ---------- ids
    contact_id,

    ---------- text
    timezone,

    ---------- numerics
    counts,
    habits.events_count::UInt64 as events_count,

    ---------- timestamps
    {{ from }}::DateTime64(3, 'UTC') as counted_from,
    {{ now() }}::DateTime64(3, 'UTC') as counted_until,
    {{ stamp() }} as rebuilt_at
from habits

{%- if is_incremental() %}

union all

-- whose readings have all left the window keeps a row that outdoes the one before it
select
    kept.kept_id as contact_id,
    kept.kept_timezone as timezone,
    []::Array(UInt32) as counts,
    0::UInt64 as events_count,
    {{ from }}::DateTime64(3, 'UTC') as counted_from,
    {{ now() }}::DateTime64(3, 'UTC') as counted_until,
    {{ stamp() }} as rebuilt_at
from kept
where
    kept.kept_id in (select contact_id from touched)
    and kept.kept_id not in (select contact_id from habits)
{%- endif %}
