with

performance as (

    select * from {{ ref('campaign_performance_by_mailbox_provider') }}

)

select
    ---------- ids
    kind,
    campaign,
    occurrence,
    variant,
    mailbox_provider,

{{ campaign_results_columns() }}
from performance
