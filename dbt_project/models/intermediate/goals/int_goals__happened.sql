{{
    config(
        materialized='view'
    )
}}

with

goals as (

    select
        goal_event,
        max(goal_where != '') as has_conditions
    from {{ ref('stg_ledger__campaigns') }}
    where goal_event != ''
    group by goal_event

),

orders as (

    -- orders are known better than by their events: they can be cancelled
    select * from {{ ref('orders') }}
    where is_sale and contact_id is not null and 'order.placed' in (select goal_event from goals)

),

events as (

    select * from {{ ref('events') }}
    where
        type in (select goal_event from goals where goal_event != 'order.placed')
        and not is_machine
        and contact_id is not null

)

select
    ---------- ids
    concat(source, ':', order_id) as event_key,
    assumeNotNull(orders.contact_id)::Int64 as contact_id,

    ---------- text
    'order.placed'::LowCardinality(String) as event_type,
    if(
        'order.placed' in (select goal_event from goals where has_conditions),
        toJSONString(tuple(revenue, total, items_count, lines_count, currency, country, source)::Tuple(
            revenue Float64, total Float64, items_count Int64, lines_count UInt32, currency String, country String, source String
        )),
        ''
    ) as properties_text,

    ---------- numerics
    revenue,

    ---------- timestamps
    ordered_at as occurred_at
from orders

union all

select
    ---------- ids
    event_id as event_key,
    assumeNotNull(events.contact_id)::Int64 as contact_id,

    ---------- text
    type as event_type,
    if(type in (select goal_event from goals where has_conditions), toJSONString(properties), '') as properties_text,

    ---------- numerics
    0::Decimal(18, 2) as revenue,

    ---------- timestamps
    occurred_at
from events
