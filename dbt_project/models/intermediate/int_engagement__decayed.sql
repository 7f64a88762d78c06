{{
    config(
        order_by='contact_id'
    )
}}

with

events as (

    select * from {{ ref('events') }}
    where contact_id is not null and not is_machine

),

weights as (

    select * from {{ ref('engagement_weights') }}

)

select
    ---------- ids
    assumeNotNull(events.contact_id) as contact_id,

    ---------- numerics
    weights.half_life_days as half_life_days,
    sum(weights.weight * {{ decay_growth('events.occurred_at', 'weights.half_life_days') }}) as decayed_sum,

    ---------- timestamps
    maxIfOrNull(events.occurred_at, weights.weight > 0) as last_engaged_at
from events
inner join weights on weights.event_type = events.type
group by events.contact_id, weights.half_life_days
