{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree'),
        order_by=['visitor_id', 'occurred_at', 'person_identity_id'],
        settings={'index_granularity': 256},
        query_settings={'optimize_on_insert': 0}
    )
}}

-- asked later than who is told, so that all that is told has its moments: depends_on: {{ ref('int_visitors__told') }}

select
    ---------- ids
    {{ visitor_of('source', 'anonymous_id') }}::Int64 as visitor_id,
    {{ person_of('source', 'external_id', 'email') }}::Int64 as person_identity_id,

    ---------- timestamps
    occurred_at,
    loaded_at as event_loaded_at,
    {{ stamp() }} as recorded_at
from {{ ref('stg_events__events') }}
where
    {{ names_visitor() }}
    {% if is_incremental() -%}
    and loaded_at > {{ newest_load('event_loaded_at', 'recorded_at') }}
    {%- endif %}
