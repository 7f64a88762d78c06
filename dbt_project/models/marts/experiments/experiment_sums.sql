{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='toYYYYMM(exposed_on)',
        order_by=['experiment', 'metric', 'variant', 'exposed_on'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

-- depends_on: {{ ref('int_experiments__messages') }}

{%- set months = due_exposure_months() %}
{%- set flags = {
    'opens': 'is_opened', 'clicks': 'is_clicked', 'conversions': 'is_converted', 'unsubscribes': 'is_unsubscribed',
    'complaints': 'is_complained', 'bounces': 'is_bounced',
} %}
{%- set names = metric_names() %}

{% if is_incremental() and not months -%}
{{ nothing_due() }}

{%- else -%}
with

exposures as (

    select * from {{ ref('experiment_exposures') }}
    where
        not is_mixed
        {%- if months %}
        and toYYYYMM(exposed_at) in ({{ months | join(', ') }})
        {%- endif %}

),

flags as (

    select
        experiment,
        variant,
        contact_id,
        exposed_at,
        'proportion' as metric_kind,
        arrayJoin([
            {%- for metric, flag in flags.items() %}
            tuple('{{ metric }}', toFloat64({{ flag }}), {{ 'true' if metric in ['unsubscribes', 'complaints', 'bounces'] else 'false' }}){{ ',' if not loop.last }}
            {%- endfor %}
        ]) as flag,
        flag.1 as metric,
        flag.2 as value,
        0.0 as value_before,
        0.0 as denominator,
        flag.3 as is_lower_better
    from exposures

),

{% for name in names -%}
metric_{{ name }} as (

    select
        exposures.experiment as experiment,
        exposures.variant as variant,
        exposures.contact_id as contact_id,
        any(exposures.exposed_at) as exposed_at,
        'mean' as metric_kind,
        '{{ name }}' as metric,
        -- who did nothing has 0, also where the client has join_use_nulls
        coalesce(sumIf(
            toFloat64(happened.value),
            happened.happened_at >= exposures.exposed_at
            and happened.happened_at < exposures.exposed_at + toIntervalSecond(exposures.window_seconds)
        ), 0) as value,
        coalesce(sumIf(
            toFloat64(happened.value),
            happened.happened_at < exposures.exposed_at
            and happened.happened_at >= exposures.exposed_at - toIntervalDay({{ var('experiment_before_days') }})
        ), 0) as value_before,
        0.0 as denominator,
        {{ is_lower_better(name) }} as is_lower_better
    from exposures
    left join (
        select contact_id as happened_contact_id, happened_at, value from {{ ref(name) }}
        where contact_id in (select contact_id from exposures)
    ) as happened on happened.happened_contact_id = exposures.contact_id
    group by experiment, variant, contact_id

),

{% endfor -%}

{% for name in names if metric_per(name) -%}
-- both of each contact, after the exposure; what was before adjusts no ratio
ratio_{{ name }} as (

    select
        above.experiment as experiment,
        above.variant as variant,
        above.contact_id as contact_id,
        above.exposed_at as exposed_at,
        'ratio' as metric_kind,
        above.metric as metric,
        above.value as value,
        0.0 as value_before,
        below.value as denominator,
        above.is_lower_better as is_lower_better
    from metric_{{ name }} as above
    inner join metric_{{ metric_per(name) }} as below
        on below.experiment = above.experiment and below.contact_id = above.contact_id

),

{% endfor -%}
valued as (

    select experiment, variant, contact_id, exposed_at, metric_kind, metric, value, value_before, denominator, is_lower_better
    from flags
    {%- for name in names %}

    union all

    select experiment, variant, contact_id, exposed_at, metric_kind, metric, value, value_before, denominator, is_lower_better
    from {{ 'ratio' if metric_per(name) else 'metric' }}_{{ name }}
    {%- endfor %}

)

select
    ---------- ids
    experiment::String as experiment,
    variant::String as variant,
    metric::String as metric,

    ---------- text
    any(metric_kind)::String as metric_kind,

    ---------- numerics
    count()::UInt64 as contacts_count,
    sum(value)::Float64 as value_sum,
    sum(value * value)::Float64 as value_square_sum,
    sum(value_before)::Float64 as before_sum,
    sum(value_before * value_before)::Float64 as before_square_sum,
    sum(value * value_before)::Float64 as product_sum,
    sum(denominator)::Float64 as denominator_sum,
    sum(denominator * denominator)::Float64 as denominator_square_sum,
    sum(value * denominator)::Float64 as denominator_product_sum,

    ---------- booleans
    any(valued.is_lower_better)::Bool as is_lower_better,

    ---------- dates
    toDate(valued.exposed_at, 'UTC') as exposed_on,

    ---------- timestamps
    min(valued.exposed_at)::DateTime64(3, 'UTC') as first_exposed_at,
    max(valued.exposed_at)::DateTime64(3, 'UTC') as last_exposed_at,
    {{ stamp() }}::DateTime64(3, 'UTC') as rebuilt_at
from valued
group by experiment, variant, metric, exposed_on

{%- endif %}
