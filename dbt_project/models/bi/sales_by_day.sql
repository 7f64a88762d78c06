with

orders as (

    select * from {{ ref('orders') }}
    where is_sale

),

first_orders as (

    select
        contact_id as customer_id,
        first_order_at
    from {{ ref('rfm') }}

),

placed as (

    select
        orders.ordered_at::Date as ordered_on,
        orders.country as country,
        multiIf(
            orders.contact_id is null, 'unknown',
            first_orders.first_order_at = orders.ordered_at, 'new',
            'returning'
        ) as customer_type,
        orders.revenue as revenue,
        orders.items_count as items_count,
        orders.contact_id as contact_id
    from orders
    left join first_orders on first_orders.customer_id = coalesce(orders.contact_id, 0)

)

select
    ---------- ids
    ordered_on,
    country,
    customer_type,

    ---------- numerics
    count() as orders_count,
    uniqExact(contact_id) as customers_count,
    sum(items_count) as items_count,
    sum(revenue)::Decimal(18, 2) as revenue
from placed
group by ordered_on, country, customer_type
