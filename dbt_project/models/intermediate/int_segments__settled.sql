{{
    config(
        order_by=['segment', 'contact_id']
    )
}}

{%- set settled = settled_stays() %}

with

moment as (

    -- a run at the same time may add changes while this one reads
    select max(changed_at) as folded_through from {{ ref('segment_changes') }}

),

changes as (

    select * from {{ ref('segment_changes') }}
    where
        changed_at <= assumeNotNull((select folded_through from moment))
        {% if settled -%}
        and changed_at > {{ settled_through(settled) }}
        {%- endif %}

),

latest as (

    select
        segment,
        contact_id,
        argMax(change, changed_at) as last_change,
        max(changed_at) as last_changed_at
    from changes
    group by segment, contact_id

),

stays as (

    select
        segment,
        contact_id,
        last_changed_at as entered_at
    from latest
    where last_change = 'entered'

    {% if settled -%}
    union all

    select
        segment,
        contact_id,
        entered_at
    from {{ settled }}
    where contact_id not in (select contact_id from latest)

    union all

    -- the few who changed somewhere and stayed here: comparing pairs is dear, so not all are
    select
        segment,
        contact_id,
        entered_at
    from {{ settled }}
    prewhere contact_id in (select contact_id from latest)
    where tuple(segment, contact_id) not in (select tuple(segment, contact_id) from latest)
    {%- endif %}

)

select
    ---------- ids
    segment,
    contact_id,

    ---------- timestamps
    entered_at,
    assumeNotNull((select folded_through from moment)) as folded_through
from stays
