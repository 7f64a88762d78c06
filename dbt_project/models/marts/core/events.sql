{{
    config(
        materialized='view'
    )
}}

with

recorded as (

    select * from {{ ref('int_events__recorded') }}

),

identities as (

    -- 0 for none, whatever join_use_nulls the client has
    select identity_id as known_identity_id, contact_id as known_contact_id
    from {{ ref('int_contacts__identified') }}

)

select
    ---------- ids
    recorded.event_id as event_id,
    nullIf(identities.known_contact_id, 0) as contact_id,
    recorded.identity_id as identity_id,
    recorded.message_id as message_id,
    recorded.external_id as external_id,
    recorded.anonymous_id as anonymous_id,

    ---------- text
    recorded.type as type,
    recorded.source as source,
    recorded.email as email,
    recorded.bounce_class as bounce_class,
    recorded.url as url,

    ---------- booleans
    recorded.is_machine as is_machine,

    ---------- numerics
    recorded.loads_count as loads_count,

    ---------- semi-structured
    recorded.properties as properties,

    ---------- timestamps
    recorded.occurred_at as occurred_at,
    recorded.received_at as received_at,
    recorded.loaded_at as loaded_at,
    recorded.loaded_on as loaded_on
from recorded
left any join identities on identities.known_identity_id = recorded.identity_id
