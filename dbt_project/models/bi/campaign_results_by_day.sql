with

performance as (

    select * from {{ ref('campaign_performance_by_day') }}

)

select
    ---------- ids
    kind,
    campaign,
    occurrence,
    variant,
    day,

{{ campaign_results_columns() }}
from performance
