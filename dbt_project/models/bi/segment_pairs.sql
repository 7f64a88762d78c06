with

overlaps as (

    select * from {{ ref('segment_overlaps') }}

)

select
    ---------- ids
    segment,
    other_segment,

    ---------- numerics
    segment_size,
    other_size,
    shared_count,
    jaccard,
    share_of_segment
from overlaps
