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
        channel,
{{ campaign_sums_of_sums() }}
    from counted
    group by kind, campaign, occurrence, variant, channel

)

select
    ---------- ids
    kind::String as kind,
    campaign::String as campaign,
    occurrence::String as occurrence,
    variant::String as variant,
    channel::String as channel,

{{ campaign_columns() }}
from summed
