{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('AggregatingMergeTree'),
        order_by='identity_id',
        query_settings={'optimize_on_insert': 0},
        post_hook="{{ note_taken() }}"
    )
}}

{%- set days = days_to_take() %}

with

events as (

    -- by hashes first: the texts are read once an identity
    select
        {{ identity_of('events.source', 'events.external_id', 'events.email') }} as identity_id,
        any(events.source) as source,
        any(events.external_id) as external_id,
        any(events.email) as email,
        min(events.occurred_at) as first_seen_at,
        max(events.occurred_at) as last_seen_at,
        -- an address alone may come from several sources
        groupUniqArray(events.source) as sources
    from {{ ref('int_events__recorded') }} as events
    where
        events.email != ''
        {% if days is not none -%}
        and {{ is_recorded_on(days) }}
        {%- endif %}
    group by identity_id

),

consents as (

    select
        {{ identity_of('consents.source', 'consents.external_id', 'consents.email') }} as identity_id,
        any(consents.source) as source,
        any(consents.external_id) as external_id,
        any(consents.email) as email,
        min(consents.occurred_at) as first_seen_at,
        max(consents.occurred_at) as last_seen_at,
        groupUniqArray(consents.source) as sources,
        max(consents.loaded_at) as consent_loaded_at
    from {{ ref('stg_consents__changes') }} as consents
    where
        consents.email != ''
        {% if is_incremental() -%}
        and consents.loaded_at > {{ newest_load('consent_loaded_at', 'recorded_at') }}
        {%- endif %}
    group by identity_id

),

messages as (

    -- several rows of one message say the same, but for when it was loaded
    select
        identity_id,
        any(messages.contact_id) as message_contact_id,
        any(messages.email) as email,
        min(messages.created_at) as first_seen_at,
        max(messages.created_at) as last_seen_at,
        max(messages.last_loaded_at) as message_loaded_at
    from {{ ref('int_messages__addressed') }} as messages
    {% if is_incremental() -%}
    where messages.last_loaded_at > {{ newest_load('message_loaded_at', 'recorded_at') }}
    {%- endif %}
    group by identity_id

),

hints as (

    select
        identity_id,
        if(external_id = '', 0, {{ identity_of('source', 'external_id', "''") }}) as record_identity_id,
        0::Int64 as message_contact_id,
        external_id,
        email,
        sources::Array(String) as sources,
        first_seen_at,
        last_seen_at,
        toDateTime64(0, 3, 'UTC') as consent_loaded_at,
        toDateTime64(0, 3, 'UTC') as message_loaded_at
    from events

    union all

    select
        identity_id,
        if(external_id = '', 0, {{ identity_of('source', 'external_id', "''") }}) as record_identity_id,
        0::Int64 as message_contact_id,
        external_id,
        email,
        sources::Array(String) as sources,
        first_seen_at,
        last_seen_at,
        consent_loaded_at,
        toDateTime64(0, 3, 'UTC') as message_loaded_at
    from consents

    union all

    select
        identity_id,
        0 as record_identity_id,
        message_contact_id,
        '' as external_id,
        email,
        []::Array(String) as sources,
        first_seen_at,
        last_seen_at,
        toDateTime64(0, 3, 'UTC') as consent_loaded_at,
        message_loaded_at
    from messages

)

-- what two of them said alike stands in two rows, which the engine merges

select
    ---------- ids
    identity_id::Int64 as identity_id,
    record_identity_id::SimpleAggregateFunction(any, Int64) as record_identity_id,
    {{ identity_of("''", "''", 'email') }}::SimpleAggregateFunction(any, Int64) as email_identity_id,
    message_contact_id::SimpleAggregateFunction(any, Int64) as message_contact_id,

    ---------- text
    external_id::SimpleAggregateFunction(any, String) as external_id,
    email::SimpleAggregateFunction(any, String) as email,
    sources::SimpleAggregateFunction(groupUniqArrayArray, Array(String)) as sources,

    ---------- timestamps
    first_seen_at::SimpleAggregateFunction(min, DateTime64(3, 'UTC')) as first_seen_at,
    last_seen_at::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as last_seen_at,
    consent_loaded_at::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as consent_loaded_at,
    message_loaded_at::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as message_loaded_at,
    {{ stamp() }}::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as recorded_at
from hints
