with

events as (

    select *, event_hash, message_hash from {{ source('raw', 'events') }}

)

select
    ---------- ids
    event_id,
    external_id,
    anonymous_id,
    message_id,
    event_hash,
    message_hash,

    ---------- text
    type,
    source,
    {{ normalised_email('email') }} as email,
    coalesce(properties.bounce_class::Nullable(String), '') as bounce_class,
    coalesce(properties.url::Nullable(String), '') as url,
    coalesce(properties.user_agent::Nullable(String), '') as user_agent,
    coalesce(properties.phone::Nullable(String), '') as phone,
    {{ stop_channel() }} as stop_channel,

    ---------- booleans
    {{ is_machine_by_itself() }} as is_machine,

    ---------- semi-structured
    properties,

    ---------- timestamps
    occurred_at,
    received_at,
    loaded_at
from events
