{#-
    How rows come into tables, at fewer statements than the adapter takes. Seventy models make a day, and a statement costs
    some ten milliseconds of the engine's and of dbt's time, whatever it does.

    Columns are selected by name, whether the model has a contract or not, and `* except` of them gives any other: a model
    that has lost, renamed or gained a column since its table was made is refused by the engine as it is inserted. So an
    increment need not be asked first what its SQL gives, for which ClickHouse would run every scalar subquery in it once
    more (`on_schema_change: fail` asks that). With var `check_contracts` it is asked all the same, for types, too.
-#}
{% macro incremental_validate_on_schema_change(on_schema_change, default='ignore') -%}
    {%- if on_schema_change not in ['sync_all_columns', 'append_new_columns', 'fail', 'ignore', none] -%}
        {{ exceptions.raise_compiler_error(
            "Model " ~ this.identifier ~ ": on_schema_change is '" ~ on_schema_change ~ "'. "
            ~ "Fix: set it to fail, ignore, append_new_columns or sync_all_columns."
        ) }}
    {%- endif -%}
    {{ return('ignore' if on_schema_change == 'fail' and not var('check_contracts', false) else on_schema_change or default) }}
{%- endmacro %}


{#- Replaces the adapter's macro of this name, which asks for a table's columns even where a contract has named them. -#}
{% macro clickhouse__insert_into(target_relation, sql, has_contract, use_columns_from_sql=False) %}
    {%- if use_columns_from_sql -%}
        {%- set names = clickhouse__get_columns_in_query(sql) -%}
    {%- elif has_contract -%}
        {%- set names = model.columns.values() | map(attribute='name') | list -%}
    {%- elif is_incremental() -%}
        {%- set names = kept_columns(this).keys() | list -%}
    {%- else -%}
        {%- set names = adapter.get_columns_in_relation(target_relation) | map(attribute='name') | list -%}
    {%- endif -%}
    {%- set quoted = [] -%}
    {%- for name in names -%}{%- do quoted.append(adapter.quote(name)) -%}{%- endfor -%}
    {%- set columns = quoted | join(', ') -%}
    insert into {{ target_relation }} ({{ columns }})
    select {{ columns }}, * except ({{ columns }})
    from (
    {{ sql }}
    )
    {{ query_settings_of_model() }}
{%- endmacro %}


{#-
    The settings clause of a model's query: its own `query_settings`, and two that suit models and not whoever looks something
    up. Ours join what they need nearly all of, so a filter made of one side spares the other nothing and costs a tenth of
    the query; and a list of so many keys lies in every granule of a table, so there is no use in looking for it in the index.
-#}
{% macro query_settings_of_model() -%}
    {%- set own = adapter.get_model_query_settings(model) | trim -%}
    {{ own ~ ', ' if own else 'settings ' }}use_index_for_in_with_subqueries_max_values = 100000
    {%- if adapter.is_at_or_after_version('26.1') %}, enable_join_runtime_filters = 0{% endif %}
{%- endmacro %}


{#-
    Replaces the adapter's macro of this name. The table of new rows is made like the one that they go to, not by asking what
    the SQL gives, and as its name is of this run alone, nothing has to be dropped before. A run that has nothing to write
    replaces nothing, and one for which nothing is due asks nothing. A model that keeps no row for a partition without content
    names those that are due (`due_partitions`): the ones for which it gives no row are emptied.
-#}
{% macro clickhouse__incremental_insert_overwrite(existing_relation, partition_by, is_distributed=False) %}
    {%- if sql | trim == nothing_due() | trim -%}
        {%- do store_raw_result(name='main', message='nothing due', code='OK', rows_affected='0') -%}
        {{ return('') }}
    {%- endif -%}
    {%- set new_rows = existing_relation.incorporate(path={"identifier": existing_relation.identifier
        ~ '__dbt_new_data_' ~ invocation_id.replace('-', '_')}) -%}
    {%- call statement('create_new_rows') -%}
        create table {{ new_rows }} {{ on_cluster_clause(new_rows) }} as {{ existing_relation }}
        {{ engine_clause() }}
        {{ order_cols(label="order by") }}
        {{ primary_key_clause(label="primary key") }}
        {{ partition_cols(label="partition by") }}
        {{ ttl_config(label="ttl") }}
        {{ adapter.get_model_settings(model, config.get('engine', default='MergeTree')) }}
    {%- endcall -%}
    {%- call statement('main') -%}
        {{ clickhouse__insert_into(new_rows, sql, config.get('contract').enforced) }}
    {%- endcall -%}
    {%- set query -%}
        select distinct partition_id from system.parts
        where active and database = '{{ new_rows.schema }}' and table = '{{ new_rows.identifier }}'
    {%- endset -%}
    {%- set partitions = (run_query(query).rows | map(attribute=0) | list + graph.get('due_partitions', {}).get(model.unique_id ~ invocation_id, []))
        | unique | list -%}
    {%- if partitions -%}
        {%- call statement('replace_partitions') -%}
            alter table {{ existing_relation }}
            {% for partition in partitions -%}
            replace partition id '{{ partition }}' from {{ new_rows }}{{ ', ' if not loop.last }}
            {% endfor -%}
            {#- ClickHouse 26.6 and later refuse a source without parts on this node unless they are told not to -#}
            {{ 'settings allow_replace_partition_from_empty_source = 1' if adapter.is_at_or_after_version('26.6') }}
        {%- endcall -%}
    {%- endif -%}
    {%- do adapter.drop_relation(new_rows) -%}
{% endmacro %}


{#- Says which partitions (their ids) the model that is being compiled replaces, with or without new rows for them. -#}
{% macro due_partitions(ids) -%}
    {%- set due = graph.get('due_partitions', {}) -%}
    {%- do due.update({model.unique_id ~ invocation_id: ids | map('string') | list}) -%}
    {%- do graph.update({'due_partitions': due}) -%}
{%- endmacro %}
