{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree'),
        order_by=['source', 'order_id'],
        query_settings={'optimize_on_insert': 0},
        post_hook="{{ note_taken() }}"
    )
}}

{%- set days = days_to_take() %}

with

events as (

    select * from {{ ref('int_events__recorded') }}
    where
        type in ('order.placed', 'order.cancelled')
        {% if days is not none -%}
        and {{ is_recorded_on(days) }}
        {%- endif %}

),

order_events as (

    select
        source,
        coalesce(nullIf(properties.order_id::Nullable(String), ''), event_id) as order_id,
        type = 'order.cancelled' as is_cancellation,
        -- a cancellation need not repeat what was ordered: the last placement counts, if there is one
        tuple(not is_cancellation, occurred_at, event_id, recorded_at) as content_rank,
        identity_id,
        occurred_at,
        recorded_at,
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

versions as (

    select
        source,
        order_id,
        sipHash64(source, order_id) as order_hash,
        content_rank,
        tuple(
            identity_id,
            currency,
            country,
            arrayMap(
                (item, position) -> (
                    coalesce(toUInt32OrNull(item.1), position)::UInt32,
                    coalesce(item.2, ''),
                    coalesce(trim(item.3), ''),
                    coalesce(toInt64OrNull(item.4), 0)::Int64,
                    coalesce(toDecimal64OrNull(item.5, 4), 0)::Decimal(18, 4)
                ),
                items,
                arrayEnumerate(items)
            )::Array(Tuple(
                line_number UInt32, product_id String, product_name String, quantity Int64, unit_price Decimal(18, 4)
            ))
        ) as content,
        [identity_id] as identity_ids,
        []::Array(UInt32) as months,
        if(is_cancellation, null, occurred_at) as placed_at,
        if(is_cancellation, occurred_at, null) as cancelled_at,
        occurred_at as first_event_at,
        recorded_at
    from order_events
    {% if is_incremental() %}
    union all

    select
        source,
        order_id,
        sipHash64(source, order_id) as order_hash,
        content_rank,
        tuple(identity_id, currency::String, country::String, items) as content,
        identity_ids,
        months,
        placed_at,
        cancelled_at,
        first_event_at,
        recorded_at
    -- rows that newer ones have outdone do no harm: what they know, the newer ones know, too
    from {{ this }}
    where (source, order_id) in (select source, order_id from order_events)
    {% endif %}

),

several as (

    select order_hash from versions
    group by order_hash
    having count() > 1

),

-- most orders are told of once, and nothing has to be compared
orders as (

    select
        source,
        order_id,
        order_hash,
        content,
        content_rank,
        identity_ids,
        months,
        placed_at,
        cancelled_at,
        first_event_at,
        recorded_at
    from versions
    where order_hash not in (select order_hash from several)

    union all

    select
        source,
        order_id,
        any(versions.order_hash) as order_hash,
        argMax(versions.content, versions.content_rank) as content,
        max(versions.content_rank) as content_rank,
        arraySort(groupUniqArrayArray(versions.identity_ids)) as identity_ids,
        arraySort(groupUniqArrayArray(versions.months)) as months,
        min(versions.placed_at) as placed_at,
        max(versions.cancelled_at) as cancelled_at,
        min(versions.first_event_at) as first_event_at,
        max(versions.recorded_at) as recorded_at
    from versions
    where versions.order_hash in (select order_hash from several)
    group by source, order_id

),

lines as (

    select
        *,
        content.4 as items,
        -- a cast would cut; invoices round
        arrayMap(item -> round(item.quantity * item.unit_price, 2)::Decimal(18, 2), items) as amounts,
        arrayMap(item -> cancelled_at is null and item.quantity > 0 and item.unit_price > 0, items) as sold
    from orders

)

select
    ---------- ids
    order_id,
    order_hash,
    content.1::Int64 as identity_id,
    identity_ids,

    ---------- text
    source,
    if(cancelled_at is null, 'placed', 'cancelled')::LowCardinality(String) as status,
    content.2::LowCardinality(String) as currency,
    content.3::LowCardinality(String) as country,

    ---------- numerics
    arraySum(arrayMap((amount, is_sold) -> if(is_sold, amount, 0::Decimal(18, 2)), amounts, sold))::Decimal(18, 2) as revenue,
    arraySum(amounts)::Decimal(18, 2) as total,
    arraySum(arrayMap((item, is_sold) -> if(is_sold, item.quantity, 0), items, sold))::Int64 as items_count,
    length(items)::UInt32 as lines_count,
    -- months that it was ever counted in
    arrayDistinct(arrayPushBack(lines.months, toYYYYMM(coalesce(placed_at, first_event_at))::UInt32)) as months,
    content_rank,

    ---------- booleans
    has(sold, true)::Bool as is_sale,

    ---------- semi-structured
    items,

    ---------- timestamps
    coalesce(placed_at, first_event_at) as ordered_at,
    placed_at,
    cancelled_at,
    first_event_at,
    recorded_at
from lines
