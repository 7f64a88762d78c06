{{
    config(
        materialized='view'
    )
}}

with

identified as (

    select * from {{ ref('int_contacts__identified') }}
    where kind in ('record', 'email', 'account', 'visitor')

),

seen as (

    select
        identity_id as seen_identity_id,
        min(first_at) as first_seen_at
    from (
        select identity_id, created_at as first_at from {{ ref('int_records__combined') }}

        union all

        select
            {{ identity_of("''", "''", 'email') }} as identity_id,
            updated_at as first_at
        from {{ ref('int_emails__held') }}
        where email != ''

        union all

        select arrayJoin([email_identity_id, record_identity_id]) as identity_id, hints.first_seen_at as first_at
        from {{ ref('int_contacts__hinted') }} as hints
        where message_contact_id = 0

        union all

        select
            arrayJoin([visitor_id, {{ visitor_as('visitor_id', 'person_identity_id', '0') }}]) as identity_id,
            told.first_at as first_at
        from {{ ref('int_visitors__told') }} as told
    )
    group by identity_id

),

splits as (

    select identity_id as split_identity_id, split_change_id from {{ ref('int_identities__split') }}

),

merges as (

    -- which merge took a contact to where it is: one by which it went comes before one by which another came
    select
        contact_id as merging_contact_id,
        argMax(change_id, tuple(is_goer, merged_at, change_id)) as merge_change_id
    from (
        select
            ends.named_contact_id as contact_id,
            merged.change_id as change_id,
            merged.merged_at as merged_at,
            ends.identity_id = merged.identity_id as is_goer
        from (
            select
                change_id,
                identity_id,
                merged_at,
                arrayJoin([identity_id, into_identity_id]) as end_identity_id
            from {{ ref('int_identities__merged') }}
        ) as merged
        inner join (
            select identity_id, named_contact_id from {{ ref('int_contacts__identified') }}
            where identity_id in (
                select arrayJoin([identity_id, into_identity_id]) from {{ ref('int_identities__merged') }}
            )
        ) as ends on ends.identity_id = merged.end_identity_id
    )
    group by contact_id

)

select
    ---------- ids
    identified.identity_id::Int64 as identity_id,
    identified.contact_id::Int64 as contact_id,
    identified.named_contact_id::Int64 as named_contact_id,
    identified.identifier::String as identifier,
    coalesce(splits.split_change_id, '')::String as split_change_id,
    if(identified.named_contact_id != identified.contact_id, coalesce(merges.merge_change_id, ''), '')::String as merge_change_id,

    ---------- text
    identified.kind::LowCardinality(String) as kind,
    identified.source::LowCardinality(String) as source,
    multiIf(
        coalesce(splits.split_change_id, '') != '', 'split_by_hand',
        identified.kind = 'visitor', 'named_by_event',
        identified.kind = 'account', 'told_with_email',
        identified.kind = 'email' and identified.is_known_to_crm, 'email_of_record',
        identified.kind = 'email', 'email_alone',
        identified.own_contact_id = {{ contact_id_of("concat(identified.source::String, ':', identified.identifier)") }}, 'record_alone',
        'first_email_of_record'
    )::LowCardinality(String) as rule,

    ---------- booleans
    identified.is_known_to_crm::Bool as is_known_to_crm,

    ---------- timestamps
    coalesce(seen.first_seen_at, toDateTime64(0, 3, 'UTC'))::DateTime64(3, 'UTC') as first_seen_at
from identified
left any join seen on seen.seen_identity_id = identified.identity_id
left any join splits on splits.split_identity_id = identified.identity_id
left any join merges on merges.merging_contact_id = identified.named_contact_id
