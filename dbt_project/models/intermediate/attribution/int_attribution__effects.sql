{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['is_month', 'dimension', 'goal', 'state'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

{%- set months = due_effect_months() %}

{% if is_incremental() and not months -%}
{{ nothing_due() }}

{%- else -%}
with

settled as (

    select * from (
        {{ settled_steps() }}
    )
    {% if months is not none -%}
    where {{ 'month in (' ~ months | join(', ') ~ ')' if months else 'false' }}
    {%- endif %}

),

added as (

    select month, goal, dimension, from_state::String as from_state, to_state::String as to_state, sum(touches_count) as touches_count
    from settled
    group by month, goal, dimension, from_state, to_state

),

weighed as (

    select *, sum(touches_count) over (partition by month, goal, dimension, from_state) as leaving_count
    from added

),

ranked as (

    -- the others share one state: the chain would grow with all campaigns there ever were
    select
        *,
        from_state != '(start)' and dense_rank() over (
            partition by month, goal, dimension order by from_state = '(start)', leaving_count desc, from_state
        ) <= {{ var('attribution_states') }} as is_busy
    from weighed

),

placed as (

    select *, groupUniqArrayIf(from_state, is_busy) over (partition by month, goal, dimension) as busiest
    from ranked

),

named as (

    select
        month,
        goal,
        dimension,
        if(placed.from_state = '(start)' or is_busy, placed.from_state, '(others)') as from_state,
        if(
            placed.to_state in ('(conversion)', '(null)') or has(busiest, placed.to_state), placed.to_state, '(others)'
        ) as to_state,
        sum(placed.touches_count) as touches_count
    from placed
    group by month, goal, dimension, from_state, to_state

),

effects as (

    {{ removal_effects('named', ['month', 'goal', 'dimension']) }}

),

touches as (

    select month, goal, dimension, from_state as state, sum(touches_count) as touches_count
    from named
    group by month, goal, dimension, from_state

),

hashes as (

    select month, groupBitXor(step_hash) as learned_hash
    from settled
    group by month

),

months as (

    {% if months is none -%}
    select month from hashes
    {%- else -%}
    select arrayJoin([{{ months | join(', ') }}]::Array(UInt32)) as month
    {%- endif %}

)

select
    effects.month::UInt32 as month,
    false::Bool as is_month,
    effects.dimension::LowCardinality(String) as dimension,
    effects.goal::LowCardinality(String) as goal,
    effects.state::String as state,
    effects.removal_effect::Float64 as removal_effect,
    effects.conversion_probability::Float64 as conversion_probability,
    coalesce(touches.touches_count, 0)::UInt64 as touches_count,
    0::UInt64 as learned_hash,
    ''::LowCardinality(String) as settings
from effects
left join touches
    on
        touches.month = effects.month
        and touches.goal = effects.goal
        and touches.dimension = effects.dimension
        and touches.state = effects.state

union all

select
    months.month::UInt32 as month,
    true::Bool as is_month,
    ''::LowCardinality(String) as dimension,
    ''::LowCardinality(String) as goal,
    '' as state,
    0::Float64 as removal_effect,
    0::Float64 as conversion_probability,
    0::UInt64 as touches_count,
    coalesce(hashes.learned_hash, 0)::UInt64 as learned_hash,
    '{{ attribution_settings() }}'::LowCardinality(String) as settings
from months
left join hashes on hashes.month = months.month

{%- endif %}
