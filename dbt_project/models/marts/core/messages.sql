{{
    config(
        order_by=['name', 'occurrence', 'message_id']
    )
}}

with

ledger as (

    select * from {{ ref('stg_ledger__messages') }}

),

events as (

    select * from {{ ref('events') }}
    where message_id != ''

),

orders as (

    select * from {{ ref('orders') }}
    where is_sale and contact_id is not null

),

contacts as (

    select * from {{ ref('contacts') }}

),

emails as (

    select identifier as known_email, contact_id as contact_of_email
    from {{ ref('int_contacts__identified') }}
    where kind = 'email'

),

feedback as (

    select
        message_id as feedback_message_id,
        minIfOrNull(occurred_at, type in ('sent', 'delivered')) as feedback_accepted_at,
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
    from events
    group by message_id

),

messages as (

    select
        ledger.*,
        feedback.* except (feedback_message_id, feedback_accepted_at),
        coalesce(ledger.accepted_at, feedback.feedback_accepted_at) as sent_at,
        -- a contact that has merged into another since is found by the address
        if(
            ledger.contact_id in (select contact_id from contacts),
            ledger.contact_id,
            coalesce(emails.contact_of_email, ledger.contact_id)
        ) as current_contact_id
    from ledger
    left join feedback on feedback.feedback_message_id = ledger.message_id
    left join emails on emails.known_email = ledger.email

),

sent_messages as (

    select
        message_id,
        current_contact_id,
        assumeNotNull(messages.sent_at) as sent_at
    from messages
    where messages.sent_at is not null

),

conversions as (

    -- an order counts for the last message before it, so that no pound is counted twice
    select
        sent_messages.message_id as message_id,
        min(orders.ordered_at) as converted_at,
        argMin(orders.order_id, tuple(orders.ordered_at, orders.order_id)) as converted_order_id,
        count() as orders_count,
        sum(orders.revenue) as revenue
    from orders
    asof join sent_messages
        on sent_messages.current_contact_id = assumeNotNull(orders.contact_id) and sent_messages.sent_at <= orders.ordered_at
    where orders.ordered_at < sent_messages.sent_at + toIntervalDay({{ var('conversion_window_days') }})
    group by sent_messages.message_id

)

select
    ---------- ids
    messages.message_id as message_id,
    messages.current_contact_id::Int64 as contact_id,
    messages.provider_message_id as provider_message_id,
    conversions.converted_order_id as converted_order_id,

    ---------- text
    messages.kind as kind,
    messages.name as name,
    messages.version as version,
    messages.occurrence as occurrence,
    messages.email as email,
    messages.channel as channel,
    messages.provider as provider,
    messages.category as category,
    messages.template as template,
    messages.template_version as template_version,
    messages.segment as segment,
    messages.segment_version as segment_version,
    messages.experiment as experiment,
    messages.variant as variant,
    messages.subject as subject,
    messages.status as status,
    messages.reason as reason,
    coalesce(messages.bounce_class, '')::LowCardinality(String) as bounce_class,

    ---------- numerics
    coalesce(messages.opens_count, 0)::UInt32 as opens_count,
    coalesce(messages.machine_opens_count, 0)::UInt32 as machine_opens_count,
    coalesce(messages.clicks_count, 0)::UInt32 as clicks_count,
    coalesce(messages.machine_clicks_count, 0)::UInt32 as machine_clicks_count,
    coalesce(conversions.orders_count, 0)::UInt32 as orders_count,
    coalesce(conversions.revenue, 0)::Decimal(18, 2) as revenue,

    ---------- booleans
    (messages.sent_at is not null)::Bool as is_sent,
    -- whoever clicked has read it, though images were off
    (coalesce(messages.opens_count, 0) + coalesce(messages.clicks_count, 0) > 0)::Bool as is_opened,
    (coalesce(messages.clicks_count, 0) > 0)::Bool as is_clicked,

    ---------- timestamps
    messages.created_at as created_at,
    messages.sent_at as sent_at,
    messages.delivered_at as delivered_at,
    messages.first_opened_at as first_opened_at,
    messages.last_opened_at as last_opened_at,
    messages.first_clicked_at as first_clicked_at,
    messages.last_clicked_at as last_clicked_at,
    messages.bounced_at as bounced_at,
    messages.complained_at as complained_at,
    messages.unsubscribed_at as unsubscribed_at,
    conversions.converted_at as converted_at
from messages
left join conversions on conversions.message_id = messages.message_id
