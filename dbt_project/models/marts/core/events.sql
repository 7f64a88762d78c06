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

{#- whole months are built anew; asked before, so that ClickHouse reads the partitions of these months and no others -#}
{%- set months = changed_months() if is_incremental() else none -%}

with

loaded as (

    select * from {{ ref('stg_events__events') }}

),

due as (

    select * from loaded
    {% if months is not none -%}
    where {{ 'toYYYYMM(occurred_at) in (' ~ months | join(', ') ~ ')' if months else 'false' }}
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
