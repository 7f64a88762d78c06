{{
    config(
        materialized='view'
    )
}}

with

reached as (

    select * from {{ ref('int_goals__reached') }}
    where not is_month

)

select
    ---------- ids
    message_id,
    contact_id,
    first_event_key,

    ---------- text
    kind,
    campaign,
    occurrence,
    variant,
    goal_event,

    ---------- numerics
    events_count,
    revenue,
    dateDiff('second', sent_at, reached_at)::UInt32 as seconds_to_goal,

    ---------- timestamps
    sent_at,
    reached_at
from reached
