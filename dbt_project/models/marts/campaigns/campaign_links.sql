{{
    config(
        materialized='view'
    )
}}

with

clicked as (

    select * from {{ ref('int_links__clicked') }}

),

performance as (

    select
        kind,
        campaign,
        occurrence,
        variant,
        delivered_count,
        clicks_count as all_clicks_count
    from {{ ref('campaign_performance') }}

),

links as (

    -- a message is of one month, so people add up
    select
        kind::String as kind,
        campaign::String as campaign,
        occurrence::String as occurrence,
        variant::String as variant,
        url,
        min(clicked.position) as position,
        sum(clicked.clickers_count) as clickers_count,
        sum(clicked.clicks_count) as clicks_count,
        sum(clicked.machine_clicks_count) as machine_clicks_count,
        min(clicked.first_clicked_at) as first_clicked_at,
        max(clicked.last_clicked_at) as last_clicked_at
    from clicked
    group by kind, campaign, occurrence, variant, url

)

select
    ---------- ids
    links.kind as kind,
    links.campaign as campaign,
    links.occurrence as occurrence,
    links.variant as variant,
    links.url as url,

    ---------- numerics
    links.position as position,
    links.clickers_count as clickers_count,
    links.clicks_count as clicks_count,
    links.machine_clicks_count as machine_clicks_count,
    {{ rate('links.clickers_count', 'performance.delivered_count') }} as click_rate,
    {{ rate('links.clicks_count', 'performance.all_clicks_count') }} as share_of_clicks,

    ---------- timestamps
    links.first_clicked_at as first_clicked_at,
    links.last_clicked_at as last_clicked_at
from links
inner join performance
    on
        performance.kind = links.kind
        and performance.campaign = links.campaign
        and performance.occurrence = links.occurrence
        and performance.variant = links.variant
