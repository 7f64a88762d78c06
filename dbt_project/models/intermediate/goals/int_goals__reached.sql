{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['is_month', 'kind', 'campaign', 'occurrence', 'message_id'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

{%- set longest = longest_goal_days() %}
{%- set months = due_goal_months(longest) %}

{% if is_incremental() and not months -%}
{{ nothing_due() }}

{%- else -%}
with

goals as (

    select
        kind as goal_kind,
        name as goal_name,
        goal_event,
        goal_within_seconds,
        {{ goal_conditions('goal_where') }} as conditions
    from {{ ref('stg_ledger__campaigns') }}
    where goal_event != '' and {{ are_goal_conditions_understood(goal_conditions('goal_where')) }}

),

happened as (

    select
        *,
        toYYYYMM(occurred_at) as month
    from {{ ref('int_goals__happened') }}
    where {{ near_months('occurred_at', months, before=0, after=longest) }}

),

sent as (

    select
        message_id,
        contact_id,
        kind,
        name,
        occurrence,
        variant,
        assumeNotNull(messages.sent_at) as sent_at
    from {{ ref('int_messages__owned') }} as messages
    where
        messages.sent_at is not null
        and {{ near_months('assumeNotNull(messages.sent_at)', months, before=0, after=longest) }}

),

watched as (

    -- a message is looked at in every month in which its goal may be reached
    select
        sent.*,
        goals.goal_event as goal_event,
        goals.conditions as conditions,
        sent.sent_at + toIntervalSecond(goals.goal_within_seconds) as goal_ends_at,
        arrayJoin({{ months_between('sent.sent_at', 'goal_ends_at') }}) as watched_month
    from sent
    inner join goals on goals.goal_kind = sent.kind and goals.goal_name = sent.name

),

candidates as (

    select *
    from watched
    where (contact_id, goal_event, watched_month) in (select contact_id, event_type, month from happened)

),

reached as (

    -- of a campaign's messages to one person, an event counts for the last before it
    select
        candidates.kind as kind,
        candidates.name as campaign,
        happened.event_key as event_key,
        any(happened.occurred_at) as occurred_at,
        any(happened.revenue) as revenue,
        argMax(
            tuple(
                candidates.message_id,
                candidates.contact_id,
                candidates.occurrence,
                candidates.variant,
                candidates.goal_event,
                candidates.sent_at
            ),
            tuple(candidates.sent_at, candidates.message_id)
        ) as message
    from candidates
    inner join happened
        on
            happened.contact_id = candidates.contact_id
            and happened.event_type = candidates.goal_event
            and happened.month = candidates.watched_month
    where
        happened.occurred_at >= candidates.sent_at
        and happened.occurred_at < candidates.goal_ends_at
        and {{ meets_goal_conditions('candidates.conditions', 'happened.properties_text') }}
    group by kind, campaign, event_key

),

months as (

    {% if months is none -%}
    select distinct toYYYYMM(sent_at) as month from sent

    union distinct

    select distinct month from happened
    {%- else -%}
    select arrayJoin([{{ months | join(', ') }}]::Array(UInt32)) as month
    {%- endif %}

),

hashes as (

    {{ goal_event_hashes(months) }}

)

select
    toYYYYMM(message.6)::UInt32 as month,
    false::Bool as is_month,
    message.1 as message_id,
    any(message.2) as contact_id,
    kind::LowCardinality(String) as kind,
    campaign::LowCardinality(String) as campaign,
    any(message.3)::String as occurrence,
    any(message.4)::LowCardinality(String) as variant,
    any(message.5)::LowCardinality(String) as goal_event,
    argMin(event_key, tuple(occurred_at, event_key)) as first_event_key,
    count()::UInt32 as events_count,
    sum(revenue)::Decimal(18, 2) as revenue,
    any(message.6) as sent_at,
    min(occurred_at) as reached_at,
    0::UInt64 as events_hash,
    0::UInt64 as goals_hash,
    toDateTime64(0, 3, 'UTC') as messages_seen_at
from reached
where {{ in_months('message.6', months) }}
group by month, kind, campaign, message_id

union all

select
    months.month::UInt32 as month,
    true::Bool as is_month,
    '' as message_id,
    0::Int64 as contact_id,
    ''::LowCardinality(String) as kind,
    ''::LowCardinality(String) as campaign,
    '' as occurrence,
    ''::LowCardinality(String) as variant,
    ''::LowCardinality(String) as goal_event,
    '' as first_event_key,
    0::UInt32 as events_count,
    0::Decimal(18, 2) as revenue,
    toDateTime64(0, 3, 'UTC') as sent_at,
    toDateTime64(0, 3, 'UTC') as reached_at,
    coalesce(hashes.events_hash, 0)::UInt64 as events_hash,
    {{ goals_hash() }}::UInt64 as goals_hash,
    {{ messages_seen_at() }} as messages_seen_at
from months
left join hashes on hashes.month = months.month

{%- endif %}
