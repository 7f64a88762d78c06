{{
    config(
        materialized='view'
    )
}}

with

explained as (

    select * from {{ ref('int_bounces__explained') }}

)

select
    ---------- ids
    day,
    kind::String as kind,
    campaign::String as campaign,
    provider::String as provider,
    sending_domain::String as sending_domain,
    mailbox_provider::String as mailbox_provider,

    ---------- text
    outcome::String as outcome,
    bounce_class::String as bounce_class,
    reason::String as reason,

    ---------- numerics
    sum(explained.messages_count) as messages_count
from explained
group by day, kind, campaign, provider, sending_domain, mailbox_provider, outcome, bounce_class, reason
