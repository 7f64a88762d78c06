{{
    config(
        materialized='view',
        query_settings={'do_not_merge_across_partitions_select_final': 1}
    )
}}

{#- with the setting, whoever asks for some months reads these alone (profiles.yml) -#}

with

followed as (

    select * from {{ newest(ref('int_messages__followed')) }}

),

converted as (

    select
        message_hash as converted_hash,
        orders_count,
        revenue,
        converted_order_id,
        converted_at,
        rebuilt_at as converted_rebuilt_at
    from {{ newest(ref('int_messages__converted')) }}

),

merged as (

    -- a contact that has merged into another since is found by the address
    select identity_id as merged_identity_id, contact_id as merged_contact_id
    from {{ ref('int_contacts__identified') }}
    where kind = 'message' and contact_id != message_contact_id

)

-- reads the same whatever join_use_nulls the client has: what is missing is null or the type's zero

select
    ---------- ids
    followed.message_id as message_id,
    if(
        coalesce(merged.merged_contact_id, 0) != 0, assumeNotNull(merged.merged_contact_id), followed.ledger_contact_id
    )::Int64 as contact_id,
    followed.provider_message_id as provider_message_id,
    converted.converted_order_id as converted_order_id,

    ---------- text
    followed.kind as kind,
    followed.name as name,
    followed.version as version,
    followed.occurrence as occurrence,
    followed.email as email,
    followed.mailbox_provider as mailbox_provider,
    followed.sending_domain as sending_domain,
    followed.channel as channel,
    followed.provider as provider,
    followed.category as category,
    followed.template as template,
    followed.template_version as template_version,
    followed.segment as segment,
    followed.segment_version as segment_version,
    followed.experiment as experiment,
    followed.variant as variant,
    followed.subject as subject,
    followed.status as status,
    followed.reason as reason,
    followed.bounce_class as bounce_class,

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
    followed.last_opened_at as last_opened_at,
    followed.first_clicked_at as first_clicked_at,
    followed.last_clicked_at as last_clicked_at,
    followed.bounced_at as bounced_at,
    followed.complained_at as complained_at,
    followed.unsubscribed_at as unsubscribed_at,
    converted.converted_at as converted_at,
    greatest(
        followed.rebuilt_at, coalesce(converted.converted_rebuilt_at, toDateTime64(0, 3, 'UTC'))
    )::DateTime64(3, 'UTC') as rebuilt_at
from followed
left any join converted on converted.converted_hash = followed.message_hash
left any join merged on merged.merged_identity_id = followed.identity_id
