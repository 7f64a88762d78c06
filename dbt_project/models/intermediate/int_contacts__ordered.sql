{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'rebuilt_at'),
        order_by='contact_id',
        query_settings={'optimize_on_insert': 0},
        post_hook="{{ note_taken_from(ref('int_orders__combined')) }}"
    )
}}

with

{% if is_incremental() -%}
(

    -- a list, since it is asked for several times, and a subquery would be run as often
    select groupUniqArray(contact_id)
    from (
        select contact_id
        from {{ ref('int_contacts__identified') }}
        where identity_id in (
            select arrayJoin(identity_ids) from {{ ref('int_orders__combined') }} where recorded_at > {{ last_taken() }}
        )

        union all

        select arrayJoin([contact_id, previous_contact_id]) as contact_id
        from {{ ref('int_contacts__identified') }}
        where moved_at >= {{ last_taken() }}
    )

) as touched,

{% endif -%}
identities as (

    select identity_id, contact_id
    from {{ ref('int_contacts__identified') }}
    {% if is_incremental() -%}
    where contact_id in (select arrayJoin(touched))
    {%- endif %}

),

orders as (

    {% if is_incremental() -%}
    select *
    from (
        {{ newest_orders(
            ['identity_id', 'ordered_at', 'revenue', 'items_count', 'is_sale', 'product_hashes'],
            'identity_id in (select identity_id from identities)'
        ) }}
    )
    where is_sale
    {%- else -%}
    select
        identity_id,
        ordered_at,
        revenue,
        items_count,
        product_hashes
    from {{ newest(ref('int_orders__combined')) }}
    where is_sale
    {%- endif %}

),

sold as (

    select
        identities.contact_id as contact_id,
        orders.items_count as items_count,
        orders.revenue as revenue,
        [tuple(orders.ordered_at, orders.revenue)] as sale,
        orders.product_hashes as product_hashes
    from orders
    inner join identities on identities.identity_id = orders.identity_id

    {% if is_incremental() -%}
    union all

    -- who has lost their orders to another contact, or by cancelling them, keeps a row that outdoes the one before it
    select
        contact_id,
        0 as items_count,
        0::Decimal(18, 2) as revenue,
        []::Array(Tuple(DateTime64(3, 'UTC'), Decimal(18, 2))) as sale,
        []::Array(UInt64) as product_hashes
    from {{ this }}
    where contact_id in (select arrayJoin(touched))
    {%- endif %}

),

customers as (

    select
        contact_id,
        sum(sold.items_count) as items_count,
        sum(sold.revenue) as revenue,
        arraySort(groupArrayArray(sold.sale)) as sales,
        groupUniqArrayArray(sold.product_hashes) as product_hashes
    from sold
    group by contact_id

)

select
    ---------- ids
    contact_id,

    ---------- numerics
    length(sales)::UInt32 as orders_count,
    customers.items_count::Int64 as items_count,
    customers.revenue::Decimal(18, 2) as revenue,

    ---------- semi-structured
    customers.sales as sales,
    arraySort(customers.product_hashes) as product_hashes,

    ---------- timestamps
    customers.sales[1].1 as first_order_at,
    customers.sales[-1].1 as last_order_at,
    {{ stamp() }} as rebuilt_at
from customers
