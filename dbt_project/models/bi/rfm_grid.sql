with

customers as (

    select * from {{ ref('rfm') }}

)

select
    ---------- ids
    recency_score,
    frequency_score,
    monetary_score,

    ---------- text
    any(rfm_segment)::String as customer_group,

    ---------- numerics
    any(value_score) as value_score,
    count() as customers_count,
    sum(orders_count) as orders_count,
    sum(revenue)::Decimal(18, 2) as revenue,
    sum(recency_days)::Int64 as recency_days_sum
from customers
group by recency_score, frequency_score, monetary_score
