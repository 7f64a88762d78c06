with

consents as (

    select * from {{ source('raw', 'consents') }}

)

select
    ---------- ids
    consent_id,
    external_id,

    ---------- text
    source,
    {{ normalised_email('email') }} as email,
    channel,
    purpose,
    basis,
    text_version,

    ---------- booleans
    is_granted,

    ---------- timestamps
    occurred_at,
    loaded_at
from consents
