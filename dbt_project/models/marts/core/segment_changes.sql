{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='toMonday(changed_at)',
        order_by=['segment', 'changed_at', 'contact_id'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

{#- only what the log says since stays were last settled is looked at; its weeks are rebuilt -#}
{%- set settled = settled_stays() if is_incremental() else none %}

with

log as (

    select
        segment,
        contact_id,
        is_member,
        changed_at
    from {{ ref('int_segments__changed') }}
    {% if settled -%}
    where changed_at > {{ settled_through(settled) }}
    {%- endif %}

),

noted as (

    select * from log

    {% if settled -%}
    union all

    -- of whom the log speaks, who had been in the segment before
    select
        segment,
        contact_id,
        true::Bool as is_member,
        entered_at as changed_at
    from {{ settled }}
    -- sorting out by number first spares nearly all rows the dearer comparison
    prewhere contact_id in (select contact_id from log)
    where tuple(segment, contact_id) in (select tuple(segment, contact_id) from log)
    {%- endif %}

),

states as (

    select
        *,
        lagInFrame(is_member, 1, false) over (
            partition by segment, contact_id order by changed_at
            rows between unbounded preceding and current row
        ) as was_member
    from noted

),

changes as (

    -- two runs at once may both have noted a change: the first note counts
    select
        segment,
        contact_id,
        is_member,
        changed_at,
        lagInFrame(changed_at, 1, changed_at) over (
            partition by segment, contact_id order by changed_at
            rows between unbounded preceding and current row
        ) as previous_changed_at
    from states
    where is_member != was_member

)

select
    ---------- ids
    segment,
    contact_id,

    ---------- text
    if(is_member, 'entered', 'left')::LowCardinality(String) as change,

    ---------- timestamps
    if(is_member, changed_at, previous_changed_at) as entered_at,
    changed_at
from changes
{% if settled -%}
where changed_at > {{ settled_through(settled) }}

union all

-- a week that gains rows keeps those it has
select
    segment,
    contact_id,
    change,
    entered_at,
    changed_at
from {{ this }}
where
    changed_at >= toMonday({{ settled_through(settled) }})
    and changed_at <= {{ settled_through(settled) }}
    and toMonday(changed_at) in (select toMonday(changed_at) from log)
{%- endif %}
