{{
    config(
        materialized='view'
    )
}}

with

counted as (

    select * from {{ ref('int_campaigns__counted') }}

),

conversions as (

    select * from {{ ref('campaign_conversions') }}

),

goals as (

    select
        kind as goal_kind,
        campaign as goal_campaign,
        if(kind = 'campaign', conversions.occurrence, '') as goal_occurrence,
        variant as goal_variant,
        count() as goal_reached_count,
        sum(conversions.revenue)::Decimal(18, 2) as goal_revenue
    from conversions
    group by goal_kind, goal_campaign, goal_occurrence, goal_variant

),

summed as (

    select
        kind,
        campaign,
        occurrence,
        variant,
{{ campaign_sums_of_sums() }}
    from counted
    group by kind, campaign, occurrence, variant

),

joined as (

    select
        summed.*,
        coalesce(goals.goal_reached_count, 0)::UInt64 as goal_reached_count,
        coalesce(goals.goal_revenue, 0)::Decimal(18, 2) as goal_revenue
    from summed
    left join goals
        on
            goals.goal_kind = summed.kind
            and goals.goal_campaign = summed.campaign
            and goals.goal_occurrence = summed.occurrence
            and goals.goal_variant = summed.variant

)

select
    ---------- ids
    kind::String as kind,
    campaign::String as campaign,
    occurrence::String as occurrence,
    variant::String as variant,

{{ campaign_columns(has_goals=true) }}
from joined
