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

)

select
    ---------- ids
    identities.contact_id as contact_id,

    ---------- numerics
    half_life_days,
    sum(states.decayed_sum) as decayed_sum,

    ---------- timestamps
    max(states.last_engaged_at) as last_engaged_at
from states
inner join identities on identities.identity_id = states.identity_id
group by identities.contact_id, half_life_days
