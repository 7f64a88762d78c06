with

habits as (

    select * from {{ ref('best_hours') }}

)

select
    ---------- ids
    best_hour,

    ---------- booleans
    has_timezone,

    ---------- numerics
    count() as contacts_count,
    countIf(own_weight >= 0.5) as own_habit_count,
    sum(events_count)::UInt64 as events_count
from habits
group by best_hour, has_timezone
