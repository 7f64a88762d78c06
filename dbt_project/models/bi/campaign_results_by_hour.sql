with

performance as (

    select * from {{ ref('campaign_performance_by_hour') }}

)

select
    ---------- ids
    kind,
    campaign,
    variant,
    weekday,
    hour,

{{ campaign_results_columns() }}
from performance
