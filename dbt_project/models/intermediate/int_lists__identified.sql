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
    where kind = 'record' and identifier in (select external_id from members where source = '')
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

owners as (

    -- members are few, compared with all that we know
    select identity_id as owner_identity_id, contact_id as owner_contact_id
    from {{ ref('int_contacts__identified') }}
    where identity_id in (
        select arrayJoin([
            {{ identity_of('source', 'external_id', "''") }}, {{ identity_of("''", "''", 'email') }}
        ])
        from hinted
    )

),

identified as (

    -- the CRM record comes first, then the email
    select
        hinted.list as list,
        coalesce(by_record.owner_contact_id, by_email.owner_contact_id) as contact_id
    from hinted
    left any join owners as by_record
        on by_record.owner_identity_id = if(
            hinted.external_id = '', 0, {{ identity_of('hinted.source', 'hinted.external_id', "''") }}
        )
    left any join owners as by_email
        on by_email.owner_identity_id = {{ identity_of("''", "''", 'hinted.email') }}

)

select distinct
    ---------- ids
    assumeNotNull(identified.contact_id) as contact_id,

    ---------- text
    list
from identified
where identified.contact_id is not null
