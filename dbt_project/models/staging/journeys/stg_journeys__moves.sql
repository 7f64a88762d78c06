{#- the table is made when journeys first run: until then there is nothing to read -#}
{%- set moves = source('campaigns', 'journey_steps') %}
{%- set is_there = execute and load_relation(moves) is not none %}

with

moves as (

    {% if is_there -%}
    select * from {{ moves }}
    {%- else -%}
    select
        ''::String as entry_id,
        ''::LowCardinality(String) as journey,
        0::Int64 as contact_id,
        0::UInt32 as entry,
        0::UInt64 as sequence,
        ''::LowCardinality(String) as version,
        ''::LowCardinality(String) as previous_step,
        ''::LowCardinality(String) as outcome,
        ''::String as cause,
        ''::LowCardinality(String) as step,
        ''::LowCardinality(String) as ending,
        toDateTime64(0, 3, 'UTC') as entered_at,
        toDateTime64(0, 3, 'UTC') as due_at,
        toDateTime64(0, 3, 'UTC') as started_at,
        toDateTime64(0, 3, 'UTC') as loaded_at
    where false
    {%- endif %}

),

once as (

    -- a move that was written twice is the same move
    select * from moves
    limit 1 by journey, contact_id, sequence

)

select
    ---------- ids
    entry_id,
    contact_id,

    ---------- text
    journey,
    version,
    previous_step,
    outcome,
    cause,
    step,
    ending,

    ---------- numerics
    entry,
    sequence,

    ---------- timestamps
    entered_at as moved_at,
    due_at,
    started_at,
    loaded_at
from once
