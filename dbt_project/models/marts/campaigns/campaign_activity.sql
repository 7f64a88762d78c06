{{
    config(
        materialized='view'
    )
}}

with

happened as (

    select * from {{ ref('int_campaigns__happened') }}

)

select
    ---------- ids
    kind::String as kind,
    campaign::String as campaign,
    occurrence::String as occurrence,
    variant::String as variant,

    ---------- numerics
    sum(happened.sent_count) as sent_count,
    sum(happened.delivered_count) as delivered_count,
    sum(happened.opened_count) as opened_count,
    sum(happened.clicked_count) as clicked_count,
    sum(happened.bounced_count) as bounced_count,
    sum(happened.complained_count) as complained_count,
    sum(happened.unsubscribed_count) as unsubscribed_count,
    sum(happened.converted_count) as converted_count,

    ---------- timestamps
    hour_at
from happened
group by kind, campaign, occurrence, variant, hour_at
