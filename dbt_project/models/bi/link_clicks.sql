with

links as (

    select * from {{ ref('campaign_links') }}

)

select
    ---------- ids
    kind,
    campaign,
    occurrence,
    variant,
    url,

    ---------- numerics
    position,
    clickers_count,
    clicks_count,
    machine_clicks_count,
    click_rate,
    share_of_clicks,

    ---------- timestamps
    first_clicked_at,
    last_clicked_at
from links
