with

sizes as (

    select * from {{ ref('segment_sizes') }}

)

select
    ---------- ids
    segment,
    day,

    ---------- numerics
    members_count,
    entered_count,
    left_count
from sizes
