{{
    config(
        partition_by='toYYYYMM(converted_at)',
        order_by=['goal', 'contact_id', 'converted_at'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

-- a table, since attribution asks many times, and most often for a few months

with

orders as (

    select * from {{ ref('orders') }}
    where is_sale and contact_id is not null

),

goals as (

    -- orders are known better than by their events: they can be cancelled
    select
        goal,
        event_type,
        revenue_property
    from {{ ref('conversion_goals') }}
    where event_type != 'order.placed'

),

events as (

    select * from {{ ref('events') }}
    where
        type in (select event_type from goals)
        and not is_machine
        and contact_id is not null

)

select
    ---------- ids
    concat('order:', source, ':', order_id) as conversion_id,
    assumeNotNull(orders.contact_id)::Int64 as contact_id,

    ---------- text
    'order'::LowCardinality(String) as goal,

    ---------- numerics
    revenue,

    ---------- timestamps
    ordered_at as converted_at
from orders

union all

select
    ---------- ids
    concat(goals.goal, ':', events.event_id) as conversion_id,
    assumeNotNull(events.contact_id)::Int64 as contact_id,

    ---------- text
    goals.goal::LowCardinality(String) as goal,

    ---------- numerics
    if(
        goals.revenue_property = '',
        0,
        round(toDecimal64OrZero(trim(both '"' from JSONExtractRaw(toJSONString(events.properties), goals.revenue_property)), 6), 2)
    )::Decimal(18, 2) as revenue,

    ---------- timestamps
    events.occurred_at as converted_at
from events
inner join goals on goals.event_type = events.type
