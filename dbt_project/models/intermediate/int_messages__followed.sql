{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'rebuilt_at'),
        partition_by='toYYYYMM(created_at)',
        order_by=['name', 'occurrence', 'message_hash'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0, 'optimize_on_insert': 0},
        post_hook="{{ note_taken() }}"
    )
}}

{%- set days = days_to_take() %}
{%- set life = "toIntervalDay(" ~ var('message_life_days') ~ ")" %}
{%- set texts = [
    'kind', 'name', 'version', 'occurrence', 'channel', 'provider', 'category', 'template', 'template_version', 'segment',
    'segment_version', 'experiment', 'variant', 'subject', 'status', 'reason', 'sending_domain',
] %}
{#- all that happens to mail: events of other types are not read, though they may name a message -#}
{%- set happens = "type in ('sent', 'delivered', 'opened', 'clicked', 'bounced', 'complained', 'unsubscribed')" %}

with

changes as (

    select * from {{ ref('stg_ledger__messages') }}
    {% if is_incremental() -%}
    where loaded_at > {{ newest_load('ledger_loaded_at', 'rebuilt_at') }}
    {%- endif %}

),

{% if is_incremental() -%}
(

    -- what the ledger or a provider said something about: a list, since each name of a CTE is a copy of it that is run again
    select groupUniqArray(message_hash)
    from (
        select message_hash from changes

        union all

        -- too old a message is not looked up: an event cannot be part of its life
        select message_hash
        from {{ this }}
        where
            created_at > (
                select greatest(min(occurred_at), toDateTime64('1971-01-01 00:00:00', 3, 'UTC')) - {{ life }}
                from {{ ref('int_events__recorded') }}
                where {{ is_recorded_on(days) }} and {{ happens }} and message_hash != 0
            )
            and message_hash in (
                select message_hash from {{ ref('int_events__recorded') }}
                where {{ is_recorded_on(days) }} and {{ happens }} and message_hash != 0
            )
    )

) as touched,

(

    -- nothing happens to a message before there is one: months before are not read
    select least(
        coalesce((select minOrNull(changed_at) from changes), toDateTime64('2299-12-31 00:00:00', 3, 'UTC')),
        coalesce(
            (select minOrNull(created_at) from {{ this }} where message_hash in (select arrayJoin(touched))),
            toDateTime64('2299-12-31 00:00:00', 3, 'UTC')
        )
    )

) as born_from,

{% endif -%}
versions as (

    select
        message_hash,
        message_id,
        contact_id as ledger_contact_id,
        provider_message_id,
        email,
        {%- for text in texts %}
        {{ text }}::LowCardinality(String) as {{ text }},
        {%- endfor %}
        sequence,
        changed_at as created_at,
        if(status in ('sent', 'queued'), changed_at, null) as accepted_at,
        loaded_at as ledger_loaded_at,
        toDateTime64(0, 3, 'UTC') as rebuilt_at,
        null::Nullable(DateTime64(3, 'UTC')) as sent_at,
        null::Nullable(DateTime64(3, 'UTC')) as first_opened_at,
        null::Nullable(DateTime64(3, 'UTC')) as first_clicked_at,
        toDateTime64(0, 3, 'UTC') as sent_changed_at,
        toDateTime64(0, 3, 'UTC') as touch_changed_at,
        true as is_told
    from changes
    {% if is_incremental() %}
    union all

    select
        message_hash,
        message_id,
        ledger_contact_id,
        provider_message_id,
        email,
        {%- for text in texts %}
        {{ text }},
        {%- endfor %}
        sequence,
        created_at,
        accepted_at,
        ledger_loaded_at,
        rebuilt_at,
        sent_at,
        first_opened_at,
        first_clicked_at,
        sent_changed_at,
        touch_changed_at,
        false as is_told
    from {{ this }}
    where created_at >= born_from and message_hash in (select arrayJoin(touched))
    {% endif %}

),

lives as (

    select
        message_hash as life_hash,
        max(versions.sequence) as last_sequence,
        min(versions.created_at) as created_at,
        min(versions.accepted_at) as accepted_at,
        max(versions.ledger_loaded_at) as ledger_loaded_at,
        argMax(tuple(versions.sent_at, versions.sent_changed_at), versions.rebuilt_at) as last_sent
        {%- if is_incremental() %},
        argMax(tuple({{ what_touches('versions') }}, versions.touch_changed_at), versions.rebuilt_at) as last_touch,
        max(versions.is_told) as is_told
        {%- endif %}
    from versions
    group by message_hash

),

-- what the ledger said last
ledger as (

    select
        message_hash,
        message_id,
        ledger_contact_id,
        provider_message_id,
        email,
        {%- for text in texts %}
        {{ text }},
        {%- endfor %}
        sequence
    from versions
    {% if is_incremental() -%}
    order by sequence desc
    {%- else -%}
    -- all of them in order would cost more than to look the last one up
    where (message_hash, sequence) in (select life_hash, last_sequence from lives)
    {%- endif %}
    limit 1 by message_hash

),

feedback as (

    select
        message_hash,
        minIfOrNull(occurred_at, type in ('sent', 'delivered')) as confirmed_at,
        minIfOrNull(occurred_at, type = 'delivered') as delivered_at,
        minIfOrNull(occurred_at, type = 'opened' and not is_machine) as first_opened_at,
        maxIfOrNull(occurred_at, type = 'opened' and not is_machine) as last_opened_at,
        countIf(type = 'opened' and not is_machine) as opens_count,
        countIf(type = 'opened' and is_machine) as machine_opens_count,
        minIfOrNull(occurred_at, type = 'clicked' and not is_machine) as first_clicked_at,
        maxIfOrNull(occurred_at, type = 'clicked' and not is_machine) as last_clicked_at,
        countIf(type = 'clicked' and not is_machine) as clicks_count,
        countIf(type = 'clicked' and is_machine) as machine_clicks_count,
        minIfOrNull(occurred_at, type = 'bounced') as bounced_at,
        multiIf(
            countIf(type = 'bounced' and bounce_class = 'hard') > 0, 'hard',
            countIf(type = 'bounced') > 0, 'soft',
            ''
        ) as bounce_class,
        minIfOrNull(occurred_at, type = 'complained') as complained_at,
        minIfOrNull(occurred_at, type = 'unsubscribed' and not is_machine) as unsubscribed_at
        {%- if is_incremental() %},
        max({{ is_of_days('loaded_on', days) }}) as is_news
        {%- endif %}
    from {{ ref('int_events__recorded') }} as events
    inner join (select life_hash as born_hash, created_at as born_at from lives) as births
        on births.born_hash = events.message_hash
    where
        message_hash != 0
        and {{ happens }}
        and events.occurred_at < births.born_at + {{ life }}
        {% if is_incremental() -%}
        and message_hash in (select arrayJoin(touched))
        and {{ loaded_after('loaded_on', 'born_from') }}
        {%- endif %}
    group by message_hash

),

messages as (

    select
        ledger.message_hash as message_hash,
        ledger.* except (message_hash),
        lives.* except (life_hash, last_sequence{{ ', is_told' if is_incremental() }}),
        feedback.* except (message_hash{{ ', is_news' if is_incremental() }}),
        coalesce(lives.accepted_at, feedback.confirmed_at) as sent_at
    from ledger
    inner join lives on lives.life_hash = ledger.message_hash
    left join feedback on feedback.message_hash = ledger.message_hash
    {%- if is_incremental() %}
    -- an event that came after the message's life touches nothing
    where lives.is_told or feedback.is_news
    {%- endif %}

)

select
    ---------- ids
    messages.message_hash as message_hash,
    messages.message_id as message_id,
    messages.ledger_contact_id as ledger_contact_id,
    {{ identity_of_message('messages.ledger_contact_id', 'messages.email') }} as identity_id,
    messages.provider_message_id as provider_message_id,

    ---------- text
    {%- for text in texts %}
    messages.{{ text }} as {{ text }},
    {%- endfor %}
    messages.email as email,
    {{ mailbox_provider_of('messages.email') }}::LowCardinality(String) as mailbox_provider,
    coalesce(messages.bounce_class, '')::LowCardinality(String) as bounce_class,

    ---------- numerics
    messages.sequence as sequence,
    coalesce(messages.opens_count, 0)::UInt32 as opens_count,
    coalesce(messages.machine_opens_count, 0)::UInt32 as machine_opens_count,
    coalesce(messages.clicks_count, 0)::UInt32 as clicks_count,
    coalesce(messages.machine_clicks_count, 0)::UInt32 as machine_clicks_count,

    ---------- timestamps
    messages.created_at as created_at,
    messages.accepted_at as accepted_at,
    messages.confirmed_at as confirmed_at,
    messages.sent_at as sent_at,
    messages.delivered_at as delivered_at,
    messages.first_opened_at as first_opened_at,
    messages.last_opened_at as last_opened_at,
    messages.first_clicked_at as first_clicked_at,
    messages.last_clicked_at as last_clicked_at,
    messages.bounced_at as bounced_at,
    messages.complained_at as complained_at,
    messages.unsubscribed_at as unsubscribed_at,
    messages.ledger_loaded_at as ledger_loaded_at,
    {{ stamp() }} as rebuilt_at,
    -- what orders count for may change with it, and with nothing else of a message
    if(messages.sent_at is distinct from messages.last_sent.1, rebuilt_at, messages.last_sent.2) as sent_changed_at,
    {% if is_incremental() -%}
    if({{ what_touches('messages') }} != messages.last_touch.1, rebuilt_at, messages.last_touch.2) as touch_changed_at
    {%- else -%}
    rebuilt_at as touch_changed_at
    {%- endif %}
from messages
