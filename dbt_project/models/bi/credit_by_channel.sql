with

credits as (

    select * from {{ ref('attribution_by_channel') }}

),

by_model as (

    select
        goal,
        converted_on,
        channel,
        {{ credit_of_each_model() }} as credit
    from credits

)

select
    ---------- ids
    goal,
    converted_on,
    channel,
    credit.1::String as attribution_model,

    ---------- numerics
    credit.2::Float64 as conversions,
    credit.3::Float64 as revenue
from by_model
