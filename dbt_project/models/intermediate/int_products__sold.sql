{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by='product_id',
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        post_hook="{{ note_taken_from(ref('int_orders__combined')) }}"
    )
}}

{#- months in which an order that changed is counted, or ever was -#}
{%- set months = [] %}
{%- if is_incremental() %}
{%- set query %}
select distinct arrayJoin(months) as month from {{ ref('int_orders__combined') }}
where recorded_at > {{ last_taken() }}
order by month
{%- endset %}
{%- set months = run_query(query).rows | map(attribute=0) | list %}
{%- endif %}
{%- set is_due = 'toYYYYMM(ordered_at) in (' ~ months | join(', ') ~ ')' if months else 'false' %}
{%- set columns = ['order_id', 'ordered_at', 'status', 'items'] %}

with

orders as (

    {% if is_incremental() -%}
    select *
    from (
        {{ newest_orders(columns, is_due) }}
    )
    where {{ is_due }}
    {%- else -%}
    select {{ columns | join(', ') }}
    from {{ newest(ref('int_orders__combined')) }}
    {%- endif %}

),

lines as (

    select
        order_id,
        ordered_at,
        status = 'placed' and item.quantity > 0 and item.unit_price > 0 as is_sale,
        arrayJoin(items) as item
    from orders

)

select
    ---------- ids
    toYYYYMM(ordered_at)::UInt32 as month,
    lines.item.product_id as product_id,

    ---------- text
    -- names on corrections ('damaged', '?') are no names of products, if there is a sale to take one from
    maxIf(
        tuple(is_sale, lines.ordered_at, lines.order_id, lines.item.line_number, lines.item.product_name),
        lines.item.product_name != ''
    ) as ranked_name,

    ---------- numerics
    maxIf(
        tuple(lines.ordered_at, lines.order_id, lines.item.line_number, lines.item.unit_price), is_sale
    ) as ranked_price,
    countIf(is_sale) as sales_count,
    sumIf(lines.item.quantity, is_sale)::Int64 as sold_count,
    -- a cast would cut; invoices round
    sumIf(round(lines.item.quantity * lines.item.unit_price, 2)::Decimal(18, 2), is_sale) as revenue,

    ---------- timestamps
    minIfOrNull(lines.ordered_at, is_sale) as first_sold_at,
    maxIfOrNull(lines.ordered_at, is_sale) as last_sold_at
from lines
where lines.item.product_id != ''
group by month, product_id
