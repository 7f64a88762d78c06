{{
    config(
        materialized='view'
    )
}}

with

changes as (

    select
        change_id,
        action::String as action,
        'hand' as decided_by,
        identity_id,
        into_identity_id,
        contact_id,
        into_contact_id,
        source::String as source,
        external_id,
        email,
        into_source::String as into_source,
        into_external_id,
        into_email,
        undoes,
        undone_by,
        reason,
        actor,
        occurred_at
    from {{ ref('stg_identities__changes') }}

    union all

    select
        change_id,
        'merge' as action,
        'crm' as decided_by,
        identity_id,
        into_identity_id,
        0::Int64 as contact_id,
        0::Int64 as into_contact_id,
        source::String as source,
        external_id,
        email,
        into_source::String as into_source,
        into_external_id,
        into_email,
        '' as undoes,
        '' as undone_by,
        '' as reason,
        source::String as actor,
        merged_at as occurred_at
    from {{ ref('int_identities__merged') }}
    where decided_by = 'crm'

),

identified as (

    select identity_id as known_identity_id, contact_id as known_contact_id, named_contact_id as known_named_contact_id
    from {{ ref('int_contacts__identified') }}
    where identity_id in (select arrayJoin([identity_id, into_identity_id]) from changes)

)

select
    ---------- ids
    changes.change_id::String as change_id,
    if(changes.decided_by = 'crm', coalesce(goes.known_named_contact_id, 0), changes.contact_id)::Int64 as contact_id,
    if(changes.decided_by = 'crm', coalesce(stays.known_named_contact_id, 0), changes.into_contact_id)::Int64 as into_contact_id,
    nullIf(goes.known_contact_id, 0)::Nullable(Int64) as current_contact_id,
    changes.external_id::String as external_id,
    changes.into_external_id::String as into_external_id,
    changes.undoes::String as undoes,
    changes.undone_by::String as undone_by,

    ---------- text
    changes.action::LowCardinality(String) as action,
    changes.decided_by::LowCardinality(String) as decided_by,
    changes.source::LowCardinality(String) as source,
    changes.email::String as email,
    changes.into_source::LowCardinality(String) as into_source,
    changes.into_email::String as into_email,
    changes.reason::String as reason,
    changes.actor::String as actor,

    ---------- booleans
    (changes.action != 'undo' and changes.undone_by = '')::Bool as is_in_force,

    ---------- timestamps
    changes.occurred_at::DateTime64(3, 'UTC') as occurred_at
from changes
left any join identified as goes on goes.known_identity_id = changes.identity_id
left any join identified as stays on stays.known_identity_id = changes.into_identity_id
