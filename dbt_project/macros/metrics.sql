{#- Names of all metrics that are SQL: every file in models/metrics, in order. -#}
{% macro metric_names() %}
    {{ return(names_in('metrics', 'Metric')) }}
{% endmacro %}


{#- What the YAML beside a metric's SQL says under `config: {meta: ...}`. -#}
{% macro metric_meta(name) -%}
    {%- set found = namespace(meta={}) -%}
    {%- if execute -%}
        {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.name == name and node.fqn[1] == 'metrics' -%}
            {%- set found.meta = node.config.get('meta', {}) -%}
        {%- endfor -%}
    {%- endif -%}
    {{ return(found.meta) }}
{%- endmacro %}


{#- Whether less of a metric is better: `lower_is_better: true`. -#}
{% macro is_lower_better(name) -%}
    {{ return('true' if metric_meta(name).get('lower_is_better', false) else 'false') }}
{%- endmacro %}


{#-
    What a metric is divided by, empty if by nothing: `per: orders_placed` makes it a ratio of two sums, each of all
    contacts of a variant, such as revenue an order.
-#}
{% macro metric_per(name) -%}
    {%- set per = metric_meta(name).get('per', '') -%}
    {%- if per and execute and (per == name or per not in metric_names() or metric_meta(per).get('per')) -%}
        {{ exceptions.raise_compiler_error(
            "Metric " ~ name ~ ": per: " ~ per ~ " is no metric that it could be divided by. Name a file of models/metrics"
            ~ " that is no ratio itself, or remove per."
        ) }}
    {%- endif -%}
    {{ return(per) }}
{%- endmacro %}


{#-
    For `experiment_sums`: months (as 201106) of exposures to sum anew, none on a full refresh, which means all.

    Months in which a message was rebuilt since this model last ran (by the month of exposure), months of exposures whose
    window, or a load that comes late, is not over, and all of them if a metric was added: it tells of the past, too.
-#}
{% macro due_exposure_months() %}
    {%- if not is_incremental() -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set query -%}
        with

        (select groupUniqArray(metric) from {{ this }}) as summed

        select distinct toYYYYMM(exposed_at) as month
        from {{ ref('experiment_exposures') }}
        where
            {%- for name in metric_names() %}
            not has(summed, '{{ name }}') or
            {%- endfor %}
            exposed_at > {{ now() }} - toIntervalSecond(window_seconds) - toIntervalDay({{ var('experiment_late_days') }})
            or (experiment, contact_id) in (
                select experiment, contact_id from {{ ref('int_experiments__messages') }}
                where rebuilt_at > (select max(rebuilt_at) from {{ this }})
            )
        order by month
    {%- endset -%}
    {{ return(run_query(query).rows | map(attribute=0) | list) }}
{% endmacro %}
