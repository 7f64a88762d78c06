with

funnels as (

    select * from {{ ref('funnels') }}

)

select
    ---------- ids
    funnel,
    entry_month,
    step,

    ---------- text
    concat(toString(step), ' ', name)::String as step_name,

    ---------- booleans
    is_closed,

    ---------- numerics
    entered_count,
    passed_count,
    rate_of_entered,
    rate_of_previous
from funnels
