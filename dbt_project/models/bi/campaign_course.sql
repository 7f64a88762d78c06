with

activity as (

    select * from {{ ref('campaign_activity') }}

)

select
    ---------- ids
    kind,
    campaign,
    occurrence,
    variant,

    ---------- numerics
    sent_count,
    delivered_count,
    opened_count,
    clicked_count,
    bounced_count,
    complained_count,
    unsubscribed_count,
    converted_count,

    ---------- timestamps
    hour_at
from activity
