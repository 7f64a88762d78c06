with

journey_performance as (

    select * from {{ ref('journey_performance') }}

)

select
    ---------- ids
    journey,
    version,
    step,
    day,

    ---------- numerics
    entries_count,
    arrivals_count,
    (departures_count - endings_count)::UInt64 as done_count,
    (endings_count - goals_count)::UInt64 as exited_count,
    goals_count,
    sum(arrivals_count::Int64 - departures_count::Int64 + transfers_count) over (
        partition by journey, version, step order by day
        rows between unbounded preceding and current row
    )::Int64 as waiting_count
from journey_performance
