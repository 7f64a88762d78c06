with

reasons as (

    select * from {{ ref('bounce_reasons') }}

)

select
    ---------- ids
    day,
    kind,
    campaign,
    provider,
    sending_domain,
    mailbox_provider,
    outcome,
    bounce_class,
    reason,

    ---------- numerics
    messages_count
from reasons
