{{
    config(
        order_by=['list', 'contact_id']
    )
}}

with

members as (

    select * from {{ ref('stg_lists__members') }}
    where is_member

),

record_sources as (

    -- a list that does not say whose number it gives means the one source that has it
    select
        identifier,
        any(source) as only_source
    from {{ ref('int_contacts__identified') }}
    where kind = 'record'
    group by identifier
    having count() = 1

),

hinted as (

    select
        members.list as list,
        members.external_id as external_id,
        members.email as email,
        if(members.source = '', coalesce(record_sources.only_source, ''), members.source::String) as source
    from members
    left join record_sources on record_sources.identifier = members.external_id

),

identified as (

    {{ with_contacts('hinted', has_messages=false) }}

)

select distinct
    ---------- ids
    assumeNotNull(identified.contact_id) as contact_id,

    ---------- text
    list
from identified
where identified.contact_id is not null
