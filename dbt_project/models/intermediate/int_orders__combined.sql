{{
    config(
        order_by=['source', 'order_id']
    )
}}

with

events as (

    select * from {{ ref('events') }}
    where type in ('order.placed', 'order.cancelled')

),

order_events as (

    select
        source,
        coalesce(nullIf(properties.order_id::Nullable(String), ''), event_id) as order_id,
        type = 'order.cancelled' as is_cancellation,
        event_id,
        contact_id,
        occurred_at,
        coalesce(properties.currency::Nullable(String), '') as currency,
        coalesce(properties.country::Nullable(String), '') as country,
        -- texts of every item: what a source writes as a number or as a text reads the same
        arrayZip(
            properties.items[].line_number::Array(Nullable(String)),
            properties.items[].product_id::Array(Nullable(String)),
            properties.items[].name::Array(Nullable(String)),
            properties.items[].quantity::Array(Nullable(String)),
            properties.items[].unit_price::Array(Nullable(String))
        ) as items
    from events

),

orders as (

    select
        source,
        order_id,
        max(is_cancellation) as is_cancelled,
        argMax(contact_id, tuple(not is_cancellation, occurred_at, event_id)) as contact_id,
        -- a cancellation need not repeat what was ordered: the last placement counts, if there is one
        argMax(
            tuple(currency, country, items),
            tuple(not is_cancellation, occurred_at, event_id)
        ) as content,
        if(
            countIf(not is_cancellation) > 0,
            minIf(occurred_at, not is_cancellation),
            min(occurred_at)
        ) as ordered_at,
        if(is_cancelled, toNullable(maxIf(occurred_at, is_cancellation)), null) as cancelled_at
    from order_events
    group by source, order_id

)

select
    ---------- ids
    order_id,
    contact_id,

    ---------- text
    source,
    if(is_cancelled, 'cancelled', 'placed')::LowCardinality(String) as status,
    content.1::LowCardinality(String) as currency,
    content.2::LowCardinality(String) as country,

    ---------- semi-structured
    arrayMap(
        (item, position) -> (
            coalesce(toUInt32OrNull(item.1), position)::UInt32,
            coalesce(item.2, ''),
            coalesce(trim(item.3), ''),
            coalesce(toInt64OrNull(item.4), 0)::Int64,
            coalesce(toDecimal64OrNull(item.5, 4), 0)::Decimal(18, 4)
        ),
        content.3,
        arrayEnumerate(content.3)
    )::Array(Tuple(
        line_number UInt32, product_id String, product_name String, quantity Int64, unit_price Decimal(18, 4)
    )) as items,

    ---------- timestamps
    ordered_at,
    cancelled_at
from orders
