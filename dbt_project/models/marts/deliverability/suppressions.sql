{{
    config(
        materialized='view'
    )
}}

with

events as (

    select * from {{ ref('stg_events__events') }}
    where
        type in ('unsubscribed', 'complained', 'bounced', 'subscribed')
        -- a scanner that follows links decides nothing
        and not is_machine
        -- a full mailbox is no reason never to write again
        and (type != 'bounced' or bounce_class = 'hard')

),

messages as (

    -- some providers name only the message
    select
        message_id,
        any({{ normalised_email('email') }}) as email
    from {{ source('raw', 'messages') }}
    where message_id in (select message_id from events where email = '' and stop_channel != 'sms')
    group by message_id

),

addressed as (

    select
        events.event_id as event_id,
        events.type as type,
        events.occurred_at as occurred_at,
        events.stop_channel = 'all' as is_global,
        coalesce(nullIf(events.email, ''), messages.email, '') as email
    from events
    left join messages on messages.message_id = events.message_id
    where events.stop_channel != 'sms'

),

identifiers as (

    select * from {{ ref('int_contacts__identified') }}
    where kind = 'email'

),

merged as (

    select contact_id as merged_contact_id, merged_at from {{ ref('int_contacts__merged') }}

),

owners as (

    -- whose an address was before a merge, and when that was
    select
        identifiers.identifier as owned_email,
        identifiers.named_contact_id as owner_id,
        coalesce(merged.merged_at, toDateTime64(0, 3, 'UTC')) as merged_at
    from identifiers
    left any join merged on merged.merged_contact_id = identifiers.contact_id
    where identifiers.identifier in (select email from addressed)

),

same_person as (

    -- what a person decided holds for every address we ever had of them; a dead mailbox is one address
    select
        own.identifier as email,
        other.identifier as other_email
    from identifiers as own
    inner join identifiers as other on other.contact_id = own.contact_id
    where own.identifier in (select email from addressed) and own.identifier != other.identifier

),

reached as (

    select email, email as told_email, type, occurred_at, event_id, is_global from addressed

    union all

    select
        same_person.other_email as email,
        addressed.email as told_email,
        addressed.type as type,
        addressed.occurred_at as occurred_at,
        addressed.event_id as event_id,
        addressed.is_global as is_global
    from addressed
    inner join same_person on same_person.email = addressed.email
    where addressed.type != 'bounced'

),

by_phone as (

    select
        coalesce({{ e164('events.phone') }}, events.phone) as phone,
        {{ standing_stops() }} as stops
    from (select *, false as is_global from events where stop_channel = 'sms') as events
    group by phone

),

by_email as (

    -- what one of several people decided is taken back by what another of them said only after a merge made them one
    select
        reached.email as email,
        groupArrayIf(tuple(reached.occurred_at, coalesce(owners.owner_id, 0)), reached.type = 'subscribed') as returns,
        coalesce(max(owners.merged_at), toDateTime64(0, 3, 'UTC')) as last_merged_at,
        arrayMap(
            stop -> tuple(stop.1, stop.2, stop.3, stop.4),
            arraySort(
                stop -> (stop.1, stop.2),
                arrayFilter(
                    stop -> stop.3 != 'unsubscribed' or not arrayExists(
                        back -> back.1 > stop.1 and (back.2 = stop.5 or back.1 > last_merged_at), returns
                    ),
                    groupArrayIf(
                        tuple(reached.occurred_at, reached.event_id, reached.type::String, reached.is_global, coalesce(owners.owner_id, 0)),
                        reached.type != 'subscribed'
                    )
                )
            )
        ) as stops
    from reached
    left any join owners on owners.owned_email = reached.told_email
    where reached.email != ''
    group by reached.email

),

stopped as (

    select 'email' as channel, email, '' as phone, stops from by_email

    union all

    select 'sms' as channel, '' as email, phone, stops from by_phone

)

select
    ---------- ids
    stops[1].2 as event_id,

    ---------- text
    channel,
    email,
    phone,
    stops[1].3 as reason,

    ---------- booleans
    arrayExists(stop -> stop.3 = 'bounced', stops)::Bool as is_bounced,
    arrayExists(stop -> stop.4, stops)::Bool as is_global,

    ---------- timestamps
    stops[1].1 as suppressed_at
from stopped
where notEmpty(stops)
