with

changes as (

    select * from {{ source('raw', 'messages') }}

),

latest as (

    select
        message_id,
        argMax(
            tuple(
                kind, name, version, occurrence, contact_id, email, channel, provider, category, template,
                template_version, segment, segment_version, experiment, variant, subject, provider_message_id,
                status, reason
            ),
            sequence
        ) as message,
        min(changes.changed_at) as created_at,
        max(changes.changed_at) as changed_at,
        minIfOrNull(changes.changed_at, changes.status in ('sent', 'queued')) as accepted_at
    from changes
    group by message_id

)

select
    ---------- ids
    message_id,
    message.5 as contact_id,
    message.17 as provider_message_id,

    ---------- text
    message.1 as kind,
    message.2 as name,
    message.3 as version,
    message.4 as occurrence,
    {{ normalised_email('message.6') }} as email,
    message.7 as channel,
    message.8 as provider,
    message.9 as category,
    message.10 as template,
    message.11 as template_version,
    message.12 as segment,
    message.13 as segment_version,
    message.14 as experiment,
    message.15 as variant,
    message.16 as subject,
    message.18 as status,
    message.19 as reason,

    ---------- timestamps
    created_at,
    changed_at,
    accepted_at
from latest
