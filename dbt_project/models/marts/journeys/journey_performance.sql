{{
    config(
        order_by=['journey', 'version', 'step', 'day']
    )
}}

with

told as (

    select
        *,
        lagInFrame(version) over (
            partition by journey, contact_id order by sequence
            rows between unbounded preceding and unbounded following
        ) as previous_version
    from {{ ref('stg_journeys__moves') }}

),

moves as (

    -- who stays at a step, to wait for the end of quiet hours or moved to another version, comes to none
    select * from told
    where step != previous_step

),

transferred as (

    -- whom a new version took over while they waited: one row for each of the two
    select
        journey,
        previous_step,
        moved_at,
        arrayJoin([tuple(previous_version::String, toInt8(-1)), tuple(version::String, toInt8(1))]) as transfer
    from told
    where previous_step != '' and version != previous_version

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
        0 as endings,
        0 as transfers
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
        toUInt8(ending != '') as endings,
        0 as transfers
    from moves
    where previous_step != ''

    union all

    select
        journey,
        tupleElement(transfer, 1)::LowCardinality(String) as version,
        previous_step as step,
        toDate(moved_at) as day,
        0 as arrivals,
        0 as entries,
        0 as departures,
        0 as goals,
        0 as endings,
        tupleElement(transfer, 2) as transfers
    from transferred

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
    sum(goals)::UInt64 as goals_count,
    sum(transfers)::Int64 as transfers_count
from counted
group by journey, version, step, day
