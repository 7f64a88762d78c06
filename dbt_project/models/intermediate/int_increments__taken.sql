{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        order_by='model',
        full_refresh=false
    )
}}

-- Rows are written by the post-hook `note_taken` of other models; the model itself makes the table.

select
    ---------- text
    ''::LowCardinality(String) as model,

    ---------- timestamps
    toDate('1970-01-01') as taken_on,
    toDateTime64(0, 3, 'UTC') as taken_at
where false
