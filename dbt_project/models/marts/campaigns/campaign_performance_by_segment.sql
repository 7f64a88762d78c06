{{
    config(
        materialized='view'
    )
}}

with

counted as (

    select * from {{ ref('int_campaigns__segmented') }}

),

summed as (

    select
        kind,
        campaign,
        occurrence,
        variant,
        counted.segment as segment,
        max(counted.segment = counted.audience_segment)::Bool as is_audience,
{{ campaign_sums_of_sums() }}
    from counted
    group by kind, campaign, occurrence, variant, segment

)

select
    ---------- ids
    kind::String as kind,
    campaign::String as campaign,
    occurrence::String as occurrence,
    variant::String as variant,
    segment::String as segment,

    ---------- booleans
    is_audience,

{{ campaign_columns() }}
from summed
