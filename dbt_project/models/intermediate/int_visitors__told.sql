{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('AggregatingMergeTree'),
        order_by=['visitor_id', 'person_identity_id'],
        query_settings={'optimize_on_insert': 0}
    )
}}

with

events as (

    select
        {{ visitor_of('source', 'anonymous_id') }} as visitor_id,
        {{ person_of('source', 'external_id', 'email') }} as person_identity_id,
        source,
        anonymous_id,
        occurred_at,
        loaded_at
    from {{ ref('stg_events__events') }}
    where
        {{ names_visitor() }}
        {% if is_incremental() -%}
        and loaded_at > {{ newest_load('event_loaded_at', 'recorded_at') }}
        {%- endif %}

)

select
    ---------- ids
    visitor_id::Int64 as visitor_id,
    person_identity_id::Int64 as person_identity_id,

    ---------- text
    any(source)::SimpleAggregateFunction(any, String) as source,
    any(anonymous_id)::SimpleAggregateFunction(any, String) as anonymous_id,

    ---------- booleans
    max(events.occurred_at > events.loaded_at)::SimpleAggregateFunction(max, Bool) as is_ahead,

    ---------- timestamps
    min(events.occurred_at)::SimpleAggregateFunction(min, DateTime64(3, 'UTC')) as first_at,
    -- and by which run that was known
    min(tuple(events.occurred_at, {{ stamp() }}))::SimpleAggregateFunction(min, Tuple(DateTime64(3, 'UTC'), DateTime64(3, 'UTC'))) as first_told,
    max(events.loaded_at)::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as event_loaded_at,
    {{ stamp() }}::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as recorded_at
from events
group by visitor_id, person_identity_id
