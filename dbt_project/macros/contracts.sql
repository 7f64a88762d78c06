{#-
    Replaces the adapter's macro of this name, which asks for each model and each run which columns its SQL gives. For that
    ClickHouse runs the scalar subqueries in it: at 5 M events a tenth of a day's increment went there.

    A model is checked when its table or view is first made, on a full refresh, and with var `check_contracts`; a segment
    always, since people write them. In between nothing can slip through: rows go into a table of the contract's types, and
    are selected by the contract's names.
-#}
{% macro clickhouse__get_assert_columns_equivalent(sql) -%}
    {%- if flags.FULL_REFRESH or model.fqn[1] == 'segments' or var('check_contracts', false)
        or load_cached_relation(this) is none -%}
        {%- do dbt.clickhouse__get_assert_columns_equivalent(sql) -%}
    {%- endif -%}
{%- endmacro %}


{#-
    Replaces dbt's macro of this name for the same reason: with on_schema_change, an increment that replaces partitions would
    ask for its columns before each run. A table of other columns than the partition's own is refused by ClickHouse when the
    partition is replaced; so the question is left to full refreshes, and to var `check_contracts`.
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
