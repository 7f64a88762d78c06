{{
    config(
        order_by=['source', 'order_id', 'line_number']
    )
}}

with

orders as (

    select * from {{ ref('int_orders__combined') }}

),

lines as (

    select
        *,
        arrayJoin(items) as line
    from orders

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
