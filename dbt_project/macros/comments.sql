{# Write what models and columns mean into the warehouse, as dbt-clickhouse does. It asks which columns a table has; a
   contract has said so already, and been checked a moment before, so models that have one save the question. #}
{% macro clickhouse__persist_docs(relation, model, for_relation, for_columns) %}
    {%- set comments = [] -%}
    {%- if for_relation and config.persist_relation_docs() and model.description -%}
        {%- do comments.append('modify comment ' ~ clickhouse_escape_comment(model.description)) -%}
    {%- endif -%}
    {%- if for_columns and config.persist_column_docs() and model.columns -%}
        {%- set is_contracted = model.config.contract is defined and model.config.contract.enforced -%}
        {%- set present = model.columns.keys() | list if is_contracted
            else adapter.get_columns_in_relation(relation) | map(attribute='name') | list -%}
        {%- for name, column in model.columns.items() if name in present and column.description -%}
            {%- do comments.append('comment column `' ~ name ~ '` ' ~ clickhouse_escape_comment(column.description)) -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if comments -%}
        {%- do run_query(one_alter_relation(relation, comments | join(', '))) -%}
    {%- endif -%}
{% endmacro %}
