{{
    config(
        materialized='view'
    )
}}

with

changes as (

    select * from {{ ref('int_segments__changed') }}

),

states as (

    select
        *,
        lagInFrame(is_member, 1, false) over (
            partition by segment, contact_id order by changed_at
            rows between unbounded preceding and current row
        ) as was_member
    from changes

),

intervals as (

    -- two runs at once may both have noted a change: the first note counts
    select
        segment,
        contact_id,
        is_member,
        changed_at as valid_from,
        leadInFrame(toNullable(changed_at)) over (
            partition by segment, contact_id order by changed_at
            rows between current row and unbounded following
        ) as valid_to
    from states
    where is_member != was_member

)

select
    ---------- ids
    segment,
    contact_id,

    ---------- timestamps
    valid_from,
    valid_to
from intervals
where is_member
