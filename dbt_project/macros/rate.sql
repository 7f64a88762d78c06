{#- A share of 0 to 1, null where there is nothing to take a share of. -#}
{% macro rate(part, whole) -%}
    ({{ part }} / nullIf({{ whole }}, 0))::Nullable(Float64)
{%- endmacro %}
