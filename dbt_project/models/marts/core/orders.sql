{{
    config(
        materialized='view'
    )
}}

with

orders as (

    select * from {{ newest(ref('int_orders__combined')) }}

),

identities as (

    select identity_id as known_identity_id, contact_id as known_contact_id
    from {{ ref('int_contacts__identified') }}

)

select
    ---------- ids
    orders.order_id as order_id,
    nullIf(identities.known_contact_id, 0) as contact_id,

    ---------- text
    orders.source as source,
    orders.status as status,
    orders.currency as currency,
    orders.country as country,

    ---------- numerics
    orders.revenue as revenue,
    orders.total as total,
    orders.items_count as items_count,
    orders.lines_count as lines_count,

    ---------- booleans
    orders.is_sale as is_sale,

    ---------- timestamps
    orders.ordered_at as ordered_at,
    orders.cancelled_at as cancelled_at
from orders
left any join identities on identities.known_identity_id = orders.identity_id
