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

    {{ message_sums_of(ref('int_messages__summed')) }}

),

addressees as (

    select identity_id as addressee_id, contact_id as addressee_contact_id
    from {{ ref('int_contacts__identified') }}
    where kind = 'message'

),

stopped as (

    select * from {{ ref('int_emails__stopped') }}

),

consents as (

    select identity_id as consent_identity_id, last_change
    from {{ ref('int_consents__latest') }}
    where channel = 'email' and purpose = 'marketing'

),

consenting as (

    select identities.contact_id as contact_id
    from {{ ref('int_contacts__identified') }} as identities
    inner join consents on consents.consent_identity_id = identities.identity_id
    group by contact_id
    -- a pause that is over is consent again
    having max(consents.last_change).2 <= {{ now() }}

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
    (contacts.contact_id in (select contact_id from consenting))::Bool as has_marketing_consent,

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
