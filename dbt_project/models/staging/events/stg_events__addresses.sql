{%- set registering = ['contact.identified', 'push.registered', 'application.installed', 'application.opened'] -%}
{%- set removing = ['push.unregistered', 'application.uninstalled'] -%}
with

events as (

    -- filtered before JSON is read: the table is in order of types
    select
        event_id,
        type,
        source,
        external_id,
        {{ normalised_email('email') }} as email,
        nullIf(trim(coalesce(properties.phone::Nullable(String), '')), '') as given_phone,
        trim(coalesce(
            properties.push_token::Nullable(String),
            properties.device_token::Nullable(String),
            properties.token::Nullable(String),
            ''
        )) as push_token,
        occurred_at,
        loaded_at
    from {{ source('raw', 'events') }}
    where type in ('{{ (registering + removing) | join("', '") }}')

)

select
    ---------- ids
    event_id,
    external_id,

    ---------- text
    source,
    email,
    'phone'::LowCardinality(String) as kind,
    coalesce({{ e164('given_phone') }}, '') as address,

    ---------- booleans
    false as is_removed,

    ---------- timestamps
    occurred_at,
    loaded_at
from events
where type = 'contact.identified' and given_phone is not null

union all

select
    ---------- ids
    event_id,
    external_id,

    ---------- text
    source,
    email,
    'push_token'::LowCardinality(String) as kind,
    push_token as address,

    ---------- booleans
    type in ('{{ removing | join("', '") }}') as is_removed,

    ---------- timestamps
    occurred_at,
    loaded_at
from events
where push_token != ''
