{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        engine=engine('ReplacingMergeTree', 'recorded_at'),
        order_by='message_hash',
        query_settings={'optimize_on_insert': 0}
    )
}}

with

loaded as (

    select
        message_hash,
        contact_id,
        email,
        changed_at as created_at,
        loaded_at as first_loaded_at,
        loaded_at as last_loaded_at
    from {{ source('raw', 'messages') }}
    {% if is_incremental() -%}
    where loaded_at > {{ newest_load('last_loaded_at', 'recorded_at') }}
    {%- endif %}

),

versions as (

    select * from loaded
    {% if is_incremental() %}
    union all

    select message_hash, contact_id, email, created_at, first_loaded_at, last_loaded_at
    -- rows that newer ones have outdone do no harm: what they know, the newer ones know, too
    from {{ this }}
    where message_hash in (select message_hash from loaded)
    {% endif %}

),

messages as (

    -- the ledger never changes whom a message is for
    select
        message_hash,
        max(versions.contact_id) as contact_id,
        {{ normalised_email('max(versions.email)') }} as email,
        min(versions.created_at) as created_at,
        min(versions.first_loaded_at) as first_loaded_at,
        max(versions.last_loaded_at) as last_loaded_at
    from versions
    group by message_hash

)

select
    ---------- ids
    message_hash,
    contact_id,
    {{ identity_of_message('contact_id', 'email') }} as identity_id,

    ---------- text
    email,

    ---------- timestamps
    created_at,
    first_loaded_at,
    last_loaded_at,
    {{ stamp() }} as recorded_at
from messages
