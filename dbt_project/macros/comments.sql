{#-
    Writes what models and columns mean into the warehouse, as dbt-clickhouse does. It asks which columns a table has; a
    contract has said so already, and been checked a moment before, so models that have one save the question. A table that
    is kept from run to run has its comments already: they are written again if one of them reads differently.
-#}
{% macro clickhouse__persist_docs(relation, model, for_relation, for_columns) %}
    {%- set wanted = {} -%}
    {%- if for_relation and config.persist_relation_docs() and model.description -%}
        {%- do wanted.update({'': model.description}) -%}
    {%- endif -%}
    {%- if for_columns and config.persist_column_docs() -%}
        {%- for name, column in model.columns.items() if column.description -%}
            {%- do wanted.update({name: column.description}) -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set is_kept = model.config.materialized == 'incremental' and is_incremental() -%}
    {%- if wanted and not (is_kept and has_comments(relation, wanted)) -%}
        {%- set is_contracted = model.config.contract is defined and model.config.contract.enforced -%}
        {%- set present = model.columns.keys() | list if is_contracted
            else adapter.get_columns_in_relation(relation) | map(attribute='name') | list -%}
        {%- set comments = [] -%}
        {%- for name, text in wanted.items() -%}
            {%- if not name -%}
                {%- do comments.append('modify comment ' ~ clickhouse_escape_comment(text)) -%}
            {%- elif name in present -%}
                {%- do comments.append('comment column `' ~ name ~ '` ' ~ clickhouse_escape_comment(text)) -%}
            {%- endif -%}
        {%- endfor -%}
        {%- do run_query(one_alter_relation(relation, comments | join(', '))) -%}
    {%- endif -%}
{% endmacro %}


{#- Whether a table has these comments (by column, '' for its own). -#}
{% macro has_comments(relation, wanted) %}
    {%- set comments = kept_tables().comments.get(relation.schema ~ '.' ~ relation.identifier, '') -%}
    {%- set columns = kept_columns(relation) -%}
    {%- for name, text in wanted.items() -%}
        {%- if (columns.get(name) if name else comments) != text -%}
            {{ return(false) }}
        {%- endif -%}
    {%- endfor -%}
    {{ return(true) }}
{% endmacro %}


{#- Columns of a table that was there before the run, with their comments, in their order. -#}
{% macro kept_columns(relation) %}
    {{ return(kept_tables().columns.get(relation.schema ~ '.' ~ relation.identifier, {})) }}
{% endmacro %}


{#-
    What tables were like when the run first asked: `columns`, by table and name, their comments; `comments`, by table. Asked
    of all tables at once: `graph` is the one thing that all models of a run share. A table that an increment goes to
    changes its columns only by a full refresh.
-#}
{% macro kept_tables() %}
    {%- set kept = graph.get('kept_tables', {}) -%}
    {%- if kept.get('run') != invocation_id -%}
        {%- set models = graph.nodes.values() | selectattr('resource_type', 'equalto', 'model') -%}
        {%- set databases = models | map(attribute='schema') | unique | join("', '") -%}
        {%- set query -%}
            select concat(database, '.', table) as relation, name as part, comment, position::Int64 as position from system.columns
            where database in ('{{ databases }}')
            union all
            select concat(database, '.', name) as relation, '' as part, comment, 0 as position from system.tables
            where database in ('{{ databases }}') and comment != ''
            union all
            -- what a `create or replace table` (macros/tables.sql) leaves behind that was killed half way
            select concat('`', database, '`.`', name, '`') as relation, '' as part, '' as comment, -1 as position
            from system.tables
            where
                database in ('{{ databases }}')
                and startsWith(name, '_tmp_replace_')
                and metadata_modification_time < now() - toIntervalDay(1)
            order by relation, position
        {%- endset -%}
        {%- set kept = {'run': invocation_id, 'columns': {}, 'comments': {}} -%}
        {%- for row in run_query(query).rows -%}
            {%- if row[3] == -1 -%}
                {%- do run_query('drop table if exists ' ~ row[0]) -%}
            {%- elif row[1] -%}
                {%- do kept.columns.setdefault(row[0], {}).update({row[1]: row[2]}) -%}
            {%- else -%}
                {%- do kept.comments.update({row[0]: row[2]}) -%}
            {%- endif -%}
        {%- endfor -%}
        {%- do graph.update({'kept_tables': kept}) -%}
    {%- endif -%}
    {{ return(kept) }}
{% endmacro %}
