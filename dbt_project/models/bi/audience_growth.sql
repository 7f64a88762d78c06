with

growth as (

    select * from {{ ref('list_growth') }}

)

select
    ---------- ids
    day,
    source,

    ---------- numerics
    new_contacts_count,
    joined_count,
    withdrawn_count,
    unsubscribed_count,
    complained_count,
    hard_bounced_count,
    lost_count,
    net_count,
    subscribers_count,
    churn_rate
from growth
