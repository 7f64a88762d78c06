with

cohorts as (

    select * from {{ ref('retention_cohorts') }}

)

select
    ---------- ids
    cohort_month,
    months_since_first_order,

    ---------- numerics
    cohort_size,
    active_count,
    orders_count,
    revenue,
    retention_rate,
    (revenue::Float64 / cohort_size)::Float64 as revenue_per_customer
from cohorts
