with

events as (

    select
        source,
        coalesce(nullIf(properties.order_id::Nullable(String), ''), event_id) as order_id,
        type = 'order.cancelled' as is_cancellation,
        event_id,
        identity_id,
        occurred_at,
        -- lines that count as sold, as in int_orders__combined: pieces, and what they cost
        arrayFilter(
            item -> item.1 > 0 and item.2 > 0,
            arrayMap(
                (quantity, price) -> tuple(
                    coalesce(toInt64OrNull(quantity), 0), coalesce(toDecimal64OrNull(price, 4), 0)::Decimal(18, 4)
                ),
                properties.items[].quantity::Array(Nullable(String)),
                properties.items[].unit_price::Array(Nullable(String))
            )
        ) as sold,
        arraySum(arrayMap(item -> round(item.1 * item.2, 2)::Decimal(18, 2), sold))::Decimal(18, 2) as revenue,
        notEmpty(sold) as is_sale
    from {{ ref('int_events__recorded') }}
    where type in ('order.placed', 'order.cancelled')

),

orders as (

    select
        source,
        order_id,
        arraySort(groupArrayIf(tuple(occurred_at, event_id, identity_id, revenue, is_sale), not is_cancellation)) as versions,
        if(
            countIf(is_cancellation) > 0, minIf(occurred_at, is_cancellation), toDateTime64('2299-12-31 00:00:00', 3, 'UTC')
        ) as cancelled_at
    from events
    group by source, order_id

),

versions as (

    select
        source,
        order_id,
        arrayJoin(arrayEnumerate(orders.versions)) as version,
        orders.versions[1].1 as ordered_at,
        orders.versions[version] as content,
        orders.versions[version].1 as valid_from,
        least(
            cancelled_at,
            if(version < length(orders.versions), orders.versions[version + 1].1, cancelled_at)
        ) as valid_to
    from orders

),

identities as (

    select identity_id as known_identity_id, contact_id as known_contact_id
    from {{ ref('int_contacts__identified') }}

)

select
    ---------- ids
    versions.source as source,
    versions.order_id as order_id,
    identities.known_contact_id::Int64 as contact_id,

    ---------- numerics
    versions.version::UInt32 as version,
    versions.content.4::Decimal(18, 2) as revenue,

    ---------- timestamps
    versions.ordered_at::DateTime64(3, 'UTC') as ordered_at,
    versions.valid_from::DateTime64(3, 'UTC') as valid_from,
    versions.valid_to::DateTime64(3, 'UTC') as valid_to
from versions
inner join identities on identities.known_identity_id = versions.content.3
where
    versions.content.5
    and versions.valid_from < versions.valid_to
