with

changes as (

    -- a row that was written twice counts once
    select * from {{ source('raw', 'identity_changes') }}
    order by loaded_at
    limit 1 by change_id

),

undone as (

    select
        undoes as undone_id,
        argMin(change_id, tuple(occurred_at, change_id)) as undone_by
    from changes
    where action = 'undo'
    group by undoes

)

select
    ---------- ids
    changes.change_id as change_id,
    {{ identity_of('changes.source', 'changes.external_id', normalised_email('changes.email')) }} as identity_id,
    {{ identity_of('changes.into_source', 'changes.into_external_id', normalised_email('changes.into_email')) }} as into_identity_id,
    changes.contact_id as contact_id,
    changes.into_contact_id as into_contact_id,
    changes.undoes as undoes,
    coalesce(undone.undone_by, '') as undone_by,

    ---------- text
    changes.action as action,
    changes.source as source,
    changes.external_id as external_id,
    {{ normalised_email('changes.email') }} as email,
    changes.into_source as into_source,
    changes.into_external_id as into_external_id,
    {{ normalised_email('changes.into_email') }} as into_email,
    changes.reason as reason,
    changes.actor as actor,

    ---------- timestamps
    changes.occurred_at as occurred_at,
    changes.loaded_at as loaded_at
from changes
left any join undone on undone.undone_id = changes.change_id
