{#-
    Databases are called exactly what the folders are: staging, intermediate, marts, segments.
    The variable `database_prefix` puts something before all of them.
-#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ var('database_prefix', '') }}{{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
