{{
    config(
        materialized='view'
    )
}}

with

counted as (

    -- mailboxes judge email; other channels have none
    select * from {{ ref('int_campaigns__counted') }}
    where is_sent and channel = 'email'

),

days as (

    select
        toDate(counted.chosen_hour_at, 'UTC') as day,
        sending_domain::String as sending_domain,
        provider::String as provider,
        mailbox_provider::String as mailbox_provider,
        sum(counted.sent_count) as sent_count,
        sum(counted.delivered_count) as delivered_count,
        sum(counted.bounced_count) as bounced_count,
        sum(counted.hard_bounced_count) as hard_bounced_count,
        sum(counted.complained_count) as complained_count,
        sum(counted.unsubscribed_count) as unsubscribed_count,
        sum(counted.opened_count) as opened_count,
        sum(counted.machine_opened_count) as machine_opened_count,
        sum(counted.clicked_count) as clicked_count
    from counted
    group by day, sending_domain, provider, mailbox_provider

)

select
    ---------- ids
    day,
    sending_domain,
    provider,
    mailbox_provider,

    ---------- numerics
    sent_count,
    delivered_count,
    -- providers that do not tell what was delivered tell what was not
    if(delivered_count > 0, delivered_count, greatest(sent_count, bounced_count) - bounced_count)::UInt64 as reached_count,
    bounced_count,
    hard_bounced_count,
    complained_count,
    unsubscribed_count,
    opened_count,
    machine_opened_count,
    clicked_count,
    {{ rate('reached_count', 'sent_count') }} as delivery_rate,
    {{ rate('bounced_count', 'sent_count') }} as bounce_rate,
    {{ rate('hard_bounced_count', 'sent_count') }} as hard_bounce_rate,
    {{ rate('complained_count', 'reached_count') }} as complaint_rate,
    {{ rate('unsubscribed_count', 'reached_count') }} as unsubscribe_rate,
    {{ rate('opened_count', 'reached_count') }} as open_rate
from days
