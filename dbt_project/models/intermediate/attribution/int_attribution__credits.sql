{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['is_month', 'goal', 'converted_on', 'kind', 'campaign', 'channel'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

{%- set months = none %}
{%- if is_incremental() %}
    {%- set query -%}
        select paths.month
        from (select * from {{ ref('int_attribution__paths') }} where is_month) as paths
        left join (select * from {{ this }} where is_month) as built on built.month = paths.month
        where coalesce(built.rebuilt_at, toDateTime64(0, 3, 'UTC')) != paths.rebuilt_at
    {%- endset -%}
    {%- set months = run_query(query).rows | map(attribute=0) | sort %}
{%- endif %}
{%- set due = 'true' if months is none else ('month in (' ~ months | join(', ') ~ ')' if months else 'false') %}
{%- set models = attribution_models() %}

{% if is_incremental() and not months -%}
{{ nothing_due() }}

{%- else -%}
with

paths as (

    select * from {{ ref('int_attribution__paths') }}
    where {{ due }}

),

touchpoints as (

    select
        month,
        goal,
        toDate(converted_at, 'UTC') as converted_on,
        toFloat64(revenue) as revenue,
        path_kind::LowCardinality(String) as kind,
        path_campaign::LowCardinality(String) as campaign,
        path_channel::LowCardinality(String) as channel,
        {%- for model in models %}
        {{ model }},
        {%- endfor %}
        repeat_number
    from (
        select
            *,
            {%- for model, credits in models.items() %}
            {{ credits }} as {{ model }}_credits,
            {%- endfor %}
            -- a campaign with three messages on the path has led to one conversion
            arrayEnumerateUniq(kinds, campaigns, channels) as repeats
        from (
            select
                *,
                arrayMap(moment -> dateDiff('millisecond', moment, converted_at) / 86400000., touched_at) as ages
            from paths
            where not is_month
        )
    )
    array join
        kinds as path_kind,
        campaigns as path_campaign,
        channels as path_channel,
        {%- for model in models %}
        {{ model }}_credits as {{ model }},
        {%- endfor %}
        repeats as repeat_number

)

select
    month,
    false::Bool as is_month,
    goal,
    converted_on,
    kind,
    campaign,
    channel,
    count()::UInt64 as touches_count,
    countIf(repeat_number = 1)::UInt64 as touched_conversions,
    {%- for model in models %}
    sum({{ model }}) as {{ model }}_conversions,
    sum({{ model }} * revenue) as {{ model }}_revenue,
    {%- endfor %}
    toDateTime64(0, 3, 'UTC') as rebuilt_at
from touchpoints
group by month, goal, converted_on, kind, campaign, channel

union all

select
    month,
    true::Bool as is_month,
    ''::LowCardinality(String) as goal,
    toDate(0) as converted_on,
    ''::LowCardinality(String) as kind,
    ''::LowCardinality(String) as campaign,
    ''::LowCardinality(String) as channel,
    0::UInt64 as touches_count,
    0::UInt64 as touched_conversions,
    {%- for model in models %}
    0::Float64 as {{ model }}_conversions,
    0::Float64 as {{ model }}_revenue,
    {%- endfor %}
    rebuilt_at
from paths
where paths.is_month

{%- endif %}
