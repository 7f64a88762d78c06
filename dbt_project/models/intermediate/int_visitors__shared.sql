{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'recorded_at'),
        order_by='visitor_id',
        query_settings={'optimize_on_insert': 0},
        post_hook="{{ note_taken_from(ref('int_visitors__told')) }}"
    )
}}

{#- most visitors are one person, of whom nothing is kept here; what a shared one did is read again when it is named anew -#}
{%- set has_any = true %}
{%- if is_incremental() and execute %}
{%- set query -%}
    select count() from (
        select visitor_id from {{ ref('int_visitors__told') }}
        where visitor_id in (
            select visitor_id from {{ ref('int_visitors__told') }}
            where recorded_at > {{ last_taken() }}
        )
        group by visitor_id
        having uniqExact(person_identity_id) > 1
    )
{%- endset %}
{%- set has_any = run_query(query).rows[0][0] | int > 0 %}
{%- endif %}

{%- if not has_any %}

{{ nothing_due() }}

{%- else %}

with

shared as (

    select visitor_id
    from {{ ref('int_visitors__told') }}
    {% if is_incremental() -%}
    where visitor_id in (
        select visitor_id from {{ ref('int_visitors__told') }}
        where recorded_at > {{ last_taken() }}
    )
    {%- endif %}
    group by visitor_id
    having uniqExact(person_identity_id) > 1

),

moments as (

    -- of two people named at the same moment one counts, always the same
    select
        visitor_id,
        occurred_at,
        max(named.person_identity_id) as person_identity_id
    from {{ ref('int_visitors__named') }} as named
    where visitor_id in (select visitor_id from shared)
    group by visitor_id, occurred_at

),

visitors as (

    select
        visitor_id,
        arraySort(groupArray(tuple(moments.occurred_at, moments.person_identity_id))) as told
    from moments
    group by visitor_id

)

select
    ---------- ids
    visitor_id::Int64 as visitor_id,

    ---------- semi-structured
    -- from when it was who
    arrayFilter(
        (one, previous) -> one.2 != previous,
        told,
        arrayPushFront(arrayPopBack(arrayMap(one -> one.2, told)), 0)
    )::Array(Tuple(DateTime64(3, 'UTC'), Int64)) as turns,

    ---------- timestamps
    {{ stamp() }} as recorded_at
from visitors

{%- endif %}
