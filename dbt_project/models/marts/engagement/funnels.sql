{{
    config(
        order_by=['funnel', 'entry_month', 'step'],
        query_settings={'do_not_merge_across_partitions_select_final': 1}
    )
}}

with

steps as (

    select * from {{ ref('funnel_steps') }}

),

passed as (

    select * from {{ newest(ref('int_funnels__passed')) }}
    where steps_passed > 0 and entry_month >= toYYYYMM({{ funnels_from() }})

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
