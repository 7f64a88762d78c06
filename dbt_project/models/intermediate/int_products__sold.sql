{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by='product_id',
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        post_hook=["{{ drop_folded_months() }}", "{{ note_taken_from(ref('int_orders__combined')) }}"]
    )
}}

{#- an order that changed has the months in which it is counted, or ever was -#}
{%- set due = due_month_sums(
    ref('int_orders__combined'),
    moment='ordered_at',
    is_new='recorded_at > ' ~ last_taken(),
    months='months',
    open_days=var('order_life_days') + 31
) %}
{#- one that has gone from a month may leave none there -#}
{%- do due_partitions(due.touched) %}
{%- set columns = ['order_id', 'ordered_at', 'status', 'items'] %}

{% if due.read == 'false' -%}
{{ nothing_due() }}

{%- else -%}
with

orders as (

    {% if is_incremental() -%}
    select *
    from (
        {{ newest_orders(columns, due.read) }}
    )
    where {{ due.read }}
    {%- else -%}
    select {{ columns | join(', ') }}
    from {{ newest(ref('int_orders__combined')) }}
    {%- endif %}

),

lines as (

    select
        {{ sum_month('ordered_at', due) }} as month,
        order_id,
        ordered_at,
        status = 'placed' and item.quantity > 0 and item.unit_price > 0 as is_sale,
        arrayJoin(items) as item
    from orders

),

added as (

    select
        month,
        lines.item.product_id as product_id,
        -- names on corrections ('damaged', '?') are no names of products, if there is a sale to take one from
        maxIf(
            tuple(is_sale, lines.ordered_at, lines.order_id, lines.item.line_number, lines.item.product_name),
            lines.item.product_name != ''
        ) as ranked_name,
        maxIf(
            tuple(lines.ordered_at, lines.order_id, lines.item.line_number, lines.item.unit_price), is_sale
        ) as ranked_price,
        countIf(is_sale) as sales_count,
        sumIf(lines.item.quantity, is_sale)::Int64 as sold_count,
        -- a cast would cut; invoices round
        sumIf(round(lines.item.quantity * lines.item.unit_price, 2)::Decimal(18, 2), is_sale) as revenue,
        minIfOrNull(lines.ordered_at, is_sale) as first_sold_at,
        maxIfOrNull(lines.ordered_at, is_sale) as last_sold_at
    from lines
    where lines.item.product_id != ''
    group by month, product_id
    {% if is_incremental() %}
    union all

    select
        0::UInt32 as month,
        product_id,
        ranked_name,
        ranked_price,
        sales_count,
        sold_count,
        revenue,
        first_sold_at,
        last_sold_at
    from {{ this }} as kept
    where {{ due.keep }}
    {% endif %}

)

select
    ---------- ids
    month,
    product_id,

    ---------- text
    max(added.ranked_name) as ranked_name,

    ---------- numerics
    max(added.ranked_price) as ranked_price,
    sum(added.sales_count) as sales_count,
    sum(added.sold_count)::Int64 as sold_count,
    sum(added.revenue) as revenue,
    if(month = 0, {{ due.fold }}, 0)::UInt32 as folded_through,

    ---------- timestamps
    min(added.first_sold_at) as first_sold_at,
    max(added.last_sold_at) as last_sold_at
from added
group by month, product_id

{%- endif %}
