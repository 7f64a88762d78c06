{#- Whether a message was read by a person. Whoever clicked has read it, though images were off. message: its alias. -#}
{% macro is_opened(message) -%}
    {{ message }}.opens_count + {{ message }}.clicks_count > 0
{%- endmacro %}
