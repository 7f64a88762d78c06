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

orders as (

    select
        assumeNotNull(contact_id) as contact_id,
        ordered_at
    from {{ ref('orders') }} as orders
    where is_sale and orders.contact_id is not null and ordered_at <= {{ now() }}

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
        min(ordered_at) as anchored_at
    from orders
    group by contact_id
    having anchored_at > {{ now() }} - toIntervalMonth({{ var('cohort_months') }})

),

happened as (

    -- orders as they stand, anything else as it happened
    select
        contact_id,
        'order.placed' as event_type,
        ordered_at as occurred_at
    from orders
    where 'order.placed' in (select event_type from definitions)

    union all

    select
        assumeNotNull(events.contact_id) as contact_id,
        type::String as event_type,
        occurred_at
    from {{ ref('events') }} as events
    where
        type in (select event_type from definitions where event_type != 'order.placed')
        and not is_machine
        and events.contact_id is not null
        and occurred_at > {{ now() }} - toIntervalMonth({{ var('cohort_months') }})
        and occurred_at <= {{ now() }}
        and {{ loaded_within('loaded_at', 31 * var('cohort_months')) }}

),

histories as (

    select
        contact_id,
        event_type,
        groupArray(occurred_at) as moments
    from happened
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
            moment -> moment >= anchors.anchored_at and moment < anchors.anchored_at + toIntervalDay(within_days),
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
