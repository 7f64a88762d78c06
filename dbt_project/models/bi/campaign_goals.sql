with

reached as (

    select * from {{ ref('campaign_conversions') }}

)

select
    ---------- ids
    kind,
    campaign,
    occurrence,
    variant,
    toDate(sent_at, 'UTC') as sent_on,
    goal_event,

    ---------- numerics
    count() as reached_count,
    sum(events_count)::UInt64 as events_count,
    sum(revenue)::Decimal(18, 2) as revenue,
    sum(seconds_to_goal / 3600)::Float64 as hours_to_goal_sum
from reached
group by kind, campaign, occurrence, variant, sent_on, goal_event
