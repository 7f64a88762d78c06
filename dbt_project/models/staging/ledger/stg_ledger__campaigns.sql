with

campaigns as (

    select * from {{ source('raw', 'campaigns') }}

),

latest as (

    -- the version that was loaded last is in force
    select * from campaigns
    order by loaded_at desc, version desc
    limit 1 by kind, name

)

select
    ---------- text
    kind,
    name,
    version,
    description,
    channel,
    category,
    segment,
    goal_event,
    goal_where,
    experiment,

    ---------- numerics
    goal_within_seconds,

    ---------- semi-structured
    spec,

    ---------- timestamps
    loaded_at
from latest
