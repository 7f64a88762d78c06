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

orders as (

    select
        assumeNotNull(contact_id) as contact_id,
        ordered_at,
        revenue
    from {{ ref('orders') }} as orders
    where is_sale and orders.contact_id is not null and ordered_at <= {{ now() }}

),

sizes as (

    select cohort, is_member, anchor_month, count() as cohort_size
    from members
    group by cohort, is_member, anchor_month

),

activity as (

    select
        members.cohort as cohort,
        members.is_member as is_member,
        members.anchor_month as anchor_month,
        dateDiff('month', members.anchor_month, toStartOfMonth(orders.ordered_at)) as months_since,
        uniqExact(orders.contact_id) as active_count,
        count() as orders_count,
        sum(orders.revenue) as revenue
    from orders
    inner join members on members.contact_id = orders.contact_id
    where orders.ordered_at >= members.anchored_at
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
