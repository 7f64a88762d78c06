{#-
    Months (as 201106) of `events` that must be built anew, most days one or two.

    Those in which loaded rows are not accounted for, however late they came and wherever an earlier run was killed; and
    those in which an event has found its way to another contact. Rows that arrive after this query are of a month that
    is built anyway, or make the next run find their month.
-#}
{% macro changed_months() %}
    {%- set query -%}
        with

        built as (

            select source, external_id, email, message_id, occurred_at, contact_id as built_contact_id from {{ this }}

        ),

        loaded_months as (

            select toYYYYMM(occurred_at) as month, count() as rows_count
            from {{ source('raw', 'events') }}
            group by month

        ),

        built_months as (

            select toYYYYMM(occurred_at) as month, sum(loads_count) as rows_count
            from {{ this }}
            group by month

        ),

        resolved as (

            {{ with_contacts('built') }}

        )

        select loaded_months.month as month
        from loaded_months
        left join built_months on built_months.month = loaded_months.month
        where loaded_months.rows_count != coalesce(built_months.rows_count, 0)

        union distinct

        select toYYYYMM(occurred_at) as month
        from resolved
        where coalesce(contact_id, 0) != coalesce(built_contact_id, 0)
    {%- endset -%}
    {#- rows, not columns: an empty answer may come without its columns -#}
    {{ return(run_query(query).rows | map(attribute=0) | sort) }}
{% endmacro %}
