{{
    config(
        materialized='view'
    )
}}

with

states as (

    {{ states_of(ref('int_engagement__summed')) }}

),

identities as (

    select identity_id, contact_id from {{ ref('int_contacts__identified') }}

),

scored as (

    select
        identities.contact_id as contact_id,
        sum(states.decayed_sum / {{ decay_growth(now(), 'states.half_life_days') }}) as engagement_score,
        max(states.last_engaged_at) as last_engaged_at
    from states
    inner join identities on identities.identity_id = states.identity_id
    group by identities.contact_id

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
