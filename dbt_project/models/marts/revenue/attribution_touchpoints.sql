{{
    config(
        materialized='view'
    )
}}

{%- set models = attribution_models() %}

with

paths as (

    select
        *,
        arrayMap(moment -> dateDiff('millisecond', moment, converted_at) / 86400000., touched_at) as ages
    from {{ ref('int_attribution__paths') }}
    where not is_month

),

credited as (

    select
        *,
        {%- for model, credits in models.items() %}
        {{ credits }} as {{ model }}_credits,
        {%- endfor %}
        length(message_ids) as touches_count
    from paths

)

select
    ---------- ids
    conversion_id,
    message_id,
    contact_id,

    ---------- text
    goal,
    path_kind::LowCardinality(String) as kind,
    path_campaign::LowCardinality(String) as campaign,
    path_channel::LowCardinality(String) as channel,

    ---------- numerics
    position::UInt32 as position,
    touches_count::UInt32 as touches_count,
    {%- for model in models %}
    {{ model }}_credit,
    {%- endfor %}
    revenue::Decimal(18, 2) as conversion_revenue,

    ---------- timestamps
    path_touched_at as touched_at,
    converted_at
from credited
array join
    message_ids as message_id,
    kinds as path_kind,
    campaigns as path_campaign,
    channels as path_channel,
    touched_at as path_touched_at,
    {%- for model in models %}
    {{ model }}_credits as {{ model }}_credit,
    {%- endfor %}
    arrayEnumerate(message_ids) as position
