{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['day', 'campaign', 'mailbox_provider', 'outcome', 'reason'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        post_hook="{{ note_messages_taken(ref('int_messages__segmented')) }}"
    )
}}

{%- set months = touched_months() %}

{% if is_incremental() and not months -%}
{{ nothing_due() }}

{%- else -%}
with

messages as (

    {{ messages_of(months) }}

),

failures as (

    select
        messages.message_hash as message_hash,
        toYYYYMM(messages.created_at) as month,
        toDate(events.occurred_at, 'UTC') as day,
        kind,
        campaign,
        provider,
        sending_domain,
        mailbox_provider,
        'bounced' as outcome,
        if(events.bounce_class = 'hard', 'hard', 'soft') as failure_class,
        coalesce(events.properties.reject_reason::Nullable(String), '') as failure_reason
    from {{ ref('int_events__recorded') }} as events
    inner join messages on messages.message_hash = events.message_hash
    where
        events.type = 'bounced'
        and messages.bounced_at is not null
        and {{ is_of_message_life(months) }}

    union all

    select
        message_hash,
        toYYYYMM(created_at) as month,
        toDate(messages.created_at, 'UTC') as day,
        kind,
        campaign,
        provider,
        sending_domain,
        mailbox_provider,
        status as outcome,
        '' as failure_class,
        reason as failure_reason
    from messages
    where status in ('rejected', 'invalid', 'failed')

)

select
    ---------- ids
    month,
    day,
    kind,
    campaign,
    provider,
    sending_domain,
    mailbox_provider,

    ---------- text
    outcome::LowCardinality(String) as outcome,
    failure_class::LowCardinality(String) as bounce_class,
    failure_reason::LowCardinality(String) as reason,

    ---------- numerics
    uniqExact(message_hash) as messages_count
from failures
group by month, day, kind, campaign, provider, sending_domain, mailbox_provider, outcome, failure_class, failure_reason

{%- endif %}
