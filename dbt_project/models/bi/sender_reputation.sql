with

reputation as (

    select * from {{ ref('reputation') }}

)

select
    ---------- ids
    day,
    window_days,
    sending_domain,
    provider,
    mailbox_provider,

    ---------- text
    status,
    crossed_metric,
    crossed_source,

    ---------- booleans
    is_judged,
    is_latest,

    ---------- numerics
    sent_count,
    reached_count,
    hard_bounced_count,
    complained_count,
    hard_bounce_rate,
    complaint_rate,
    crossed_threshold
from reputation
