with

performance as (

    select * from {{ ref('campaign_performance') }}

)

select
    ---------- ids
    kind,
    campaign,
    occurrence,
    variant,

{{ campaign_results_columns() }},

    ---------- timestamps
    first_sent_at,
    last_sent_at
from performance
