{{
    config(
        materialized='view'
    )
}}

with

told as (

    select * from {{ ref('int_emails__told') }}

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
        if(told.email = '', coalesce(messages.message_email, ''), told.email) as address,
        {{ identity_of("''", "''", 'address') }} as email_identity_id,
        max(told.subscribed_at) as subscribed_at,
        max(told.unsubscribed_at) as unsubscribed_at,
        max(told.complained_at) as complained_at,
        max(told.bounced_at) as bounced_at
    from told
    left any join messages on messages.known_message_hash = told.message_hash
    group by address
    having address != ''

),

owners as (

    select identity_id, contact_id, named_contact_id
    from {{ ref('int_contacts__identified') }}
    where kind = 'email' and identity_id in (select email_identity_id from said)

),

parts as (

    select
        owners.contact_id as contact_id,
        max(said.subscribed_at) as last_subscribed_at,
        max(said.unsubscribed_at) as last_unsubscribed_at,
        max(said.complained_at) as last_complained_at
    from owners
    inner join said on said.email_identity_id = owners.identity_id
    group by owners.contact_id, owners.named_contact_id

),

people as (

    -- what a person decided holds for every address we ever had of them
    {{ stopped_people('parts') }}

)

select identifier as email
from {{ ref('int_contacts__identified') }}
where kind = 'email' and contact_id in (select contact_id from people)

union distinct

-- a dead mailbox is one address; and an address of nobody's speaks for itself
select address as email
from said
where
    bounced_at > toDateTime64(0, 3, 'UTC')
    or (
        {{ is_stopped('subscribed_at', 'unsubscribed_at', 'complained_at') }}
        and email_identity_id not in (select identity_id from owners)
    )
