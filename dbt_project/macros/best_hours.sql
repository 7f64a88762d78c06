{#- Counts of 24 hours, each with half of what is in the hours beside it: who reads at ten past nine may do so at five to. -#}
{% macro around_the_clock(counts) -%}
    arrayMap(
        (before, here, after) -> (before + 2 * here + after) / 4,
        arrayRotateRight({{ counts }}, 1),
        {{ counts }},
        arrayRotateLeft({{ counts }}, 1)
    )
{%- endmacro %}
