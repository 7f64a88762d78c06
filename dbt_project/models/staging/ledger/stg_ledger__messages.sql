with

changes as (

    select *, message_hash from {{ source('raw', 'messages') }}

)

select
    ---------- ids
    message_id,
    message_hash,
    contact_id,
    provider_message_id,

    ---------- text
    kind,
    name,
    version,
    occurrence,
    {{ normalised_email('email') }} as email,
    channel,
    provider,
    category,
    template,
    template_version,
    segment,
    segment_version,
    experiment,
    variant,
    subject,
    status,
    reason,
    {{ domain_of("coalesce(details.from_email::Nullable(String), '')") }} as sending_domain,

    ---------- numerics
    sequence,

    ---------- timestamps
    changed_at,
    loaded_at
from changes
