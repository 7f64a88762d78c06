{{
    config(
        order_by='contact_id'
    )
}}

with

contacts as (

    select * from {{ ref('contacts') }}

),

rfm as (

    select * from {{ ref('rfm') }}

),

engagement as (

    select * from {{ ref('engagement') }}

),

messages as (

    {{ month_sums_of(ref('int_messages__summed')) }}

),

addressees as (

    -- all others are who the ledger says
    select identity_id as addressee_id, contact_id as addressee_contact_id
    from {{ ref('int_contacts__identified') }}
    where kind = 'message' and contact_id != message_contact_id

),

stopped as (

    select * from {{ ref('int_emails__stopped') }}

),

addressed as (

    select
        contact_id as addressed_contact_id,
        phone as told_phone,
        push_token,
        has_unusable_phone as has_unusable_told_phone
    from {{ ref('int_contacts__addressed') }}

),

silenced as (

    select contact_id as silenced_contact_id from {{ ref('int_contacts__silenced') }}

),

consents as (

    select identity_id as consent_identity_id, channel, last_change
    from {{ ref('int_consents__latest') }}
    where channel in ('email', 'sms', 'push') and purpose = 'marketing'

),

parts as (

    -- people whom a merge made one are looked at apart first
    select
        identities.contact_id as contact_id,
        consents.channel as channel,
        max(consents.last_change) as last_change
    from {{ ref('int_contacts__identified') }} as identities
    inner join consents on consents.consent_identity_id = identities.identity_id
    group by contact_id, identities.named_contact_id, channel

),

merged as (

    select contact_id as merged_contact_id, merged_at from {{ ref('int_contacts__merged') }}

),

permissions as (

    -- a pause that is over is consent again; until something is said after a merge the strictest counts
    select
        parts.contact_id as permitting_contact_id,
        {%- for channel in ['email', 'sms', 'push'] %}
        countIf(parts.channel = '{{ channel }}') > 0 as has_{{ channel }}_change,
        if(
            maxIf(parts.last_change, parts.channel = '{{ channel }}').1 > coalesce(any(merged.merged_at), toDateTime64(0, 3, 'UTC')),
            maxIf(parts.last_change, parts.channel = '{{ channel }}').2,
            maxIf(parts.last_change.2, parts.channel = '{{ channel }}')
        ) <= {{ now() }} as is_{{ channel }}_granted{{ ',' if not loop.last }}
        {%- endfor %}
    from parts
    left any join merged on merged.merged_contact_id = parts.contact_id
    group by permitting_contact_id

),

mail as (

    select
        coalesce(addressees.addressee_contact_id, messages.ledger_contact_id) as contact_id,
        sum(messages.sent_count) as messages_sent_count,
        sum(messages.opened_count) as messages_opened_count,
        sum(messages.clicked_count) as messages_clicked_count,
        min(messages.first_sent_at) as first_message_at,
        max(messages.last_sent_at) as last_message_at,
        max(messages.last_opened_at) as last_opened_at,
        max(messages.last_clicked_at) as last_clicked_at
    from messages
    left any join addressees on addressees.addressee_id = messages.identity_id
    group by contact_id

)

select
    ---------- ids
    contacts.contact_id as contact_id,

    ---------- text
    contacts.email as email,
    contacts.first_name as first_name,
    contacts.last_name as last_name,
    contacts.country as country,
    contacts.city as city,
    contacts.timezone as timezone,
    contacts.locale as locale,
    if(
        addressed.told_phone is null and {{ is_e164('contacts.phone') }}, contacts.phone, addressed.told_phone
    )::Nullable(String) as phone,
    addressed.push_token::Nullable(String) as push_token,
    coalesce(rfm.rfm_segment, '')::LowCardinality(String) as rfm_segment,
    coalesce(engagement.engagement_band, 'never')::LowCardinality(String) as engagement_band,

    ---------- numerics
    coalesce(rfm.orders_count, 0)::UInt32 as orders_count,
    coalesce(rfm.items_count, 0)::Int64 as items_count,
    coalesce(rfm.revenue, 0)::Decimal(18, 2) as revenue,
    if(orders_count > 0, round(revenue / orders_count, 2), 0)::Decimal(18, 2) as average_order_value,
    rfm.recency_days::Nullable(Int32) as days_since_last_order,
    rfm.recency_score as recency_score,
    rfm.frequency_score as frequency_score,
    rfm.monetary_score as monetary_score,
    coalesce(engagement.engagement_score, 0)::Float64 as engagement_score,
    coalesce(mail.messages_sent_count, 0)::UInt32 as messages_sent_count,
    coalesce(mail.messages_opened_count, 0)::UInt32 as messages_opened_count,
    coalesce(mail.messages_clicked_count, 0)::UInt32 as messages_clicked_count,

    ---------- booleans
    contacts.is_deleted as is_deleted,
    (contacts.email != '' and contacts.email in (select email from stopped))::Bool as is_suppressed,
    (coalesce(phone in (select phone from {{ ref('int_phones__stopped') }}), false) or is_push_suppressed)::Bool as is_sms_suppressed,
    (coalesce(silenced.silenced_contact_id, 0) != 0)::Bool as is_push_suppressed,
    coalesce(permissions.has_email_change and permissions.is_email_granted, false)::Bool as has_marketing_consent,
    coalesce(permissions.has_sms_change and permissions.is_sms_granted, false)::Bool as has_sms_consent,
    -- a device has a token once the platform has been allowed to show messages: consent, unless somebody said otherwise
    if(
        coalesce(permissions.has_push_change, false),
        coalesce(permissions.is_push_granted, false),
        addressed.push_token is not null
    )::Bool as has_push_consent,
    (
        phone is null and (contacts.phone is not null or coalesce(addressed.has_unusable_told_phone, false))
    )::Bool as has_unusable_phone,

    ---------- timestamps
    contacts.created_at as created_at,
    rfm.first_order_at as first_order_at,
    rfm.last_order_at as last_order_at,
    engagement.last_engaged_at as last_engaged_at,
    mail.first_message_at as first_message_at,
    mail.last_message_at as last_message_at,
    mail.last_opened_at as last_opened_at,
    mail.last_clicked_at as last_clicked_at,

    ---------- metadata
    -- what was loaded later is not in here: live state (campaigns/live.py) adds it
    (
        select max(loaded_at) from {{ ref('int_events__recorded') }}
        where slot = (select max(slot) from {{ ref('int_events__recorded') }})
    )::DateTime64(3, 'UTC') as events_through,
    (select max(ledger_loaded_at) from {{ ref('int_messages__followed') }})::DateTime64(3, 'UTC') as messages_through
from contacts
left join rfm on rfm.contact_id = contacts.contact_id
left join engagement on engagement.contact_id = contacts.contact_id
left join mail on mail.contact_id = contacts.contact_id
left any join addressed on addressed.addressed_contact_id = contacts.contact_id
left any join silenced on silenced.silenced_contact_id = contacts.contact_id
left any join permissions on permissions.permitting_contact_id = contacts.contact_id
