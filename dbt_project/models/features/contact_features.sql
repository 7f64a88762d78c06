{%- set days = var('feature_memory_days') %}
{%- set midnight = "toDateTime64(dates.as_of, 3, 'UTC')" %}

with

dates as (

    select as_of from {{ ref('feature_dates') }}

),

identities as (

    select identity_id, contact_id
    from {{ ref('int_contacts__identified') }}

),

days as (

    -- all purchases of a day are one, as models of purchases have it
    select
        orders.contact_id as contact_id,
        dates.as_of as as_of,
        toDate(orders.ordered_at, 'UTC') as ordered_on,
        count() as orders_count,
        sum(orders.revenue) as revenue
    from {{ ref('feature_orders') }} as orders
    cross join dates
    where
        orders.valid_from < {{ midnight }}
        and orders.valid_to >= {{ midnight }}
    group by contact_id, as_of, ordered_on

),

customers as (

    select
        contact_id,
        as_of,
        sum(days.orders_count) as orders_count,
        count() - 1 as frequency,
        dateDiff('day', min(ordered_on), max(ordered_on)) as recency_days,
        -- the day before is the last one seen
        dateDiff('day', min(ordered_on), as_of) - 1 as age_days,
        dateDiff('day', max(ordered_on), as_of) - 1 as days_since_order,
        sum(days.revenue) as revenue,
        argMin(days.revenue, ordered_on) as first_revenue,
        sumIf(days.revenue, ordered_on >= as_of - 90) as revenue_90d,
        sumIf(days.orders_count, ordered_on >= as_of - 30) as orders_30d,
        sumIf(days.orders_count, ordered_on >= as_of - 90) as orders_90d,
        sumIf(days.orders_count, ordered_on >= as_of - 365) as orders_365d
    from days
    group by contact_id, as_of

),

behaviour as (

    select
        identities.contact_id as contact_id,
        dates.as_of as as_of,
        countIf(events.type in ('product.viewed', 'page.viewed') and events.occurred_at >= {{ midnight }} - toIntervalDay(30))
            as visits_30d,
        countIf(events.type = 'cart.updated' and events.occurred_at >= {{ midnight }} - toIntervalDay(30)) as carts_30d,
        countIf(events.type = 'opened' and events.occurred_at >= {{ midnight }} - toIntervalDay(90)) as opens_90d,
        countIf(events.type = 'clicked' and events.occurred_at >= {{ midnight }} - toIntervalDay(90)) as clicks_90d,
        maxIf(events.occurred_at, events.type not in ('opened', 'clicked')) as last_visit_at,
        maxIf(events.occurred_at, events.type in ('opened', 'clicked')) as last_read_at
    from {{ ref('int_events__recorded') }} as events
    inner join identities on identities.identity_id = events.identity_id
    cross join dates
    where
        events.type in ('product.viewed', 'page.viewed', 'cart.updated', 'opened', 'clicked')
        and not events.is_machine
        and events.occurred_at < {{ midnight }}
        and events.occurred_at >= {{ midnight }} - toIntervalDay({{ days }})
    group by contact_id, as_of

),

addressees as (

    select identity_id as addressee_id, contact_id as addressee_contact_id
    from {{ ref('int_contacts__identified') }}
    where kind = 'message'

),

mail as (

    select
        coalesce(nullIf(addressees.addressee_contact_id, 0), messages.ledger_contact_id) as contact_id,
        dates.as_of as as_of,
        countIf(messages.sent_at >= {{ midnight }} - toIntervalDay(30)) as messages_30d,
        countIf(messages.sent_at >= {{ midnight }} - toIntervalDay(90)) as messages_90d,
        max(messages.sent_at) as last_message_at
    from {{ newest(ref('int_messages__followed'), 'messages') }}
    left any join addressees on addressees.addressee_id = messages.identity_id
    cross join dates
    where
        messages.sent_at < {{ midnight }}
        and messages.sent_at >= {{ midnight }} - toIntervalDay({{ days }})
    group by contact_id, as_of

),

described as (

    select contact_id, as_of from customers

    union distinct

    select contact_id, as_of from behaviour

    union distinct

    select contact_id, as_of from mail

)

-- reads the same whatever join_use_nulls the client has: what is missing is null or the type's zero

select
    ---------- ids
    described.contact_id::Int64 as contact_id,

    ---------- timestamps
    described.as_of::Date as as_of,

    ---------- numerics: orders
    coalesce(customers.orders_count, 0)::UInt32 as orders_count,
    coalesce(customers.frequency, 0)::UInt32 as frequency,
    coalesce(customers.recency_days, 0)::UInt32 as recency_days,
    coalesce(customers.age_days, 0)::UInt32 as age_days,
    if(orders_count > 0, customers.days_since_order, null)::Nullable(UInt32) as days_since_order,
    if(frequency > 0, customers.recency_days / frequency, null)::Nullable(Float64) as days_between_orders,
    -- 1: as long as it takes them on average
    if(customers.recency_days > 0, days_since_order / days_between_orders, null)::Nullable(Float64) as silence,
    coalesce(customers.revenue, 0)::Float64 as revenue,
    if(frequency > 0, toFloat64(customers.revenue - customers.first_revenue) / frequency, 0)::Float64 as monetary_value,
    coalesce(customers.revenue_90d, 0)::Float64 as revenue_90d,
    coalesce(customers.orders_30d, 0)::UInt32 as orders_30d,
    coalesce(customers.orders_90d, 0)::UInt32 as orders_90d,
    coalesce(customers.orders_365d, 0)::UInt32 as orders_365d,

    ---------- numerics: behaviour
    coalesce(behaviour.visits_30d, 0)::UInt32 as visits_30d,
    coalesce(behaviour.carts_30d, 0)::UInt32 as carts_30d,
    if(
        coalesce(behaviour.last_visit_at, toDateTime64(0, 3, 'UTC')) > toDateTime64(0, 3, 'UTC'),
        dateDiff('day', toDate(behaviour.last_visit_at, 'UTC'), described.as_of) - 1,
        null
    )::Nullable(UInt32) as days_since_visit,

    ---------- numerics: mail
    coalesce(behaviour.opens_90d, 0)::UInt32 as opens_90d,
    coalesce(behaviour.clicks_90d, 0)::UInt32 as clicks_90d,
    coalesce(mail.messages_30d, 0)::UInt32 as messages_30d,
    coalesce(mail.messages_90d, 0)::UInt32 as messages_90d,
    if(
        coalesce(behaviour.last_read_at, toDateTime64(0, 3, 'UTC')) > toDateTime64(0, 3, 'UTC'),
        dateDiff('day', toDate(behaviour.last_read_at, 'UTC'), described.as_of) - 1,
        null
    )::Nullable(UInt32) as days_since_read,
    if(
        coalesce(mail.last_message_at, toDateTime64(0, 3, 'UTC')) > toDateTime64(0, 3, 'UTC'),
        dateDiff('day', toDate(mail.last_message_at, 'UTC'), described.as_of) - 1,
        null
    )::Nullable(UInt32) as days_since_message
from described
left join customers on customers.contact_id = described.contact_id and customers.as_of = described.as_of
left join behaviour on behaviour.contact_id = described.contact_id and behaviour.as_of = described.as_of
left join mail on mail.contact_id = described.contact_id and mail.as_of = described.as_of
