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
{%- set is_told %}
        type in ('order.placed', 'order.cancelled')
        {%- if days is not none %}
        and {{ is_recorded_on(days) }}
        {%- endif %}
{%- endset %}

with

{% if is_incremental() -%}
versions as (

    {{ told_orders(is_told) }}

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
    where (source, order_id) in (
        select source, {{ told_order_id() }}
        from {{ ref('int_events__recorded') }}
        where {{ is_told }}
    )

),

{% else -%}
(

    -- told of more than once, or only as cancelled: all others need no comparison
    select groupArrayIf(told_hash, placed_count != 1)
    from (
        select
            {{ told_order_hash() }} as told_hash,
            countIf(type = 'order.placed') as placed_count
        from {{ ref('int_events__recorded') }}
        where {{ is_told }}
        group by told_hash
    )

) as several,

versions as (

    {{ told_orders(is_told ~ " and " ~ told_order_hash() ~ " in (select arrayJoin(several))") }}

),

placed_once as (

    {{ told_orders(
        "type = 'order.placed' and " ~ told_order_hash() ~ " not in (select arrayJoin(several))"
    ) }}

),

cancellations as (

    select
        {{ told_order_hash() }} as cancelled_hash,
        groupUniqArray(identity_id) as cancelled_identity_ids,
        max(occurred_at) as last_cancelled_at,
        min(occurred_at) as first_cancelled_at,
        max(recorded_at) as cancellation_recorded_at
    from {{ ref('int_events__recorded') }}
    where type = 'order.cancelled'
    group by cancelled_hash

),

{% endif -%}
combined as (

    select
        source,
        order_id,
        any(versions.order_hash) as order_hash,
        max(versions.content_rank) as content_rank,
        argMax(versions.content, versions.content_rank) as content,
        arraySort(groupUniqArrayArray(versions.identity_ids)) as identity_ids,
        arraySort(groupUniqArrayArray(versions.months)) as months,
        min(versions.placed_at) as placed_at,
        max(versions.cancelled_at) as cancelled_at,
        min(versions.first_event_at) as first_event_at,
        max(versions.recorded_at) as recorded_at
    from versions
    group by source, order_id

),

orders as (

    select * from combined
    {% if not is_incremental() %}
    union all

    select
        placed_once.source as source,
        placed_once.order_id as order_id,
        placed_once.order_hash as order_hash,
        placed_once.content_rank as content_rank,
        placed_once.content as content,
        arraySort(arrayDistinct(arrayConcat(placed_once.identity_ids, cancellations.cancelled_identity_ids))) as identity_ids,
        placed_once.months as months,
        placed_once.placed_at as placed_at,
        cancellations.last_cancelled_at as cancelled_at,
        least(
            placed_once.first_event_at, coalesce(cancellations.first_cancelled_at, placed_once.first_event_at)
        ) as first_event_at,
        greatest(
            placed_once.recorded_at, coalesce(cancellations.cancellation_recorded_at, placed_once.recorded_at)
        ) as recorded_at
    from placed_once
    left any join cancellations on cancellations.cancelled_hash = placed_once.order_hash
    {%- endif %}

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
    arrayDistinct(
        arrayMap(item -> sipHash64(item.product_id), arrayFilter((item, is_sold) -> is_sold, items, sold))
    ) as product_hashes,

    ---------- timestamps
    coalesce(placed_at, first_event_at) as ordered_at,
    placed_at,
    cancelled_at,
    first_event_at,
    recorded_at
from lines
