{{
    config(
        order_by=['journey', 'version', 'step', 'day']
    )
}}

with

moves as (

    -- who stays at a step, to wait for the end of quiet hours or moved to another version, comes to none
    select * from {{ ref('stg_journeys__moves') }}
    where step != previous_step

),

counted as (

    select
        journey,
        version,
        step,
        toDate(moved_at) as day,
        1 as arrivals,
        toUInt8(previous_step = '') as entries,
        0 as departures,
        0 as goals,
        0 as endings
    from moves
    where step != ''

    union all

    select
        journey,
        version,
        previous_step as step,
        toDate(moved_at) as day,
        0 as arrivals,
        0 as entries,
        1 as departures,
        toUInt8(ending = 'goal') as goals,
        toUInt8(ending != '') as endings
    from moves
    where previous_step != ''

)

select
    ---------- text
    journey,
    version,
    step,

    ---------- dates
    day,

    ---------- numerics
    sum(entries)::UInt64 as entries_count,
    sum(arrivals)::UInt64 as arrivals_count,
    sum(departures)::UInt64 as departures_count,
    sum(endings)::UInt64 as endings_count,
    sum(goals)::UInt64 as goals_count
from counted
group by journey, version, step, day
