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

    {{ with_contacts('changes') }}

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

parts as (

    -- people whom a merge made one are looked at apart first
    select
        assumeNotNull(contacts.contact_id) as contact_id,
        channel,
        purpose,
        -- of two changes at the same moment the withdrawal counts
        max(tuple(occurred_at, not is_granted, loaded_at, consent_id)) as part_rank,
        argMax(
            tuple(is_granted, basis, text_version, consent_id, occurred_at, paused_until),
            tuple(occurred_at, not is_granted, loaded_at, consent_id)
        ) as part_consent
    from contacts
    where contacts.contact_id is not null
    group by contact_id, contacts.named_contact_id, channel, purpose

),

merged as (

    select contact_id as merged_contact_id, merged_at from {{ ref('int_contacts__merged') }}

),

latest as (

    -- the last word counts if it was said since they are one; else the strictest of what each said
    select
        parts.contact_id as contact_id,
        parts.channel as channel,
        parts.purpose as purpose,
        if(
            max(parts.part_rank).1 > coalesce(any(merged.merged_at), toDateTime64(0, 3, 'UTC')),
            argMax(parts.part_consent, parts.part_rank),
            argMax(
                parts.part_consent,
                tuple(
                    if(
                        parts.part_consent.1,
                        toDateTime64(0, 3, 'UTC'),
                        coalesce(parts.part_consent.6, toDateTime64('2299-12-31 00:00:00', 3, 'UTC'))
                    ),
                    parts.part_rank
                )
            )
        ) as consent
    from parts
    left any join merged on merged.merged_contact_id = parts.contact_id
    group by parts.contact_id, parts.channel, parts.purpose

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
