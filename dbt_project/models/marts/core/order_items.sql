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

),

lines as (

    select
        orders.* except (items),
        nullIf(identities.known_contact_id, 0) as contact_id,
        arrayJoin(orders.items) as line
    from orders
    left any join identities on identities.known_identity_id = orders.identity_id

)

select
    ---------- ids
    order_id,
    line.line_number as line_number,
    line.product_id as product_id,
    contact_id,

    ---------- text
    source,
    line.product_name as product_name,
    status,
    currency,

    ---------- numerics
    line.quantity as quantity,
    line.unit_price as unit_price,
    -- a cast would cut; invoices round
    round(line.quantity * line.unit_price, 2)::Decimal(18, 2) as amount,

    ---------- booleans
    (status = 'placed' and quantity > 0 and unit_price > 0)::Bool as is_sale,

    ---------- timestamps
    ordered_at
from lines
