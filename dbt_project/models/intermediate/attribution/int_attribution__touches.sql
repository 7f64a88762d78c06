{{
    config(
        materialized='view'
    )
}}

with

messages as (

    select * from {{ ref('int_messages__owned') }}
    where sent_at is not null

)

select
    ---------- ids
    message_id,
    contact_id,

    ---------- text
    kind::LowCardinality(String) as kind,
    name::LowCardinality(String) as campaign,
    channel::LowCardinality(String) as channel,
    -- what the chain of campaigns calls it: a journey may be named as a campaign is
    concat(kind, '/', name)::LowCardinality(String) as state,

    ---------- numerics
    -- of two touches in the same moment the order is arbitrary, but always the same
    cityHash64(message_id) as tie,

    ---------- timestamps
    created_at,
    assumeNotNull({{ attribution_touched_at() }})::DateTime64(3, 'UTC') as touched_at
from messages
where {{ attribution_touched_at() }} is not null
