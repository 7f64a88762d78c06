{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='toYYYYMM(converted_at)',
        order_by=['goal', 'contact_id', 'converted_at'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        post_hook="{{ note_taken(conversions_taken()) }}"
    )
}}

-- a table, since attribution asks many times, and most often for a few months

{%- set months = due_conversion_months() %}
{%- set columns = ['source', 'order_id', 'identity_id', 'revenue', 'ordered_at', 'is_sale'] %}
{#- orders are known better than by their events: they can be cancelled -#}
{%- set goal_types = "(select event_type from " ~ ref('conversion_goals') ~ " where event_type != 'order.placed')" %}

{% if months is not none and not months -%}
{{ nothing_due() }}

{%- else -%}
with

orders as (

    {% if months is none -%}
    select {{ columns | join(', ') }} from {{ newest(ref('int_orders__combined')) }}
    where is_sale
    {%- else -%}
    select *
    from (
        {{ newest_orders(columns, in_months('ordered_at', months)) }}
    )
    where is_sale and {{ in_months('ordered_at', months) }}
    {%- endif %}

),

owners as (

    select identity_id as owner_identity_id, contact_id as owner_contact_id
    from {{ ref('int_contacts__identified') }}
    {% if months is not none -%}
    where identity_id in (select identity_id from orders)
    {%- endif %}

),

goals as (

    select
        goal,
        event_type,
        revenue_property
    from {{ ref('conversion_goals') }}
    where event_type != 'order.placed'

),

events as (

    {{ owned_events(
        ['event_id', 'type', 'properties', 'occurred_at'],
        "type in " ~ goal_types ~ " and not is_machine and " ~ in_months('occurred_at', months)
    ) }}

)

select
    ---------- ids
    concat('order:', orders.source, ':', orders.order_id) as conversion_id,
    owners.owner_contact_id::Int64 as contact_id,

    ---------- text
    'order'::LowCardinality(String) as goal,

    ---------- numerics
    orders.revenue as revenue,

    ---------- timestamps
    orders.ordered_at as converted_at
from orders
inner join owners on owners.owner_identity_id = orders.identity_id

union all

select
    ---------- ids
    concat(goals.goal, ':', events.event_id) as conversion_id,
    events.contact_id::Int64 as contact_id,

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

{%- endif %}
