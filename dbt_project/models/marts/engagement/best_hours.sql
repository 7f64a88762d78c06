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

habits as (

    select
        readings.contact_id as contact_id,
        contacts.has_timezone as has_timezone,
        readings.counts as hour_counts,
        readings.events_count as events_count
    from {{ newest(ref('int_contacts__read'), 'readings') }}
    inner join contacts on contacts.known_id = readings.contact_id
    where readings.events_count > 0

),

populations as (

    -- hours of those whose zone we do not know are UTC, and say nothing of the hours of others
    select
        has_timezone,
        {{ around_the_clock('sumForEach(habits.hour_counts)') }} as counts,
        sum(habits.events_count) as events_count
    from habits
    group by has_timezone

),

weighed as (

    select
        habits.contact_id as contact_id,
        habits.events_count as events_count,
        {{ around_the_clock('habits.hour_counts') }} as own_counts,
        arrayMap(
            (own, everybody) -> (own + {{ prior }} * everybody / populations.events_count) / (habits.events_count + {{ prior }}),
            own_counts,
            populations.counts
        ) as shares
    from habits
    inner join populations on populations.has_timezone = habits.has_timezone

),

chosen as (

    select
        contact_id,
        events_count,
        arrayMax(shares) as best_share,
        indexOf(shares, best_share) - 1 as best_hour
    from weighed

),

everybody as (

    -- who has never read anything is like everybody, and so are all of them
    select
        has_timezone as of_timezone,
        arrayMap(count -> (0 + {{ prior }} * count / events_count) / (0 + {{ prior }}), counts) as shares,
        arrayMax(shares) as best_share,
        indexOf(shares, best_share) - 1 as best_hour
    from populations

)

select
    ---------- ids
    contacts.known_id as contact_id,

    ---------- text
    contacts.timezone::String as timezone,

    ---------- numerics
    coalesce(chosen.best_hour, everybody.best_hour)::UInt8 as best_hour,
    coalesce(chosen.best_share, everybody.best_share)::Float64 as best_hour_share,
    coalesce(chosen.events_count, 0)::UInt64 as events_count,
    (coalesce(chosen.events_count, 0) / (coalesce(chosen.events_count, 0) + {{ prior }}))::Float64 as own_weight,

    ---------- booleans
    contacts.has_timezone::Bool as has_timezone
from contacts
inner join everybody on everybody.of_timezone = contacts.has_timezone
left join chosen on chosen.contact_id = contacts.known_id
