{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='toStartOfMonth(day)',
        order_by=['segment', 'day'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

{#-
    The last day built is done again, for it was not over, and all days after it; the rest of its month is kept. If the clock
    was set back, changes have come on earlier days, though on none before this one.
-#}
{%- set today %}toDate({{ now() }}, 'UTC'){% endset %}
{%- set due = 'least(assumeNotNull((select max(day) from ' ~ this ~ ')), ' ~ today ~ ')' if is_incremental() else none %}

with

changes as (

    select
        segment,
        toDate(changed_at, 'UTC') as day,
        countIf(change = 'entered') as entered_count,
        countIf(change = 'left') as left_count
    from {{ ref('segment_changes') }}
    {% if due -%}
    where changed_at >= {{ due }}
    {%- endif %}
    group by segment, day

),

{% if due -%}
earlier as (

    select
        segment,
        members_count
    from {{ this }}
    where day = {{ due }} - 1

),

{% endif -%}
starts as (

    select
        segment,
        min(start_day) as start_day,
        sum(start_count) as start_count
    from (
        select
            segment,
            day as start_day,
            0 as start_count
        from changes
        {% if due -%}
        union all

        select
            segment,
            {{ due }} as start_day,
            members_count as start_count
        from earlier
        {%- endif %}
    )
    group by segment

),

days as (

    -- every day to this one, whether something changed on it or not
    select
        segment,
        start_count,
        arrayJoin(
            arrayMap(
                number -> start_day + number,
                range(toUInt32(greatest({{ today }}, assumeNotNull((select max(day) from changes))) - start_day + 1))
            )
        ) as day
    from starts

),

counted as (

    select
        days.segment as segment,
        days.day as day,
        days.start_count as start_count,
        coalesce(changes.entered_count, 0) as entered_count,
        coalesce(changes.left_count, 0) as left_count
    from days
    left join changes on changes.segment = days.segment and changes.day = days.day

)

select
    ---------- ids
    segment,
    day,

    ---------- numerics
    (
        start_count + sum(entered_count::Int64 - left_count::Int64) over (
            partition by segment order by day
            rows between unbounded preceding and current row
        )
    )::UInt64 as members_count,
    entered_count::UInt64 as entered_count,
    left_count::UInt64 as left_count
from counted
{% if due -%}
union all

select
    segment,
    day,
    members_count,
    entered_count,
    left_count
from {{ this }}
where day >= toStartOfMonth({{ due }}) and day < {{ due }}
{%- endif %}
