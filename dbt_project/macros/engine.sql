{#-
    A table engine with its arguments: engine('ReplacingMergeTree', 'rebuilt_at') for `config(engine=...)`. Say what the
    engine does with rows; that it is replicated on a cluster is `engine_clause`'s business, not a model's.
-#}
{% macro engine(name) -%}
    {{ name }}({{ varargs | join(', ') }})
{%- endmacro %}


{#-
    The same engine, kept on every node of the cluster if the profile names one.

    A table of an engine that is not replicated would exist everywhere and hold rows on the node that dbt talks to alone.
    Paths in the keeper are the server's own (`default_replica_path`, by the table's UUID, so that an exchange of tables
    moves none), unless CLICKHOUSE_REPLICA_PATH and CLICKHOUSE_REPLICA_NAME say others; a Replicated database takes none.
-#}
{% macro replicated(engine) -%}
    {%- set database_engine = target.get('database_engine') or '' -%}
    {%- set has_replicas = target.get('cluster') or 'Replicated' in database_engine -%}
    {%- set family = engine.split('(')[0] | trim -%}
    {%- if not has_replicas or not family.endswith('MergeTree') or family.startswith(('Replicated', 'Shared')) -%}
        {{ return(engine) }}
    {%- endif -%}
    {%- set places = [] -%}
    {%- if env_var('CLICKHOUSE_REPLICA_PATH', '') and 'Replicated' not in database_engine -%}
        {%- do places.append("'" ~ env_var('CLICKHOUSE_REPLICA_PATH') ~ "'") -%}
        {%- do places.append("'" ~ env_var('CLICKHOUSE_REPLICA_NAME', '{replica}') ~ "'") -%}
    {%- endif -%}
    {%- set own = engine.split('(', 1)[1].rsplit(')', 1)[0] | trim if '(' in engine else '' -%}
    {%- if own -%}
        {%- do places.append(own) -%}
    {%- endif -%}
    {{ return('Replicated' ~ family ~ '(' ~ places | join(', ') ~ ')') }}
{%- endmacro %}


{#-
    Replaces the adapter's macro of this name, which every table, incremental model and seed writes its engine with: so no
    model can be forgotten, and one parsed project serves both kinds of warehouse.
-#}
{% macro engine_clause() %}
    engine = {{ replicated(config.get('engine', default='MergeTree()')) }}
{%- endmacro %}


{#- Replaces the adapter's macro of this name, which forgets the cluster: indexes and projections of a table just made. -#}
{% macro add_index_and_projections(relation) %}
    {%- set parts = [] -%}
    {%- for projection in config.get('projections', default=[]) -%}
        {%- do parts.append('add ' ~ clickhouse_projection_ddl(projection)) -%}
    {%- endfor -%}
    {%- for index in config.get('indexes', default=[]) -%}
        {%- do parts.append('add index ' ~ index['name'] ~ ' ' ~ index['definition']) -%}
    {%- endfor -%}
    {%- if parts -%}
        {%- call statement('add_projections_and_indexes') -%}
            alter table {{ relation }} {{ on_cluster_clause(relation) }} {{ parts | join(', ') }}
        {%- endcall -%}
    {%- endif -%}
{%- endmacro %}
