{{
    config(
        materialized='view'
    )
}}

with

turns as (

    -- of each record when its email became another, or went
    select
        identity_id,
        arraySort(groupArray(tuple(held.updated_at, held.email))) as versions,
        arrayFilter(
            (version, previous) -> version.2 != previous,
            versions,
            arrayPushFront(arrayPopBack(arrayMap(version -> version.2, versions)), '')
        ) as changes
    from {{ newest(ref('int_emails__held'), 'held') }}
    group by identity_id

),

periods as (

    select
        identity_id,
        change.2.2 as email,
        change.2.1 as valid_from,
        if(change.1 < length(changes), changes[change.1 + 1].1, null)::Nullable(DateTime64(3, 'UTC')) as valid_to
    from turns
    array join arrayZip(arrayEnumerate(changes), changes) as change
    where change.2.2 != ''

),

identified as (

    select identity_id, contact_id, kind, source, is_known_to_crm from {{ ref('int_contacts__identified') }}
    where kind in ('record', 'email')

),

hinted as (

    -- addresses that no CRM has
    select
        email_identity_id,
        any(hints.email) as email,
        arraySort(groupUniqArrayArray(hints.sources))[1] as source,
        min(hints.first_seen_at) as valid_from
    from {{ ref('int_contacts__hinted') }} as hints
    where message_contact_id = 0
    group by email_identity_id

),

held as (

    select
        identified.contact_id as contact_id,
        identified.source::String as source,
        periods.email as email,
        periods.valid_from as valid_from,
        periods.valid_to as valid_to
    from periods
    inner join identified on identified.identity_id = periods.identity_id

    union all

    select
        identified.contact_id as contact_id,
        hinted.source as source,
        hinted.email as email,
        hinted.valid_from as valid_from,
        null::Nullable(DateTime64(3, 'UTC')) as valid_to
    from hinted
    inner join identified on identified.identity_id = hinted.email_identity_id
    where not identified.is_known_to_crm

),

once as (

    -- two records of a CRM that were merged may say the same
    select
        held.contact_id as contact_id,
        held.email as email,
        held.source as source,
        held.valid_from as valid_from,
        if(count() > count(held.valid_to), null, max(held.valid_to)) as valid_to
    from held
    group by held.contact_id, held.email, held.source, held.valid_from

),

ranked as (

    select
        *,
        row_number() over (
            partition by contact_id, email
            order by isNull(valid_to) desc, valid_from desc, source
        ) as newest_rank
    from once

),

contacts as (

    select contact_id as known_contact_id, email as current_email from {{ ref('contacts') }}

),

owners as (

    select identifier as owned_email, contact_id as owner_contact_id from {{ ref('int_contacts__identified') }}
    where kind = 'email'

)

select
    ---------- ids
    ranked.contact_id::Int64 as contact_id,

    ---------- text
    ranked.email::String as email,
    ranked.source::LowCardinality(String) as source,

    ---------- booleans
    (ranked.newest_rank = 1 and coalesce(contacts.current_email, '') = ranked.email)::Bool as is_current,
    (coalesce(owners.owner_contact_id, 0) = ranked.contact_id)::Bool as is_leading_here,

    ---------- timestamps
    ranked.valid_from::DateTime64(3, 'UTC') as valid_from,
    ranked.valid_to::Nullable(DateTime64(3, 'UTC')) as valid_to
from ranked
left any join contacts on contacts.known_contact_id = ranked.contact_id
left any join owners on owners.owned_email = ranked.email
