{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'rebuilt_at'),
        order_by=['experiment', 'contact_id', 'is_goal', 'moved_at', 'variant']
    )
}}

-- Who went which way in splits of journeys that are experiments, and who reached the journey's goal.

with

splits as (

    select
        experiment,
        splitByChar('.', owner)[1] as journey_name,
        splitByChar('.', owner)[2] as split_step
    from {{ ref('stg_ledger__experiments') }}
    where owner_kind = 'journey'

),

moves as (

    select * from {{ ref('stg_journeys__moves') }}
    where
        (select count() from splits) > 0
        and ((journey, previous_step) in (select journey_name, split_step from splits) or ending = 'goal')
        {%- if is_incremental() %}
        and loaded_at > {{ newest_load('loaded_at', 'rebuilt_at') }}
        {%- endif %}

)

select
    ---------- ids
    moves.contact_id as contact_id,

    ---------- text
    splits.experiment::LowCardinality(String) as experiment,
    if(moves.ending = 'goal', '', moves.outcome)::LowCardinality(String) as variant,

    ---------- booleans
    (moves.ending = 'goal')::Bool as is_goal,

    ---------- timestamps
    moves.moved_at as moved_at,
    moves.loaded_at as loaded_at,
    {{ stamp() }} as rebuilt_at
from moves
inner join splits on splits.journey_name = moves.journey
where moves.ending = 'goal' or (moves.previous_step = splits.split_step and startsWith(moves.cause, 'hash '))
