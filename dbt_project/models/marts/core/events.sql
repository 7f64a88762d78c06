{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='toYYYYMM(occurred_at)',
        order_by=['type', 'contact_id', 'occurred_at'],
        settings={'allow_nullable_key': 1},
        query_settings={'throw_on_max_partitions_per_insert_block': 0}
    )
}}

with

loaded as (

    select * from {{ ref('stg_events__events') }}

),

{% if is_incremental() -%}
built as (

    select source, external_id, email, message_id, occurred_at, contact_id as built_contact_id from {{ this }}

),

loaded_months as (

    select toYYYYMM(occurred_at) as month, count() as rows_count
    from loaded
    group by month

),

built_months as (

    select toYYYYMM(occurred_at) as month, sum(loads_count) as rows_count
    from {{ this }}
    group by month

),

resolved as (

    {{ with_contacts('built') }}

),

-- Whole months are built anew: those in which rows are not accounted for, however late they came and wherever an
-- earlier run was killed, and those in which an event has found its way to another contact.
months as (

    select loaded_months.month as month
    from loaded_months
    left join built_months on built_months.month = loaded_months.month
    where loaded_months.rows_count != coalesce(built_months.rows_count, 0)

    union distinct

    select toYYYYMM(occurred_at) as month
    from resolved
    where coalesce(contact_id, 0) != coalesce(built_contact_id, 0)

),

{% endif -%}
due as (

    select * from loaded
    {% if is_incremental() -%}
    where toYYYYMM(occurred_at) in (select month from months)
    {%- endif %}

),

repeated as (

    select event_id from due
    group by event_id
    having count() > 1

),

-- the load comes first that came first; only what was loaded more than once is sorted for it
once as (

    select *, 1 as loads_count
    from due
    where event_id not in (select event_id from repeated)

    union all

    select *, count() over (partition by event_id) as loads_count
    from due
    where event_id in (select event_id from repeated)
    order by loaded_at
    limit 1 by event_id

),

identified as (

    {{ with_contacts('once') }}

)

select
    ---------- ids
    event_id,
    contact_id,
    message_id,
    external_id,
    anonymous_id,

    ---------- text
    type,
    source,
    email,
    bounce_class,
    url,

    ---------- booleans
    is_machine::Bool as is_machine,

    ---------- numerics
    loads_count::UInt32 as loads_count,

    ---------- semi-structured
    properties,

    ---------- timestamps
    occurred_at,
    received_at,
    loaded_at
from identified
