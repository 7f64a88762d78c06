{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('AggregatingMergeTree'),
        order_by=['channel', 'purpose', 'identity_id'],
        query_settings={'optimize_on_insert': 0}
    )
}}

with

changes as (

    select
        *,
        {{ identity_of('source', 'external_id', 'email') }} as identity_id
    from {{ ref('stg_consents__changes') }}
    {% if is_incremental() -%}
    where loaded_at > {{ newest_load('last_loaded_at', 'recorded_at') }}
    {%- endif %}

)

select
    ---------- ids
    changes.identity_id::Int64 as identity_id,

    ---------- text
    channel,
    purpose,

    ---------- semi-structured
    -- of two changes at the same moment the longer withdrawal counts; one without end ends beyond all days
    max(
        tuple(
            changes.occurred_at,
            multiIf(
                changes.is_granted, toDateTime64(0, 3, 'UTC'),
                coalesce(changes.paused_until, toDateTime64('2299-12-31 00:00:00', 3, 'UTC'))
            )
        )
    )::SimpleAggregateFunction(
        max, Tuple(occurred_at DateTime64(3, 'UTC'), withdrawn_until DateTime64(3, 'UTC'))
    ) as last_change,

    ---------- timestamps
    max(changes.loaded_at)::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as last_loaded_at,
    {{ stamp() }}::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as recorded_at
from changes
where changes.identity_id != 0
group by identity_id, channel, purpose
