{{
    config(
        order_by=['source', 'order_id']
    )
}}

with

orders as (

    select * from {{ ref('int_orders__combined') }}

),

order_items as (

    select * from {{ ref('order_items') }}

),

totals as (

    select
        source,
        order_id,
        count() as lines_count,
        sumIf(quantity, order_items.is_sale) as items_count,
        sumIf(amount, order_items.is_sale) as revenue,
        sum(amount) as total,
        max(order_items.is_sale) as is_sale
    from order_items
    group by source, order_id

)

select
    ---------- ids
    orders.order_id as order_id,
    orders.contact_id as contact_id,

    ---------- text
    orders.source as source,
    orders.status as status,
    orders.currency as currency,
    orders.country as country,

    ---------- numerics
    coalesce(totals.revenue, 0)::Decimal(18, 2) as revenue,
    coalesce(totals.total, 0)::Decimal(18, 2) as total,
    coalesce(totals.items_count, 0)::Int64 as items_count,
    coalesce(totals.lines_count, 0)::UInt32 as lines_count,

    ---------- booleans
    coalesce(totals.is_sale, false)::Bool as is_sale,

    ---------- timestamps
    orders.ordered_at as ordered_at,
    orders.cancelled_at as cancelled_at
from orders
left join totals
    on totals.source = orders.source and totals.order_id = orders.order_id
