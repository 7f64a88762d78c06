{{
    config(
        materialized='view'
    )
}}

with

counted as (

    select * from {{ ref('int_campaigns__counted') }}

),

summed as (

    select
        kind,
        campaign,
        occurrence,
        variant,
        toDate(counted.chosen_hour_at, 'UTC') as day,
{{ campaign_sums_of_sums() }}
    from counted
    group by kind, campaign, occurrence, variant, day

)

select
    ---------- ids
    kind::String as kind,
    campaign::String as campaign,
    occurrence::String as occurrence,
    variant::String as variant,
    day,

{{ campaign_columns() }}
from summed
