{{
    config(
        order_by=['cohort', 'contact_id']
    )
}}

with

definitions as (

    select * from {{ ref('behavioural_cohorts') }}

),

contacts as (

    select contact_id, created_at from {{ ref('contacts') }}

),

customers as (

    select
        contact_id,
        first_order_at,
        sales
    from {{ newest(ref('int_contacts__ordered')) }}
    where orders_count > 0 and first_order_at <= {{ now() }}

),

anchors as (

    select
        contact_id,
        'first_seen' as anchor,
        created_at as anchored_at
    from contacts
    where created_at > {{ now() }} - toIntervalMonth({{ var('cohort_months') }}) and created_at <= {{ now() }}

    union all

    select
        contact_id,
        'first_order' as anchor,
        first_order_at as anchored_at
    from customers
    where first_order_at > {{ now() }} - toIntervalMonth({{ var('cohort_months') }})

),

identities as (

    -- of whom events are asked: that is few, since all others were known before, or are judged by their orders
    select identity_id, contact_id
    from {{ ref('int_contacts__identified') }}
    where contact_id in (
        select contact_id from anchors
        where anchor in (select anchor from definitions where event_type != 'order.placed')
    )

),

events as (

    select
        identity_id,
        type,
        groupArray(events.occurred_at) as moments
    from {{ ref('int_events__recorded') }} as events
    where
        type in (select event_type from definitions where event_type != 'order.placed')
        and not is_machine
        and identity_id in (select identity_id from identities)
        and occurred_at > {{ now() }} - toIntervalMonth({{ var('cohort_months') }})
        and occurred_at <= {{ now() }}
        and {{ loaded_within('loaded_on', 31 * var('cohort_months')) }}
    group by identity_id, type

),

histories as (

    -- orders as they stand, anything else as it happened
    select
        contact_id,
        'order.placed' as event_type,
        arrayMap(sale -> sale.1, sales) as moments
    from customers

    union all

    select
        identities.contact_id as contact_id,
        events.type::String as event_type,
        groupArrayArray(events.moments) as moments
    from events
    inner join identities on identities.identity_id = events.identity_id
    group by contact_id, event_type

),

judged as (

    select
        definitions.cohort as cohort,
        definitions.times as times,
        definitions.within_days as within_days,
        anchors.contact_id as contact_id,
        anchors.anchored_at as anchored_at,
        arraySort(arrayFilter(
            moment -> moment >= anchors.anchored_at and moment < anchors.anchored_at + toIntervalDay(within_days)
                and moment <= {{ now() }},
            histories.moments
        )) as moments
    from anchors
    inner join definitions on definitions.anchor = anchors.anchor
    left join histories on histories.contact_id = anchors.contact_id and histories.event_type = definitions.event_type

)

select
    ---------- ids
    cohort::LowCardinality(String) as cohort,
    contact_id::Int64 as contact_id,

    ---------- numerics
    length(moments)::UInt32 as events_count,

    ---------- booleans
    (length(moments) >= times)::Bool as is_member,
    -- whoever has done it is in; whoever has not may still do it until the days are over
    (length(moments) >= times or anchored_at + toIntervalDay(within_days) <= {{ now() }})::Bool as is_decided,

    ---------- timestamps
    anchored_at::DateTime64(3, 'UTC') as anchored_at,
    if(length(moments) >= times, moments[times], null)::Nullable(DateTime64(3, 'UTC')) as joined_at
from judged
