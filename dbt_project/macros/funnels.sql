{#- The first month that funnels look at, as a date. -#}
{% macro funnels_from() -%}
    toStartOfMonth({{ now() }}) - toIntervalMonth({{ var('funnel_months') - 1 }})
{%- endmacro %}


{#- A hash of the steps, and of how far back they are looked at: others make everybody's way due. -#}
{% macro funnel_rules() -%}
    coalesce((
        select groupBitXor(cityHash64(funnel, step, event_type, within_days, {{ var('funnel_months') }}))
        from {{ ref('funnel_steps') }}
    ), 0)::UInt64
{%- endmacro %}


{#- Whether `int_funnels__passed` looks at everybody: first of all, after a change of the steps, or if the clock was set back. -#}
{% macro are_all_funnels_due() %}
    {%- if not is_incremental() -%}
        {{ return(true) }}
    {%- endif -%}
    {%- set query -%}
        select argMax(rules, rebuilt_at) != {{ funnel_rules() }} or argMax(as_of, rebuilt_at) > {{ now() }}
        from {{ this }}
    {%- endset -%}
    {{ return(run_query(query).rows[0][0] | int == 1) }}
{% endmacro %}
