{{
    config(
        order_by=['funnel', 'entry_month', 'step']
    )
}}

{%- set months = var('funnel_months') %}
{%- set unit = '1000000000' %}

with

steps as (

    select * from {{ ref('funnel_steps') }}

),

orders as (

    select
        assumeNotNull(orders.contact_id) as contact_id,
        'order.placed' as type,
        ordered_at as occurred_at
    from {{ ref('orders') }} as orders
    where
        is_sale
        and orders.contact_id is not null
        and ordered_at >= toStartOfMonth({{ now() }}) - toIntervalMonth({{ months - 1 }})
        and ordered_at <= {{ now() }}

),

events as (

    select
        assumeNotNull(events.contact_id) as contact_id,
        type::String as type,
        occurred_at
    from {{ ref('events') }} as events
    where
        type in (select event_type from steps where event_type != 'order.placed')
        and not is_machine
        and events.contact_id is not null
        and occurred_at >= toStartOfMonth({{ now() }}) - toIntervalMonth({{ months - 1 }})
        and occurred_at <= {{ now() }}
        and {{ loaded_within('loaded_at', 31 * months) }}

    union all

    select * from orders

),

taken as (

    -- an event belongs to every month in which the first step may have been taken; the first step to its own
    select
        events.contact_id as contact_id,
        steps.funnel as funnel,
        steps.step as step,
        events.occurred_at as occurred_at,
        arrayJoin({{ months_between(
            'if(step = 1, events.occurred_at, events.occurred_at - toIntervalDay(steps.within_days))', 'events.occurred_at'
        ) }}) as entry_month,
        -- windowFunnel takes one window for all rows, so time is counted in windows of the funnel
        toUInt64(round(
            (toUnixTimestamp64Milli(events.occurred_at) - toUnixTimestamp(toDateTime(makeDate(intDiv(entry_month, 100), entry_month % 100, 1), 'UTC')) * 1000)
            * {{ unit }}. / (steps.within_days * 86400000)
        )) as windows
    from events
    inner join steps on steps.event_type = events.type

),

passed as (

    select
        funnel,
        contact_id,
        entry_month,
        windowFunnel({{ unit }})(
            windows,
            {%- for step in range(1, 9) %}
            step = {{ step }}{{ ',' if not loop.last }}
            {%- endfor %}
        ) as steps_passed
    from taken
    group by funnel, contact_id, entry_month
    having steps_passed > 0

),

counted as (

    select
        passed.funnel as funnel,
        passed.entry_month as entry_month,
        steps.step as step,
        any(steps.name) as name,
        any(steps.event_type) as event_type,
        any(steps.within_days) as within_days,
        count() as entered_count,
        countIf(passed.steps_passed >= steps.step) as passed_count,
        countIf(passed.steps_passed >= steps.step - 1) as previous_count
    from passed
    inner join steps on steps.funnel = passed.funnel
    group by funnel, entry_month, step

)

select
    ---------- ids
    funnel::LowCardinality(String) as funnel,
    makeDate(intDiv(entry_month, 100), entry_month % 100, 1)::Date as entry_month,
    step,

    ---------- text
    name::LowCardinality(String) as name,
    event_type::LowCardinality(String) as event_type,

    ---------- numerics
    entered_count::UInt64 as entered_count,
    passed_count::UInt64 as passed_count,
    {{ rate('passed_count', 'entered_count') }} as rate_of_entered,
    {{ rate('passed_count', 'previous_count') }} as rate_of_previous,

    ---------- booleans
    (addMonths(makeDate(intDiv(counted.entry_month, 100), counted.entry_month % 100, 1), 1) + within_days <= toDate({{ now() }}, 'UTC'))::Bool as is_closed
from counted
