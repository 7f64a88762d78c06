{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        order_by=['segment', 'contact_id', 'changed_at'],
        full_refresh=false
    )
}}

-- A log of who entered and who left: what differs between the segments now and the log so far is appended. A run that
-- changes nothing appends nothing, and one that was killed half way leaves the rest of the difference to the next.

with

current as (

    select
        segment,
        contact_id,
        count() as rows_count
    from (
        {{ segment_members() }}
    )
    group by segment, contact_id

),

{% if is_incremental() -%}
known as (

    select
        segment::String as segment,
        contact_id,
        argMax(is_member, changed_at) as was_member,
        max(changed_at) as last_changed_at
    from {{ this }}
    group by segment, contact_id

),

{% endif -%}
compared as (

    select
        {% if is_incremental() -%}
        coalesce(current.segment, known.segment) as segment,
        coalesce(current.contact_id, known.contact_id) as contact_id,
        current.rows_count is not null as is_member,
        coalesce(known.was_member, false) as was_member,
        -- the clock may have been set back, as rehearsals do: changes keep their order
        greatest({{ now() }}, coalesce(known.last_changed_at, toDateTime64(0, 3, 'UTC')) + toIntervalMillisecond(1)) as changed_at
    from current
    full outer join known
        on known.segment = current.segment and known.contact_id = current.contact_id
        {%- else -%}
        segment,
        contact_id,
        true as is_member,
        false as was_member,
        {{ now() }} as changed_at
    from current
    {%- endif %}

)

select
    ---------- ids
    segment::LowCardinality(String) as segment,
    contact_id::Int64 as contact_id,

    ---------- booleans
    is_member::Bool as is_member,

    ---------- timestamps
    changed_at
from compared
where is_member != was_member
