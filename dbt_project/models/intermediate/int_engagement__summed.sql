{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='loaded_on',
        order_by=['identity_id', 'half_life_days'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        post_hook="{{ drop_folded() }}"
    )
}}

{%- set rules %}(select groupBitXor(sipHash64(event_type, weight, half_life_days, '{{ var("engagement_epoch") }}')) from {{ ref('engagement_weights') }}){% endset %}
{%- set due = due_states(rules) %}

with

weights as (

    select * from {{ ref('engagement_weights') }}

),

events as (

    select * from {{ ref('int_events__recorded') }}
    where
        type in (select event_type from weights)
        and identity_id > 0
        and not is_machine
        and {{ is_due_state(due) }}

),

added as (

    select
        {{ state_partition(due) }} as day,
        events.identity_id as identity_id,
        weights.half_life_days as half_life_days,
        sum(weights.weight * {{ decay_growth('events.occurred_at', 'weights.half_life_days') }}) as decayed_sum,
        maxIfOrNull(events.occurred_at, weights.weight > 0) as last_engaged_at,
        max(events.recorded_at) as recorded_at
    from events
    inner join weights on weights.event_type = events.type
    group by day, identity_id, half_life_days
    {% if is_incremental() %}
    union all

    select {{ folded() }} as day, identity_id, half_life_days, decayed_sum, last_engaged_at, recorded_at
    from {{ this }}
    where {{ is_folded_state(due) }}
    {% endif %}

)

select
    ---------- ids
    day as loaded_on,
    identity_id,

    ---------- numerics
    half_life_days,
    sum(added.decayed_sum) as decayed_sum,
    {{ rules }} as rules,

    ---------- timestamps
    max(added.last_engaged_at) as last_engaged_at,
    max(added.recorded_at) as recorded_at,
    {{ folded_through(due, 'day') }} as folded_through
from added
group by day, identity_id, half_life_days
