{{
    config(
        order_by='contact_id'
    )
}}

with

telling as (

    -- of most people records alone tell a number, and `contacts` has it
    select distinct contact_id
    from {{ ref('int_contacts__identified') }}
    where identity_id in (
        select identity_id from {{ ref('int_addresses__told') }}
        where told_at > toDateTime64(0, 3, 'UTC') or kind = 'push_token'
    )

),

identities as (

    select identity_id as known_identity_id, contact_id
    from {{ ref('int_contacts__identified') }}
    where contact_id in (select contact_id from telling)

),

told as (

    select
        kind,
        address,
        identity_id,
        max(told.told_at) as last_told_at,
        min(told.listed_at) as first_listed_at,
        max(told.removed_at) as last_removed_at
    from {{ ref('int_addresses__told') }} as told
    where kind = 'push_token' or identity_id in (select known_identity_id from identities)
    group by kind, address, identity_id

),

said as (

    select
        identities.contact_id as contact_id,
        told.kind as kind,
        told.address as address,
        max(told.last_told_at) as told_at,
        min(told.first_listed_at) as listed_at
    from told
    inner join identities on identities.known_identity_id = told.identity_id
    group by contact_id, kind, address

),

phones as (

    -- what records say now is in `contacts`; here is since when they have said it
    select
        said.contact_id as contact_id,
        argMaxIf(said.address, said.told_at, said.address != '' and said.told_at > toDateTime64(0, 3, 'UTC')) as told_phone,
        maxIf(said.told_at, said.address != '') as phone_told_at,
        max(said.address = '') as has_unusable_phone
    from said
    where said.kind = 'phone'
    group by said.contact_id
    having phone_told_at > toDateTime64(0, 3, 'UTC') or has_unusable_phone

),

listed_phones as (

    select
        said.contact_id as listing_contact_id,
        said.address as listed_phone,
        said.listed_at as listed_at
    from said
    where said.kind = 'phone' and said.contact_id in (select contact_id from phones)

),

contacts as (

    select contact_id as known_contact_id, phone as known_phone
    from {{ ref('contacts') }}
    where contact_id in (select contact_id from phones)

),

newest_phones as (

    select
        phones.contact_id as contact_id,
        if(
            phones.told_phone != ''
                and not coalesce(listed_phones.listed_at > phones.phone_told_at, false),
            phones.told_phone,
            ''
        ) as phone,
        phones.has_unusable_phone as has_unusable_phone
    from phones
    left any join contacts on contacts.known_contact_id = phones.contact_id
    left any join listed_phones
        on listed_phones.listing_contact_id = phones.contact_id
        and listed_phones.listed_phone = contacts.known_phone

),

removed as (

    select address as removed_token, max(last_removed_at) as removed_at
    from told
    where kind = 'push_token'
    group by address
    having removed_at > toDateTime64(0, 3, 'UTC')

),

tokens as (

    -- a device belongs to whoever it was last registered for
    select
        push_token,
        argMax(contact_id, tuple(at, contact_id)) as contact_id,
        max(at) as registered_at
    from (
        select
            said.contact_id as contact_id,
            said.address as push_token,
            -- a row that an event alone took away has neither
            greatest(
                said.told_at,
                if(said.listed_at < toDateTime64('2299-12-31 00:00:00', 3, 'UTC'), said.listed_at, said.told_at)
            ) as at
        from said
        where said.kind = 'push_token'
    )
    group by push_token
    having registered_at > toDateTime64(0, 3, 'UTC')

),

newest_tokens as (

    select
        tokens.contact_id as contact_id,
        argMax(tokens.push_token, tuple(tokens.registered_at, tokens.push_token)) as push_token
    from tokens
    left any join removed on removed.removed_token = tokens.push_token
    where not coalesce(removed.removed_at >= tokens.registered_at, false)
    group by tokens.contact_id

),

addressed as (

    select contact_id, phone, '' as push_token, has_unusable_phone from newest_phones

    union all

    select contact_id, '' as phone, push_token, false as has_unusable_phone from newest_tokens

)

select
    ---------- ids
    contact_id,

    ---------- text
    nullIf(max(addressed.phone), '')::Nullable(String) as phone,
    nullIf(max(addressed.push_token), '')::Nullable(String) as push_token,

    ---------- booleans
    max(addressed.has_unusable_phone)::Bool as has_unusable_phone
from addressed
group by contact_id
