{#-
    Replaces the adapter's materialisation of this name: a table that is made anew is one statement, `create or replace table
    ... as select`, instead of six (create beside, ask for its columns, insert, exchange, comment, drop). ClickHouse makes
    the new table beside the old one and exchanges them when it is whole, as the adapter does, so readers see one or the
    other. Where that is not so (a cluster, whose nodes would each run the query; a view in the table's place; a database
    without exchange), the adapter does it.

    A model with a contract gives the columns of the contract, by name, with their comments, and so does a segment, whose
    YAML names a type for its one column; other models get their comments afterwards.
-#}
{% materialization table, adapter='clickhouse' %}
    {%- set existing = load_cached_relation(this) -%}
    {%- set target_relation = this.incorporate(type='table') -%}
    {%- set is_replicated = target.get('cluster') or target.get('database_engine')
        or 'Replicated' in engine_clause() -%}
    {%- set can_exchange = adapter.can_exchange(this.schema, 'table') if existing is none
        else existing.type == 'table' and existing.can_exchange -%}
    {%- if is_replicated or not can_exchange or (existing is not none and existing.mvs_pointing_to_it) -%}
        {{ return(dbt.materialization_table_clickhouse()) }}
    {%- endif -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}
    {%- call statement('main') -%}
        {{ replace_table_as(target_relation, sql) }}
    {%- endcall -%}
    {%- do apply_grants(target_relation, config.get('grants'), should_revoke=false) -%}
    {%- if not has_typed_columns() -%}
        {%- do persist_docs(target_relation, model) -%}
    {%- endif -%}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}


{#- Whether the model's YAML says all there is to know of its columns. -#}
{% macro has_typed_columns() -%}
    {{ return(
        config.get('contract').enforced
        or (model.fqn[1] == 'segments' and model.columns and not model.columns.values() | rejectattr('data_type') | list)
    ) }}
{%- endmacro %}


{% macro replace_table_as(relation, sql) -%}
    {%- set is_typed = has_typed_columns() -%}
    {%- if config.get('contract').enforced -%}
        {%- do get_assert_columns_equivalent(sql) -%}
    {%- endif -%}
    {{ config.get('sql_header') or '' }}
    create or replace table {{ relation }}
    {%- if is_typed %}
    (
        {%- for column in model.columns.values() %}
        {{ adapter.quote(column.name) }} {{ column.data_type }}
        {%- if column.description and config.persist_column_docs() %} comment {{ clickhouse_escape_comment(column.description) }}{% endif -%}
        {%- if column.codec %} codec({{ column.codec }}){% endif -%}
        {%- if column.ttl %} ttl {{ column.ttl }}{% endif -%}
        {{ ',' if not loop.last }}
        {%- endfor %}
        {%- for index in config.get('indexes', default=[]) %},
        index {{ index['name'] }} {{ index['definition'] }}
        {%- endfor %}
        {%- for projection in config.get('projections', default=[]) %},
        {{ clickhouse_projection_ddl(projection) }}
        {%- endfor %}
    )
    {%- endif %}
    {{ engine_clause() }}
    {{ order_cols(label="order by") }}
    {{ primary_key_clause(label="primary key") }}
    {{ partition_cols(label="partition by") }}
    {{ ttl_config(label="ttl") }}
    {{ adapter.get_model_settings(model, config.get('engine', default='MergeTree')) }}
    {%- if is_typed and config.persist_relation_docs() and model.description %}
    comment {{ clickhouse_escape_comment(model.description) }}
    {%- endif %}
    as
    {%- if is_typed %}
    {%- set names = [] -%}
    {%- for column in model.columns.values() -%}{%- do names.append(adapter.quote(column.name)) -%}{%- endfor %}
    select {{ names | join(', ') }}, * except ({{ names | join(', ') }})
    from (
    {{ sql }}
    )
    {%- else %}
    {{ sql }}
    {%- endif %}
    {{ query_settings_of_model() }}
{%- endmacro %}
