{{
    config(
        order_by=['kind', 'identifier', 'source']
    )
}}

with

versions as (

    select * from {{ ref('stg_crm__contacts') }}

),

events as (

    select * from {{ ref('stg_events__events') }}

),

consents as (

    select * from {{ ref('stg_consents__changes') }}

),

records as (

    -- the first email ever loaded names the contact, so that a change of email keeps it
    select
        source,
        external_id,
        argMinIf(email, tuple(loaded_at, updated_at), email != '') as first_email,
        if(first_email != '', first_email, concat(source, ':', external_id)) as contact_key,
        min(loaded_at) as first_loaded_at
    from versions
    group by source, external_id

),

record_emails as (

    -- of several contacts that ever had an email, it leads to the one that it names, else to the one we knew first
    select
        versions.email as email,
        argMin(
            records.contact_key,
            tuple(records.contact_key != versions.email, records.first_loaded_at, records.contact_key)
        ) as contact_key
    from versions
    inner join records
        on records.source = versions.source and records.external_id = versions.external_id
    where versions.email != ''
    group by versions.email

),

hints as (

    select source, external_id, email from events where email != ''

    union distinct

    select source, external_id, email from consents where email != ''

),

hinted_emails as (

    -- an email that no CRM record had is a contact too, unless the same hint names a record
    select distinct hints.email as email
    from hints
    left anti join records
        on records.source = hints.source and records.external_id = hints.external_id
    where hints.email not in (select email from record_emails)

),

identifiers as (

    select 'record' as kind, source, external_id as identifier, contact_key, true as is_known_to_crm
    from records

    union all

    select 'email' as kind, '' as source, email as identifier, contact_key, true as is_known_to_crm
    from record_emails

    union all

    select 'email' as kind, '' as source, email as identifier, email as contact_key, false as is_known_to_crm
    from hinted_emails

)

select
    ---------- ids
    {{ contact_id_of('contact_key') }} as contact_id,

    ---------- text
    kind::LowCardinality(String) as kind,
    source::LowCardinality(String) as source,
    identifier,
    contact_key,

    ---------- booleans
    is_known_to_crm::Bool as is_known_to_crm
from identifiers
