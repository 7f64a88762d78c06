{{
    config(
        materialized='view'
    )
}}

with

effects as (

    select * from {{ ref('int_attribution__effects') }}
    where not is_month

),

totals as (

    select
        month as total_month,
        goal as total_goal,
        dimension as total_dimension,
        sum(removal_effect) as total_effect
    from effects
    group by month, goal, dimension

)

select
    ---------- ids
    makeDate(intDiv(effects.month, 100), effects.month % 100, 1)::Date as month,
    effects.goal as goal,
    effects.dimension as dimension,
    if(effects.dimension = 'campaign' and effects.state like '%/%', splitByChar('/', effects.state)[1], '') as kind,
    if(kind != '', substring(effects.state, length(kind) + 2), effects.state) as name,

    ---------- numerics
    effects.removal_effect as removal_effect,
    if(totals.total_effect > 0, effects.removal_effect / totals.total_effect, 0)::Float64 as removal_share,
    effects.conversion_probability as conversion_probability,
    effects.touches_count as touches_count
from effects
inner join totals
    on
        totals.total_month = effects.month
        and totals.total_goal = effects.goal
        and totals.total_dimension = effects.dimension
