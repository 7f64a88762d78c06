{{
    config(
        materialized='view'
    )
}}

with

sales as (

    select
        contact_id,
        arrayJoin(sales) as sale
    from {{ newest(ref('int_contacts__ordered')) }}
    where orders_count > 0

),

days as (

    -- all purchases of a day are one
    select
        contact_id,
        toDate(sale.1, 'UTC') as ordered_on,
        sum(sale.2) as revenue
    from sales
    where sale.1 <= {{ now() }}
    group by contact_id, ordered_on

),

customers as (

    select
        contact_id,
        count() as days_count,
        min(ordered_on) as first_order_on,
        max(ordered_on) as last_order_on,
        argMin(days.revenue, ordered_on) as first_revenue,
        sum(days.revenue) as revenue
    from days
    group by contact_id

)

select
    ---------- ids
    contact_id::Int64 as contact_id,

    ---------- numerics
    (days_count - 1)::UInt32 as frequency,
    dateDiff('day', first_order_on, last_order_on)::UInt32 as recency_days,
    dateDiff('day', first_order_on, toDate({{ now() }}, 'UTC'))::UInt32 as age_days,
    if(days_count > 1, toFloat64(revenue - first_revenue) / (days_count - 1), 0)::Float64 as monetary_value,
    revenue::Decimal(18, 2) as revenue,

    ---------- timestamps
    first_order_on::Date as first_order_on,
    last_order_on::Date as last_order_on
from customers
