with

days as (

    select * from {{ ref('deliverability_by_day') }}

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
    reached_count,
    bounced_count,
    hard_bounced_count,
    complained_count,
    unsubscribed_count,
    opened_count,
    machine_opened_count,
    clicked_count,
    delivery_rate,
    bounce_rate,
    hard_bounce_rate,
    complaint_rate,
    unsubscribe_rate,
    open_rate
from days
