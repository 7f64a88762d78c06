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

summed as (

    select
        identity_id,
        half_life_days,
        sum(states.decayed_sum) as decayed_sum,
        max(states.last_engaged_at) as last_engaged_at
    from states
    group by identity_id, half_life_days

)

select
    ---------- ids
    identities.contact_id as contact_id,

    ---------- numerics
    half_life_days,
    sum(summed.decayed_sum) as decayed_sum,

    ---------- timestamps
    max(summed.last_engaged_at) as last_engaged_at
from summed
inner join identities on identities.identity_id = summed.identity_id
group by identities.contact_id, half_life_days
