{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['kind', 'campaign', 'occurrence', 'variant', 'chosen_hour_at', 'mailbox_provider'],
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

counted as (

    select
        toYYYYMM(messages.created_at) as month,
        kind,
        campaign,
        occurrence,
        variant,
        channel,
        provider,
        sending_domain,
        mailbox_provider,
        is_sent,
        toStartOfHour(coalesce(messages.sent_at, messages.created_at)) as chosen_hour_at,
{{ campaign_sums_of_messages() }}
    from messages
    group by month, kind, campaign, occurrence, variant, channel, provider, sending_domain, mailbox_provider, is_sent, chosen_hour_at

)

select * from counted

{%- endif %}
