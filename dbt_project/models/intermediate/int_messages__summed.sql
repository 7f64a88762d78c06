{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['identity_id', 'ledger_contact_id'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        post_hook="{{ drop_folded_months() }}"
    )
}}

{#- months are added up in month 0 when nothing can happen to their messages any more: the life of a message, and a month -#}
{%- set due = due_month_sums(
    ref('int_messages__followed'),
    moment='created_at',
    is_new='rebuilt_at > (select max(rebuilt_at) from ' ~ this ~ ')',
    months='[toYYYYMM(created_at)]',
    open_days=var('message_life_days') + 62
) %}

{% if due.read == 'false' and due.keep == 'false' -%}
{{ nothing_due() }}

{%- else -%}
with

messages as (

    select
        {{ sum_month('created_at', due) }} as month,
        identity_id,
        ledger_contact_id,
        sent_at,
        {{ is_opened('messages') }} as is_opened,
        clicks_count > 0 as is_clicked,
        last_opened_at,
        last_clicked_at,
        rebuilt_at
    from {{ newest(ref('int_messages__followed'), 'messages') }}
    where {{ due.read }}

),

added as (

    select
        month,
        identity_id,
        ledger_contact_id,
        countIf(messages.sent_at is not null) as sent_count,
        countIf(messages.is_opened) as opened_count,
        countIf(messages.is_clicked) as clicked_count,
        min(messages.sent_at) as first_sent_at,
        max(messages.sent_at) as last_sent_at,
        max(messages.last_opened_at) as last_opened_at,
        max(messages.last_clicked_at) as last_clicked_at,
        max(messages.rebuilt_at) as rebuilt_at
    from messages
    group by month, identity_id, ledger_contact_id
    {% if is_incremental() %}
    union all

    select
        0::UInt32 as month,
        identity_id,
        ledger_contact_id,
        sent_count,
        opened_count,
        clicked_count,
        first_sent_at,
        last_sent_at,
        last_opened_at,
        last_clicked_at,
        rebuilt_at
    from {{ this }} as kept
    where {{ due.keep }}
    {% endif %}

)

select
    ---------- ids
    month,
    identity_id,
    ledger_contact_id,

    ---------- numerics
    sum(added.sent_count) as sent_count,
    sum(added.opened_count) as opened_count,
    sum(added.clicked_count) as clicked_count,
    if(month = 0, {{ due.fold }}, 0)::UInt32 as folded_through,

    ---------- timestamps
    min(added.first_sent_at) as first_sent_at,
    max(added.last_sent_at) as last_sent_at,
    max(added.last_opened_at) as last_opened_at,
    max(added.last_clicked_at) as last_clicked_at,
    max(added.rebuilt_at) as rebuilt_at
from added
group by month, identity_id, ledger_contact_id

{%- endif %}
