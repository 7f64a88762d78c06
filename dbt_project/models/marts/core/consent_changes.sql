{{
    config(
        materialized='view'
    )
}}

with

changes as (

    select * from {{ ref('stg_consents__changes') }}
    order by loaded_at
    limit 1 by consent_id

),

identified as (

    {{ with_contacts('changes') }}

)

select
    ---------- ids
    identified.consent_id as consent_id,
    -- the id that an address not seen before will have once contacts are built
    coalesce(
        identified.contact_id,
        if(identified.email != '', {{ contact_id_of('identified.email') }}, null)
    )::Nullable(Int64) as contact_id,

    ---------- text
    identified.email::String as email,
    identified.channel as channel,
    identified.purpose as purpose,
    identified.source as source,
    identified.basis::String as basis,
    identified.text_version as text_version,
    identified.text_digest as text_digest,
    identified.ip as ip,
    identified.requested_ip as requested_ip,
    identified.user_agent as user_agent,
    identified.page as page,
    identified.recorded_by as recorded_by,

    ---------- booleans
    identified.is_granted as is_granted,

    ---------- timestamps
    identified.requested_at as requested_at,
    identified.confirmed_at as confirmed_at,
    identified.occurred_at as occurred_at
from identified
