{{
    config(
        order_by='contact_id'
    )
}}

with

names as (

    select * from {{ ref('rfm_segments') }}

),

customers as (

    select
        contact_id,
        first_order_at,
        last_order_at,
        orders_count,
        items_count,
        revenue
    from {{ newest(ref('int_contacts__ordered')) }}
    where orders_count > 0

),

ranked as (

    -- Share of customers who are strictly worse: equal values have equal scores, and the time of day at which the
    -- model runs changes none.
    select
        *,
        count() over () as customers_count,
        rank() over (order by toDate(last_order_at, 'UTC')) as recency_rank,
        rank() over (order by orders_count) as frequency_rank,
        rank() over (order by revenue) as monetary_rank
    from customers

),

scored as (

    select
        *,
        (1 + intDiv(5 * (recency_rank - 1), customers_count))::UInt8 as recency_score,
        (1 + intDiv(5 * (frequency_rank - 1), customers_count))::UInt8 as frequency_score,
        (1 + intDiv(5 * (monetary_rank - 1), customers_count))::UInt8 as monetary_score,
        intDiv(frequency_score + monetary_score + 1, 2)::UInt8 as value_score
    from ranked

)

select
    ---------- ids
    scored.contact_id as contact_id,

    ---------- text
    coalesce(names.rfm_segment, '')::LowCardinality(String) as rfm_segment,

    ---------- numerics
    dateDiff('day', scored.last_order_at, {{ now() }})::Int32 as recency_days,
    scored.orders_count::UInt32 as orders_count,
    scored.items_count::Int64 as items_count,
    scored.revenue::Decimal(18, 2) as revenue,
    scored.recency_score as recency_score,
    scored.frequency_score as frequency_score,
    scored.monetary_score as monetary_score,
    scored.value_score as value_score,

    ---------- timestamps
    scored.first_order_at as first_order_at,
    scored.last_order_at as last_order_at
from scored
left join names
    on names.recency_score = scored.recency_score and names.value_score = scored.value_score
