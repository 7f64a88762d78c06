{{
    config(
        materialized='view'
    )
}}

with

changes as (

    select * from {{ ref('stg_consents__changes') }}

),

identified as (

    {{ with_contacts('changes', has_messages=false) }}

),

contacts as (

    select
        * except (contact_id),
        -- the id that an address not seen before will have once contacts are built
        coalesce(
            contact_id,
            if(email != '', {{ contact_id_of('email') }}, null)
        ) as contact_id
    from identified

),

latest as (

    select
        assumeNotNull(contacts.contact_id) as contact_id,
        channel,
        purpose,
        -- of two changes at the same moment the withdrawal counts
        argMax(
            tuple(is_granted, basis, text_version, consent_id, occurred_at, paused_until),
            tuple(occurred_at, not is_granted, loaded_at, consent_id)
        ) as consent
    from contacts
    where contacts.contact_id is not null
    group by contact_id, channel, purpose

)

select
    ---------- ids
    contact_id,
    consent.4 as consent_id,

    ---------- text
    channel,
    purpose,
    consent.2 as basis,
    consent.3 as text_version,

    ---------- booleans
    -- when a pause is over the consent that it held back stands again
    (consent.1 or coalesce(consent.6 <= {{ now() }}, false))::Bool as is_granted,

    ---------- timestamps
    consent.5 as occurred_at
from latest
