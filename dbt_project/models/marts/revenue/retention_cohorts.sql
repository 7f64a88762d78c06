{{
    config(
        order_by=['cohort_month', 'months_since_first_order']
    )
}}

with

customers as (

    select
        toStartOfMonth(first_order_at)::Date as cohort_month,
        sales
    from {{ newest(ref('int_contacts__ordered')) }}
    where orders_count > 0

),

sizes as (

    select
        cohort_month,
        count() as cohort_size
    from customers
    group by cohort_month

),

sold as (

    -- sales are in the order of time: the first of a month tells that the customer was active in it
    select
        cohort_month,
        arrayMap(sale -> dateDiff('month', cohort_month, toStartOfMonth(sale.1)::Date), sales) as months,
        arrayJoin(arrayMap(
            (month, sale, place) -> tuple(month, sale.2, place = 1 or months[place - 1] != month),
            months,
            sales,
            arrayEnumerate(sales)
        )) as sale
    from customers

),

activity as (

    select
        cohort_month,
        sale.1 as months_since_first_order,
        countIf(sale.3) as active_count,
        count() as orders_count,
        sum(sale.2) as revenue
    from sold
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
