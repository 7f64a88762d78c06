{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['kind', 'campaign', 'occurrence', 'variant', 'url'],
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

    select message_hash, kind, campaign, occurrence, variant, created_at
    from (
        {{ messages_of(months) }}
    )
    where clicks_count > 0 or machine_clicks_count > 0

),

clicks as (

    select
        messages.message_hash as message_hash,
        messages.kind as kind,
        messages.campaign as campaign,
        messages.occurrence as occurrence,
        messages.variant as variant,
        messages.created_at as created_at,
        {{ link_of('events.url') }} as link,
        events.is_machine as is_machine,
        events.occurred_at as occurred_at,
        toUInt32OrNull(events.properties.position::Nullable(String)) as position
    from {{ ref('int_events__recorded') }} as events
    inner join messages on messages.message_hash = events.message_hash
    where events.type = 'clicked' and {{ is_of_message_life(months) }}

)

select
    ---------- ids
    toYYYYMM(created_at) as month,
    kind,
    campaign,
    occurrence,
    variant,
    link as url,

    ---------- numerics
    min(clicks.position) as position,
    uniqExactIf(message_hash, not is_machine) as clickers_count,
    countIf(not is_machine) as clicks_count,
    countIf(is_machine) as machine_clicks_count,

    ---------- timestamps
    minIfOrNull(occurred_at, not is_machine) as first_clicked_at,
    maxIfOrNull(occurred_at, not is_machine) as last_clicked_at
from clicks
group by month, kind, campaign, occurrence, variant, link

{%- endif %}
