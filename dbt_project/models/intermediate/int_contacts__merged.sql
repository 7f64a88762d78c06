{{
    config(
        order_by='contact_id'
    )
}}

-- a table, though few are in it: as a view it would be looked at, with all records, by each of those that ask

select
    ---------- ids
    identified.contact_id as contact_id,

    ---------- timestamps
    max(merged.merged_at) as merged_at
from {{ ref('int_identities__merged') }} as merged
inner join (
    select identity_id, contact_id from {{ ref('int_contacts__identified') }}
    where identity_id in (select identity_id from {{ ref('int_identities__merged') }})
) as identified
    on identified.identity_id = merged.identity_id
group by identified.contact_id
