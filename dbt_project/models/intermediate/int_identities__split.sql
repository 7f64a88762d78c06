{{
    config(
        materialized='view'
    )
}}

select
    ---------- ids
    identity_id,
    argMax(change_id, tuple(occurred_at, change_id)) as split_change_id,
    {{ contact_id_of("concat('split:', split_change_id)") }} as split_contact_id,

    ---------- semi-structured
    -- a merge is about the contact that a split before it had made
    arraySort(groupArray(tuple(
        occurred_at, {{ contact_id_of("concat('split:', change_id)") }}
    ))) as split_contacts,

    ---------- timestamps
    max(occurred_at) as split_at
from {{ ref('stg_identities__changes') }}
where action = 'split' and undone_by = '' and identity_id != 0
group by identity_id
