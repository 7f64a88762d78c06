{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'rebuilt_at'),
        partition_by='toYYYYMM(created_at)',
        order_by=['campaign', 'occurrence', 'message_hash'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        post_hook="{{ note_messages_taken(this) }}"
    )
}}

{%- set months = rebuilt_months() %}

with

{% if is_incremental() -%}
touched as (

    select message_hash from {{ ref('int_messages__followed') }}
    where rebuilt_at > {{ last_taken() }}

    union distinct

    select message_hash from {{ ref('int_messages__converted') }}
    where rebuilt_at > {{ last_taken() }}

),

{% endif -%}
followed as (

    select
        *,
        coalesce(sent_at, created_at) as chosen_at
    from {{ ref('int_messages__followed') }} final
    {% if is_incremental() -%}
    where {{ is_of_months(months) }} and message_hash in (select message_hash from touched)
    {%- endif %}

),

converted as (

    select
        message_hash as converted_hash,
        orders_count,
        revenue,
        converted_at,
        rebuilt_at as converted_rebuilt_at
    from {{ ref('int_messages__converted') }} final
    {% if is_incremental() -%}
    where message_hash in (select message_hash from touched)
    {%- endif %}

),

stays as (

    -- by the contact that the ledger has: whom segments knew on the day, whoever it has merged into since
    select
        contact_id as member_id,
        groupArray(
            tuple(segment::String, valid_from, coalesce(valid_to, toDateTime64('2299-12-31 00:00:00', 3, 'UTC')))
        ) as stays
    from {{ ref('segment_memberships') }}
    where contact_id in (select ledger_contact_id from followed)
    group by contact_id

)

select
    ---------- ids
    followed.message_hash as message_hash,

    ---------- text
    followed.kind as kind,
    followed.name as campaign,
    -- journeys and triggers run all the time: a row for each message would be no row of a report
    if(followed.kind = 'campaign', followed.occurrence, '')::LowCardinality(String) as occurrence,
    followed.variant as variant,
    followed.channel as channel,
    followed.provider as provider,
    followed.sending_domain as sending_domain,
    followed.mailbox_provider as mailbox_provider,
    followed.status as status,
    followed.reason as reason,
    followed.bounce_class as bounce_class,
    followed.segment as audience_segment,
    arraySort(
        arrayDistinct(
            arrayFilter(
                member_of -> member_of != '',
                arrayConcat(
                    [followed.segment::String],
                    arrayMap(
                        stay -> stay.1,
                        arrayFilter(stay -> stay.2 <= followed.chosen_at and stay.3 > followed.chosen_at, stays.stays)
                    )
                )
            )
        )
    )::Array(LowCardinality(String)) as segments,

    ---------- numerics
    followed.opens_count as opens_count,
    followed.machine_opens_count as machine_opens_count,
    followed.clicks_count as clicks_count,
    followed.machine_clicks_count as machine_clicks_count,
    coalesce(converted.orders_count, 0)::UInt32 as orders_count,
    coalesce(converted.revenue, 0)::Decimal(18, 2) as revenue,

    ---------- booleans
    (followed.sent_at is not null)::Bool as is_sent,
    ({{ is_opened('followed') }})::Bool as is_opened,
    (followed.clicks_count > 0)::Bool as is_clicked,

    ---------- timestamps
    followed.created_at as created_at,
    followed.sent_at as sent_at,
    followed.delivered_at as delivered_at,
    followed.first_opened_at as first_opened_at,
    followed.first_clicked_at as first_clicked_at,
    followed.bounced_at as bounced_at,
    followed.complained_at as complained_at,
    followed.unsubscribed_at as unsubscribed_at,
    converted.converted_at as converted_at,
    greatest(
        followed.rebuilt_at, coalesce(converted.converted_rebuilt_at, toDateTime64(0, 3, 'UTC'))
    )::DateTime64(3, 'UTC') as rebuilt_at
from followed
left any join converted on converted.converted_hash = followed.message_hash
left any join stays on stays.member_id = followed.ledger_contact_id
