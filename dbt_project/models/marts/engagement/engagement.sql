{{
    config(
        materialized='view'
    )
}}

with

decayed as (

    select * from {{ ref('int_engagement__decayed') }}

),

scored as (

    select
        contact_id,
        sum(decayed_sum / {{ decay_growth(now(), 'half_life_days') }}) as engagement_score,
        max(last_engaged_at) as last_engaged_at
    from decayed
    group by contact_id

)

select
    ---------- ids
    contact_id,

    ---------- text
    multiIf(
        last_engaged_at is null, 'never',
        last_engaged_at >= {{ now() }} - toIntervalDay(30), 'active',
        last_engaged_at >= {{ now() }} - toIntervalDay(90), 'cooling',
        last_engaged_at >= {{ now() }} - toIntervalDay(180), 'cold',
        'gone'
    ) as engagement_band,

    ---------- numerics
    engagement_score,

    ---------- timestamps
    last_engaged_at
from scored
