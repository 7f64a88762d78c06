with

performance as (

    select * from {{ ref('campaign_performance_by_segment') }}

)

select
    ---------- ids
    kind,
    campaign,
    occurrence,
    variant,
    segment,

    ---------- booleans
    is_audience,

{{ campaign_results_columns() }}
from performance
