{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['kind', 'campaign', 'occurrence', 'variant', 'hour_at'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        post_hook="{{ note_messages_taken(ref('int_messages__segmented')) }}"
    )
}}

{%- set months = touched_months() %}
{%- set moments = {
    'sent_count': 'sent_at',
    'delivered_count': 'delivered_at',
    'opened_count': 'opened_at',
    'clicked_count': 'first_clicked_at',
    'bounced_count': 'bounced_at',
    'complained_count': 'complained_at',
    'unsubscribed_count': 'unsubscribed_at',
    'converted_count': 'converted_at',
} %}

{% if is_incremental() and not months -%}
{{ nothing_due() }}

{%- else -%}
with

messages as (

    {{ messages_of(months) }}

),

moments as (

    select
        toYYYYMM(messages.created_at) as month,
        kind,
        campaign,
        occurrence,
        variant,
        -- whoever clicks has read it, though images were off; null if neither
        least(coalesce(first_opened_at, first_clicked_at), coalesce(first_clicked_at, first_opened_at)) as opened_at,
        arrayJoin(
            arrayFilter(
                moment -> moment.2 is not null,
                [
                    {%- for column, moment in moments.items() %}
                    tuple({{ loop.index }}, {{ moment }}){{ ',' if not loop.last }}
                    {%- endfor %}
                ]
            )
        ) as moment
    from messages

)

select
    ---------- ids
    month,
    kind,
    campaign,
    occurrence,
    variant,
    toStartOfHour(assumeNotNull(moment.2)) as hour_at,

    ---------- numerics
    {%- for column in moments %}
    countIf(moment.1 = {{ loop.index }}) as {{ column }}{{ ',' if not loop.last }}
    {%- endfor %}
from moments
group by month, kind, campaign, occurrence, variant, hour_at

{%- endif %}
