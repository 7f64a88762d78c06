{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('AggregatingMergeTree'),
        order_by=['kind', 'address', 'identity_id'],
        query_settings={'optimize_on_insert': 0},
        post_hook="{{ note_loads_taken() }}"
    )
}}

with

events as (

    select
        kind,
        address,
        {{ identity_of('source', 'external_id', 'email') }} as identity_id,
        maxIf(occurred_at, not is_removed) as told_at,
        maxIf(occurred_at, is_removed) as removed_at,
        max(loaded_at) as event_loaded_at
    from {{ ref('stg_events__addresses') }}
    {% if is_incremental() -%}
    where loaded_at > {{ newest_load_or_note('event_loaded_at', 'recorded_at') }}
    {%- endif %}
    group by kind, address, identity_id

),

records as (

    select
        source,
        external_id,
        {{ identity_of('source', 'external_id', "''") }} as identity_id,
        phone,
        push_token,
        updated_at,
        loaded_at
    from {{ ref('stg_crm__contacts') }}
    {% if is_incremental() -%}
    where loaded_at > {{ newest_load('record_loaded_at', 'recorded_at') }}
    {%- endif %}

),

listed as (

    select
        told.1::LowCardinality(String) as kind,
        assumeNotNull(told.2) as address,
        identity_id,
        min(updated_at) as listed_at,
        max(loaded_at) as record_loaded_at
    from records
    array join [tuple('phone', if({{ is_e164('phone') }}, phone, null)), tuple('push_token', push_token)] as told
    where told.2 is not null
    group by kind, address, identity_id

),

told as (

    select
        kind,
        address,
        identity_id,
        told_at,
        toDateTime64('2299-12-31 00:00:00', 3, 'UTC') as listed_at,
        removed_at,
        event_loaded_at,
        toDateTime64(0, 3, 'UTC') as record_loaded_at
    from events

    union all

    select
        kind,
        address,
        identity_id,
        toDateTime64(0, 3, 'UTC') as told_at,
        listed_at,
        toDateTime64(0, 3, 'UTC') as removed_at,
        toDateTime64(0, 3, 'UTC') as event_loaded_at,
        record_loaded_at
    from listed

)

select
    ---------- ids
    identity_id::Int64 as identity_id,

    ---------- text
    kind::LowCardinality(String) as kind,
    address::String as address,

    ---------- timestamps
    told_at::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as told_at,
    listed_at::SimpleAggregateFunction(min, DateTime64(3, 'UTC')) as listed_at,
    removed_at::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as removed_at,
    event_loaded_at::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as event_loaded_at,
    record_loaded_at::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as record_loaded_at,
    {{ stamp() }}::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as recorded_at
from told
