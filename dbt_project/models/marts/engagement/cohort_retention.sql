{{
    config(
        order_by=['cohort', 'is_member', 'anchor_month', 'months_since']
    )
}}

with

members as (

    select
        *,
        toStartOfMonth(anchored_at)::Date as anchor_month
    from {{ ref('cohort_members') }}
    where is_decided

),

customers as (

    select contact_id, sales
    from {{ newest(ref('int_contacts__ordered')) }}
    where orders_count > 0

),

sizes as (

    select cohort, is_member, anchor_month, count() as cohort_size
    from members
    group by cohort, is_member, anchor_month

),

sold as (

    -- sales are in the order of time: the first of a month tells that the customer was active in it
    select
        members.cohort as cohort,
        members.is_member as is_member,
        members.anchor_month as anchor_month,
        arrayFilter(
            sale -> sale.1 >= members.anchored_at and sale.1 <= {{ now() }}, customers.sales
        ) as later_sales,
        arrayMap(
            sale -> dateDiff('month', members.anchor_month, toStartOfMonth(sale.1)), later_sales
        ) as sale_months,
        arrayJoin(arrayMap(
            (month, sale, place) -> tuple(month, sale.2, place = 1 or sale_months[place - 1] != month),
            sale_months,
            later_sales,
            arrayEnumerate(later_sales)
        )) as sale
    from customers
    inner join members on members.contact_id = customers.contact_id

),

activity as (

    select
        cohort,
        is_member,
        anchor_month,
        sale.1 as months_since,
        countIf(sale.3) as active_count,
        count() as orders_count,
        sum(sale.2) as revenue
    from sold
    group by cohort, is_member, anchor_month, months_since

),

months as (

    -- a month without an order is a finding too
    select
        cohort,
        is_member,
        anchor_month,
        cohort_size,
        arrayJoin(range(dateDiff('month', anchor_month, toDate({{ now() }}, 'UTC')) + 1)) as months_since
    from sizes

)

select
    ---------- ids
    months.cohort as cohort,
    months.anchor_month as anchor_month,
    months.months_since::UInt16 as months_since,

    ---------- numerics
    months.cohort_size::UInt64 as cohort_size,
    coalesce(activity.active_count, 0)::UInt64 as active_count,
    coalesce(activity.orders_count, 0)::UInt64 as orders_count,
    coalesce(activity.revenue, 0)::Decimal(18, 2) as revenue,
    (coalesce(activity.active_count, 0) / months.cohort_size)::Float64 as retention_rate,

    ---------- booleans
    months.is_member as is_member
from months
left join activity
    on
        activity.cohort = months.cohort
        and activity.is_member = months.is_member
        and activity.anchor_month = months.anchor_month
        and activity.months_since = months.months_since
