{{
    config(
        materialized='view'
    )
}}

with

changes as (

    select * from {{ ref('segment_changes') }}

),

settled as (

    select * from {{ ref('int_segments__settled') }}

),

moment as (

    -- while a build runs, changes are a step ahead of what is settled; stays that end now are not told twice
    select if(count() = 0, toDateTime64('2299-12-31 00:00:00', 3, 'UTC'), max(folded_through)) as settled_at
    from settled

)

select
    ---------- ids
    segment,
    contact_id,

    ---------- timestamps
    entered_at as valid_from,
    changed_at::Nullable(DateTime64(3, 'UTC')) as valid_to
from changes
where change = 'left' and changed_at <= assumeNotNull((select settled_at from moment))

union all

select
    ---------- ids
    segment,
    contact_id,

    ---------- timestamps
    entered_at as valid_from,
    null::Nullable(DateTime64(3, 'UTC')) as valid_to
from settled
