with

changes as (

    select
        list,
        source,
        external_id,
        {{ normalised_email('email') }} as email,
        is_member,
        changed_at,
        loaded_at
    from {{ source('raw', 'list_members') }}

),

latest as (

    -- the last change counts; of two at the same moment the one that was loaded last
    select * from changes
    order by changed_at desc, loaded_at desc, is_member
    limit 1 by list, source, external_id, email

)

select
    ---------- ids
    external_id,

    ---------- text
    list,
    source,
    email,

    ---------- booleans
    is_member,

    ---------- timestamps
    changed_at,
    loaded_at
from latest
