{{
    config(
        materialized='view'
    )
}}

with

credits as (

    select * from {{ ref('int_attribution__credits') }}
    where not is_month

)

select
    ---------- ids
    goal,
    converted_on,
    kind,
    campaign,

    ---------- numerics
    sum(credits.touches_count)::UInt64 as touches_count,
    sum(credits.touched_conversions)::UInt64 as touched_conversions,
    {%- for model in attribution_models() %}
    sum(credits.{{ model }}_conversions)::Float64 as {{ model }}_conversions,
    sum(credits.{{ model }}_revenue)::Float64 as {{ model }}_revenue{{ ',' if not loop.last }}
    {%- endfor %}
from credits
group by goal, converted_on, kind, campaign
