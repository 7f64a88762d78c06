{{
    config(
        order_by='contact_id'
    )
}}

{%- set prior = var('best_hour_prior_count') %}

with

contacts as (

    -- what is no time zone is as good as none
    select
        contact_id as known_id,
        coalesce(contacts.timezone in (select time_zone from system.time_zones), false) as has_timezone,
        if(has_timezone, assumeNotNull(contacts.timezone), 'UTC') as timezone
    from {{ ref('contacts') }} as contacts
    where not is_deleted

),

events as (

    select
        assumeNotNull(contact_id) as contact_id,
        occurred_at
    from {{ ref('events') }}
    where
        type in ('opened', 'clicked')
        and not is_machine
        and contact_id is not null
        and occurred_at > {{ now() }} - toIntervalDay({{ var('best_hour_days') }})
        and occurred_at <= {{ now() }}
        and {{ loaded_within('loaded_at', var('best_hour_days')) }}

),

quarters as (

    -- by quarters first, which no time zone splits: a zone is looked up once for each, not for every event
    select
        contact_id,
        toStartOfFifteenMinutes(occurred_at) as quarter_at,
        count() as events_count
    from events
    group by contact_id, quarter_at

),

local_hours as (

    select
        contacts.known_id as contact_id,
        contacts.has_timezone as has_timezone,
        toUInt8(formatDateTime(quarters.quarter_at, '%H', contacts.timezone)) as hour,
        sum(quarters.events_count) as events_count
    from quarters
    inner join contacts on contacts.known_id = quarters.contact_id
    group by contact_id, has_timezone, hour

),

habits as (

    select
        contact_id,
        {{ around_the_clock('groupArrayInsertAt(0, 24)(local_hours.events_count::UInt64, hour)') }} as counts,
        sum(local_hours.events_count) as events_count
    from local_hours
    group by contact_id

),

populations as (

    -- hours of those whose zone we do not know are UTC, and say nothing of the hours of others
    select
        has_timezone,
        {{ around_the_clock('groupArrayInsertAt(0, 24)(hour_count, hour)') }} as counts,
        sum(hour_count) as events_count
    from (
        select has_timezone, hour, sum(events_count)::UInt64 as hour_count
        from local_hours
        group by has_timezone, hour
    )
    group by has_timezone

),

weighed as (

    select
        contacts.known_id as contact_id,
        contacts.timezone as timezone,
        contacts.has_timezone as has_timezone,
        coalesce(habits.events_count, 0) as events_count,
        arrayMap(
            (own, everybody) -> (own + {{ prior }} * everybody / populations.events_count) / (events_count + {{ prior }}),
            if(events_count > 0, habits.counts, arrayResize([]::Array(Float64), 24)),
            populations.counts
        ) as shares
    from contacts
    inner join populations on populations.has_timezone = contacts.has_timezone
    left join habits on habits.contact_id = contacts.known_id

)

select
    ---------- ids
    contact_id,

    ---------- text
    timezone::String as timezone,

    ---------- numerics
    (indexOf(shares, arrayMax(shares)) - 1)::UInt8 as best_hour,
    arrayMax(shares)::Float64 as best_hour_share,
    events_count::UInt64 as events_count,
    (events_count / (events_count + {{ prior }}))::Float64 as own_weight,

    ---------- booleans
    has_timezone::Bool as has_timezone
from weighed
