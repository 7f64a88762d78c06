{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'recorded_at'),
        order_by='visitor_id',
        query_settings={'optimize_on_insert': 0},
        post_hook="{{ note_loads_taken() }}"
    )
}}

-- depends_on: {{ ref('stg_events__events') }}

{#-
    Most visitors are one person, of whom nothing is kept here. The turns of a shared one go on from where they were: what
    happened after all that was loaded then, comes behind them. Only where somebody was named late, and was not known to be
    there at that time, or where a clock runs ahead, all moments of the visitor are read again.
#}

with

{% if is_incremental() -%}
news as (

    select
        {{ visitor_of('source', 'anonymous_id') }} as visitor_id,
        arraySort(groupUniqArray(tuple(occurred_at, {{ person_of('source', 'external_id', 'email') }}))) as moments
    from {{ ref('stg_events__events') }}
    where
        {{ names_visitor() }}
        and loaded_at > {{ last_taken() }}
    group by visitor_id

),

(

    -- a list, as those below, since each name of a CTE is a copy of it that is run again
    select groupArray(tuple(visitor_id, moments)) from news

) as new_moments,

(

    -- those who were told to be several people: when they were first known to be each of them
    select groupArray(tuple(visitor_id, persons, is_ahead))
    from (
        select
            visitor_id,
            arraySort(groupArray(tuple(first_at, person_identity_id))) as persons,
            max(has_ahead) as is_ahead
        from (
            select
                visitor_id,
                person_identity_id,
                min(told.first_at) as first_at,
                max(told.is_ahead) as has_ahead
            from {{ ref('int_visitors__told') }} as told
            where visitor_id in (select arrayJoin(new_moments.1))
            group by visitor_id, person_identity_id
        )
        group by visitor_id
        having count() > 1
    )

) as shared,

(

    select groupArray(tuple(visitor_id, turns))
    from {{ newest(this) }}
    where visitor_id in (select arrayJoin(shared.1))

) as known,

compared as (

    select
        shared_visitors.1 as visitor_id,
        new_visitors.moments as moments,
        -- one who was a single person so far, was that one from the first on
        if(
            notEmpty(known_visitors.turns),
            known_visitors.turns,
            arrayFilter(person -> person.1 <= {{ last_taken() }}, shared_visitors.2)
        ) as turns_before,
        shared_visitors.3
        or (empty(known_visitors.turns) and length(turns_before) > 1)
        or arrayExists(
            moment -> moment.1 <= {{ last_taken() }} and (
                moment.1 < turns_before[1].1
                or turns_before[greatest(arrayLastIndex(turn -> turn.1 <= moment.1, turns_before), 1)].2 != moment.2
            ),
            moments
        ) as is_unsure
    from (select arrayJoin(shared) as shared_visitors) as listed
    left any join (
        select one.1 as visitor_id, one.2 as moments
        from (select arrayJoin(new_moments) as one)
    ) as new_visitors on new_visitors.visitor_id = shared_visitors.1
    left any join (
        select one.1 as visitor_id, one.2 as turns
        from (select arrayJoin(known) as one)
    ) as known_visitors on known_visitors.visitor_id = shared_visitors.1

),

(

    select groupArray(visitor_id) from compared
    where is_unsure

) as unsure,

{% endif -%}
moments as (

    -- of two people named at the same moment one counts, always the same
    select
        visitor_id,
        occurred_at,
        max(named.person_identity_id) as person_identity_id
    from {{ ref('int_visitors__named') }} as named
    where
        {% if is_incremental() -%}
        visitor_id in (select arrayJoin(unsure))
        {%- else -%}
        visitor_id in (
            select visitor_id from {{ ref('int_visitors__told') }}
            group by visitor_id
            having uniqExact(person_identity_id) > 1
        )
        {%- endif %}
    group by visitor_id, occurred_at

),

visitors as (

    select
        visitor_id,
        arraySort(groupArray(tuple(moments.occurred_at, moments.person_identity_id))) as told
    from moments
    group by visitor_id
    {%- if is_incremental() %}

    union all

    select
        visitor_id,
        arrayConcat(
            arrayFilter(turn -> turn.1 <= {{ last_taken() }}, turns_before),
            arrayFilter(
                (moment, following) -> moment.1 > {{ last_taken() }} and moment.1 != following.1,
                moments,
                arrayPushBack(arrayPopFront(moments), tuple(toDateTime64(0, 3, 'UTC'), 0::Int64))
            )
        ) as told
    from compared
    where not is_unsure
    {%- endif %}

),

turned as (

    -- from when it was who
    select
        visitor_id,
        arrayFilter(
            (one, previous) -> one.2 != previous,
            told,
            arrayPushFront(arrayPopBack(arrayMap(one -> one.2, told)), 0)
        ) as turns
    from visitors

)

select
    ---------- ids
    visitor_id::Int64 as visitor_id,

    ---------- semi-structured
    turns::Array(Tuple(DateTime64(3, 'UTC'), Int64)) as turns,

    ---------- timestamps
    {{ stamp() }} as recorded_at
from turned
{%- if is_incremental() %}
where tuple(visitor_id, turns) not in (select arrayJoin(known))
{%- endif %}
