{{
    config(
        order_by='identity_id'
    )
}}

{#- the table of the run before tells whose contact has changed -#}
{%- set before = table_before('moved_at') %}

with

records as (

    select * from {{ newest(ref('int_records__combined')) }}

),

hints as (

    -- the rest of a row follows from its identity
    select distinct identity_id, record_identity_id, email_identity_id, message_contact_id
    from {{ ref('int_contacts__hinted') }}

),

record_addresses as (

    select
        arrayJoin(emails) as email,
        {{ identity_of("''", "''", 'email') }} as identity_id,
        contact_id,
        contact_key,
        first_loaded_at
    from records

),

shared_addresses as (

    -- of several contacts that ever had an email, it leads to the one that it names, else to the one we knew first
    select
        identity_id as shared_identity_id,
        argMin(contact_id, tuple(contact_key != email, first_loaded_at, contact_key)) as owner_contact_id
    from record_addresses
    where identity_id in (
        select identity_id from record_addresses
        group by identity_id
        having min(contact_id) != max(contact_id)
    )
    group by identity_id

),

record_emails as (

    select
        identity_id,
        any(record_addresses.contact_id) as any_contact_id,
        any(record_addresses.email) as email
    from record_addresses
    group by identity_id

),

unknown_emails as (

    -- an email that no CRM record had is a contact too, unless the same hint names a record
    select
        email_identity_id as identity_id,
        any(email) as email
    from {{ ref('int_contacts__hinted') }}
    where
        message_contact_id = 0
        and email_identity_id not in (select identity_id from record_addresses)
        and (record_identity_id = 0 or record_identity_id not in (select identity_id from records))
    group by email_identity_id

),

emails as (

    select
        record_emails.identity_id as identity_id,
        coalesce(shared_addresses.owner_contact_id, record_emails.any_contact_id) as contact_id,
        record_emails.email as email,
        true as is_known_to_crm
    from record_emails
    left any join shared_addresses on shared_addresses.shared_identity_id = record_emails.identity_id

    union all

    select
        identity_id,
        {{ contact_id_of('email') }} as contact_id,
        email,
        false as is_known_to_crm
    from unknown_emails

),

led as (

    -- a contact of the ledger that has merged into another since is found by the address
    select
        hints.identity_id as identity_id,
        multiIf(
            hints.message_contact_id in (select contact_id from records), hints.message_contact_id,
            known_records.known_contact_id is not null, assumeNotNull(known_records.known_contact_id),
            known_emails.known_contact_id is not null, assumeNotNull(known_emails.known_contact_id),
            0
        ) as contact_id,
        hints.message_contact_id as message_contact_id,
        known_records.known_contact_id is not null or coalesce(known_emails.is_known_to_crm, false) as is_known_to_crm
    from hints
    left any join (
        select identity_id as known_identity_id, contact_id as known_contact_id from records
    ) as known_records
        on known_records.known_identity_id = hints.record_identity_id
    left any join (
        select identity_id as known_identity_id, contact_id as known_contact_id, is_known_to_crm from emails
    ) as known_emails
        on known_emails.known_identity_id = hints.email_identity_id
    where hints.identity_id != hints.email_identity_id

),

identities as (

    select
        identity_id,
        contact_id,
        'record' as kind,
        source::LowCardinality(String) as source,
        external_id as identifier,
        0::Int64 as message_contact_id,
        true as is_known_to_crm
    from records

    union all

    select
        identity_id,
        contact_id,
        'email' as kind,
        ''::LowCardinality(String) as source,
        email as identifier,
        0::Int64 as message_contact_id,
        is_known_to_crm
    from emails

    union all

    select
        identity_id,
        contact_id,
        if(message_contact_id != 0, 'message', 'hint') as kind,
        ''::LowCardinality(String) as source,
        '' as identifier,
        message_contact_id,
        is_known_to_crm
    from led
    where contact_id != 0

)

select
    ---------- ids
    identities.identity_id::Int64 as identity_id,
    identities.contact_id::Int64 as contact_id,
    identities.message_contact_id::Int64 as message_contact_id,
    {% if before is none -%}
    0::Int64 as previous_contact_id,
    {%- else -%}
    multiIf(
        known.known_contact_id is null, 0,
        known.known_contact_id != identities.contact_id, known.known_contact_id,
        known.known_previous_contact_id
    )::Int64 as previous_contact_id,
    {%- endif %}

    ---------- text
    identities.kind::LowCardinality(String) as kind,
    identities.source::LowCardinality(String) as source,
    identities.identifier as identifier,

    ---------- booleans
    identities.is_known_to_crm::Bool as is_known_to_crm,

    ---------- timestamps
    {% if before is none -%}
    toDateTime64(0, 3, 'UTC') as moved_at
    {%- else -%}
    if(known.known_contact_id = identities.contact_id, assumeNotNull(known.known_moved_at), {{ stamp() }})::DateTime64(3, 'UTC') as moved_at
    {%- endif %}
from identities
{% if before is not none -%}
left any join (
    select
        identity_id as known_identity_id,
        contact_id as known_contact_id,
        previous_contact_id as known_previous_contact_id,
        moved_at as known_moved_at
    from {{ this }}
) as known
    on known.known_identity_id = identities.identity_id
{%- endif %}
