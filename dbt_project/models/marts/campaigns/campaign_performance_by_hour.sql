{{
    config(
        materialized='view'
    )
}}

with

counted as (

    select * from {{ ref('int_campaigns__counted') }}
    where is_sent

),

summed as (

    select
        kind,
        campaign,
        variant,
        toDayOfWeek(counted.chosen_hour_at)::UInt8 as weekday,
        toHour(counted.chosen_hour_at)::UInt8 as hour,
{{ campaign_sums_of_sums() }}
    from counted
    group by kind, campaign, variant, weekday, hour

)

select
    ---------- ids
    kind::String as kind,
    campaign::String as campaign,
    variant::String as variant,
    weekday,
    hour,

{{ campaign_columns() }}
from summed
