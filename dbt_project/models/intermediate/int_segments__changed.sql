{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        partition_by='toMonday(changed_at)',
        order_by=['segment', 'contact_id', 'changed_at'],
        full_refresh=false
    )
}}

-- A log of who entered and who left: what differs between the segments now and what is known is appended. A run that
-- changes nothing appends nothing, and one that was killed half way leaves the rest of the difference to the next.

{%- set settled = settled_stays() if is_incremental() else none %}

with

current as (

    {{ segment_bits() }}

),

{% if is_incremental() -%}
-- what has been noted since stays were last settled, never the whole log
noted as (

    select
        segment::String as segment,
        contact_id,
        argMax(is_member, changed_at) as was_member
    from {{ this }}
    {% if settled -%}
    where changed_at > {{ settled_through(settled) }}
    {%- endif %}
    group by segment, contact_id

),

known as (

    {% if settled -%}
    select
        segment::String as segment,
        contact_id,
        'settled' as kind
    from {{ settled }}

    union all

    {% endif -%}
    select
        segment,
        contact_id,
        if(was_member, 'entered', 'left') as kind
    from noted

),

numbered as (

    select
        contact_id,
        kind,
        {{ segment_number('segment') }} as number
    from known
    where has({{ segment_array() }}, segment)

),

{% endif -%}
bits as (

    select
        contact_id,
        word,
        bit as current_bit,
        0::UInt64 as settled_bit,
        0::UInt64 as entered_bit,
        0::UInt64 as left_bit
    from current

    {% if is_incremental() -%}
    union all

    select
        contact_id,
        intDiv(number, 64)::UInt16 as word,
        0::UInt64 as current_bit,
        if(kind = 'settled', bitShiftLeft(1::UInt64, number % 64), 0) as settled_bit,
        if(kind = 'entered', bitShiftLeft(1::UInt64, number % 64), 0) as entered_bit,
        if(kind = 'left', bitShiftLeft(1::UInt64, number % 64), 0) as left_bit
    from numbered
    {%- endif %}

),

compared as (

    select
        contact_id,
        word,
        groupBitOr(current_bit) as is_in,
        bitAnd(bitOr(groupBitOr(settled_bit), groupBitOr(entered_bit)), bitNot(groupBitOr(left_bit))) as was_in
    from bits
    group by contact_id, word
    having is_in != was_in

),

changes as (

    select
        {{ segment_array() }}[word * 64 + position + 1] as segment,
        contact_id,
        bitTest(is_in, position) as is_member
    from compared
    array join bitPositionsToArray(bitXor(is_in, was_in)) as position

    {% if is_incremental() -%}
    union all

    -- a segment whose file is gone is left by everybody
    select
        segment,
        contact_id,
        false as is_member
    from known
    where not has({{ segment_array() }}, segment)
    group by segment, contact_id
    having countIf(kind = 'left') = 0
    {%- endif %}

)

select
    ---------- ids
    segment::LowCardinality(String) as segment,
    contact_id::Int64 as contact_id,

    ---------- booleans
    is_member::Bool as is_member,

    ---------- timestamps
    {% if is_incremental() -%}
    -- one moment for all that a run notes, later than all before: the clock may have been set back, as rehearsals do
    greatest({{ now() }}, assumeNotNull((select max(changed_at) from {{ this }})) + toIntervalMillisecond(1)) as changed_at
    {%- else -%}
    {{ now() }} as changed_at
    {%- endif %}
from changes
