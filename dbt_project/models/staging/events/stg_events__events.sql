with

events as (

    select * from {{ source('raw', 'events') }}

)

select
    ---------- ids
    event_id,
    external_id,
    anonymous_id,
    message_id,

    ---------- text
    type,
    source,
    {{ normalised_email('email') }} as email,
    coalesce(properties.bounce_class::Nullable(String), '') as bounce_class,
    coalesce(properties.url::Nullable(String), '') as url,

    ---------- booleans
    lower(coalesce(properties.is_machine::Nullable(String), '')) in ('true', '1') as is_machine,

    ---------- semi-structured
    properties,

    ---------- timestamps
    occurred_at,
    received_at,
    loaded_at
from events
