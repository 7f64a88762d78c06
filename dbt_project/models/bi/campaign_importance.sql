with

effects as (

    select * from {{ ref('attribution_removal_effects') }}

)

select
    ---------- ids
    month,
    goal,
    dimension,
    kind,
    name as campaign_or_channel,

    ---------- numerics
    removal_effect,
    removal_share,
    conversion_probability,
    touches_count
from effects
