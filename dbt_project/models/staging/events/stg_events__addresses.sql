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

),

told as (

    select
        event_id,
        type,
        source,
        external_id,
        email,
        arrayJoin([
            tuple('phone', if(type = 'contact.identified', given_phone, null)), tuple('push_token', nullIf(push_token, ''))
        ]) as kind_and_address,
        occurred_at,
        loaded_at
    from events

)

select
    ---------- ids
    event_id,
    external_id,

    ---------- text
    source,
    email,
    kind_and_address.1::LowCardinality(String) as kind,
    if(kind = 'phone', coalesce({{ e164('kind_and_address.2') }}, ''), assumeNotNull(kind_and_address.2)) as address,

    ---------- booleans
    (kind = 'push_token' and type in ('{{ removing | join("', '") }}')) as is_removed,

    ---------- timestamps
    occurred_at,
    loaded_at
from told
where kind_and_address.2 is not null
