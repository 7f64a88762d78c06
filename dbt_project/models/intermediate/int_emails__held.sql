{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'version_rank'),
        order_by=['identity_id', 'updated_at'],
        query_settings={'optimize_on_insert': 0}
    )
}}

with

loaded as (

    select
        {{ identity_of('source', 'external_id', "''") }} as identity_id,
        if(is_deleted, '', email) as email,
        updated_at,
        loaded_at
    from {{ ref('stg_crm__contacts') }}
    {% if is_incremental() -%}
    where loaded_at > {{ newest_load('first_loaded_at', 'recorded_at') }}
    {%- endif %}

)

select
    ---------- ids
    identity_id::Int64 as identity_id,

    ---------- text
    -- a version that was loaded twice counts as it was loaded first
    argMin(loaded.email, tuple(loaded.loaded_at, loaded.email))::String as email,

    ---------- numerics
    (18446744073709551615 - toUnixTimestamp64Milli(min(loaded.loaded_at)))::UInt64 as version_rank,

    ---------- timestamps
    updated_at,
    min(loaded.loaded_at)::DateTime64(3, 'UTC') as first_loaded_at,
    {{ stamp() }} as recorded_at
from loaded
group by identity_id, updated_at
