{{
    config(
        materialized='view'
    )
}}

with

told as (

    select
        address,
        message_hash,
        max(told.subscribed_at) as last_subscribed_at,
        max(told.unsubscribed_at) as last_unsubscribed_at
    from {{ ref('int_stops__told') }} as told
    where channel = 'all'
    group by address, message_hash

),

messages as (

    select
        message_hash as known_message_hash,
        any(messages.email) as message_email
    from {{ ref('int_messages__addressed') }} as messages
    where message_hash in (select message_hash from told where message_hash != 0)
    group by message_hash

),

said as (

    select
        {{ identity_of("''", "''", 'address') }} as email_identity_id,
        max(last_subscribed_at) as subscribed_at,
        max(last_unsubscribed_at) as unsubscribed_at
    from (
        select
            if(told.address = '', coalesce(messages.message_email, ''), told.address) as address,
            told.last_subscribed_at as last_subscribed_at,
            told.last_unsubscribed_at as last_unsubscribed_at
        from told
        left any join messages on messages.known_message_hash = told.message_hash
    )
    group by address
    having address != ''

),

parts as (

    select
        owners.contact_id as contact_id,
        max(said.subscribed_at) as last_subscribed_at,
        max(said.unsubscribed_at) as last_unsubscribed_at,
        toDateTime64(0, 3, 'UTC') as last_complained_at
    from {{ ref('int_contacts__identified') }} as owners
    inner join said on said.email_identity_id = owners.identity_id
    where owners.kind = 'email'
    group by owners.contact_id, owners.named_contact_id

)

{{ stopped_people('parts') }}
