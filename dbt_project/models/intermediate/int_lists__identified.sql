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

only_sources as (

    -- a list that does not say whose number it gives means the one CRM that has it, else the one system whose account it is
    select
        identifier,
        argMax(source, kind = 'record') as only_source
    from {{ ref('int_contacts__identified') }}
    where kind in ('record', 'account') and identifier in (select external_id from members where source = '')
    group by identifier
    having countIf(kind = 'record') = 1 or count() = 1

),

hinted as (

    select
        members.list as list,
        members.external_id as external_id,
        members.email as email,
        if(members.source = '', coalesce(only_sources.only_source, ''), members.source::String) as source
    from members
    left join only_sources on only_sources.identifier = members.external_id

),

identified as (

    -- the CRM record comes first, then the email, then the account; members are few, compared with all that we know
    select
        hinted.list as list,
        coalesce(by_record.contact_of_record, by_email.contact_of_email, by_account.contact_of_account) as contact_id
    from hinted
    left any join (
        select source::String as record_source, identifier as record_id, contact_id as contact_of_record
        from {{ ref('int_contacts__identified') }}
        where kind = 'record' and identifier in (select external_id from members)
    ) as by_record
        on by_record.record_source = hinted.source and by_record.record_id = hinted.external_id
    left any join (
        select identifier as known_email, contact_id as contact_of_email
        from {{ ref('int_contacts__identified') }}
        where kind = 'email' and identifier in (select email from members)
    ) as by_email
        on by_email.known_email = hinted.email
    left any join (
        select source::String as account_source, identifier as account_id, contact_id as contact_of_account
        from {{ ref('int_contacts__identified') }}
        where kind = 'account' and identifier in (select external_id from members)
    ) as by_account
        on by_account.account_source = hinted.source and by_account.account_id = hinted.external_id

)

select distinct
    ---------- ids
    assumeNotNull(identified.contact_id) as contact_id,

    ---------- text
    list
from identified
where identified.contact_id is not null
