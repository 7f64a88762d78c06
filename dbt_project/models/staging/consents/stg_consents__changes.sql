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
    text_digest,
    ip,
    requested_ip,
    user_agent,
    page,
    recorded_by,

    ---------- booleans
    is_granted,

    ---------- timestamps
    -- a pause that somebody chose: withdrawn until then, granted again from then on
    if(
        basis = 'pause',
        parseDateTime64BestEffortOrNull(properties.paused_until::Nullable(String), 3, 'UTC'),
        null
    ) as paused_until,
    requested_at,
    confirmed_at,
    occurred_at,
    loaded_at
from consents
