with

decisions as (

    select * from {{ source('raw', 'field_decisions') }}

),

latest as (

    -- what was decided last counts
    select * from decisions
    order by decided_at desc, content_hash
    limit 1 by contact_id, field

)

select
    ---------- ids
    contact_id,
    external_id,

    ---------- text
    field,
    value,
    rule,
    source,
    why,

    ---------- semi-structured
    losers,

    ---------- timestamps
    value_at,
    decided_at
from latest
