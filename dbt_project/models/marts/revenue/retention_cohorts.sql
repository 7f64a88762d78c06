{{
    config(
        order_by=['cohort_month', 'months_since_first_order']
    )
}}

with

orders as (

    select * from {{ ref('orders') }}
    where is_sale and contact_id is not null

),

order_months as (

    select
        assumeNotNull(orders.contact_id) as contact_id,
        toStartOfMonth(orders.ordered_at)::Date as order_month,
        orders.revenue as revenue
    from orders

),

first_orders as (

    select
        contact_id,
        min(order_month) as cohort_month
    from order_months
    group by contact_id

),

sizes as (

    select
        cohort_month,
        count() as cohort_size
    from first_orders
    group by cohort_month

),

activity as (

    select
        first_orders.cohort_month as cohort_month,
        dateDiff('month', first_orders.cohort_month, order_months.order_month) as months_since_first_order,
        uniqExact(order_months.contact_id) as active_count,
        count() as orders_count,
        sum(order_months.revenue) as revenue
    from order_months
    inner join first_orders on first_orders.contact_id = order_months.contact_id
    group by cohort_month, months_since_first_order

)

select
    ---------- ids
    activity.cohort_month as cohort_month,
    activity.months_since_first_order::UInt16 as months_since_first_order,

    ---------- numerics
    sizes.cohort_size::UInt64 as cohort_size,
    activity.active_count::UInt64 as active_count,
    activity.orders_count::UInt64 as orders_count,
    activity.revenue::Decimal(18, 2) as revenue,
    activity.active_count / sizes.cohort_size as retention_rate
from activity
inner join sizes on sizes.cohort_month = activity.cohort_month
