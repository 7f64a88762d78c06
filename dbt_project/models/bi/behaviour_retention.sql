with

cohorts as (

    select * from {{ ref('cohort_retention') }}

)

select
    ---------- ids
    cohort,
    anchor_month,
    months_since,

    ---------- booleans
    is_member,

    ---------- numerics
    cohort_size,
    active_count,
    orders_count,
    revenue,
    retention_rate
from cohorts
