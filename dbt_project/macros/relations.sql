{#-
    Replaces the adapter's macro of this name, with which it looks for the tables of each database before a run: which
    materialized views write into them is a question for those who have one, and half the cost of asking.
-#}
{% macro clickhouse__list_relations_without_caching(schema_relation) %}
    {%- set views = run_query("select count() from system.tables where engine = 'MaterializedView'").rows[0][0] | int -%}
    {%- if views or adapter.get_clickhouse_cluster_name() -%}
        {{ return(dbt.clickhouse__list_relations_without_caching(schema_relation)) }}
    {%- endif -%}
    {%- set query -%}
        select
            name,
            database as schema,
            multiIf(engine = 'View', 'view', engine = 'Dictionary', 'dictionary', 'table') as type,
            (select engine from system.databases where name = '{{ schema_relation.schema }}') as db_engine,
            '[]' as mvs_pointing_to_it,
            0 as is_refreshable,
            0 as refreshable_append,
            0 as is_on_cluster
        from system.tables
        where database = '{{ schema_relation.schema }}'
    {%- endset -%}
    {{ return(run_query(query)) }}
{% endmacro %}
