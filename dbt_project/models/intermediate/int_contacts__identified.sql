{{
    config(
        order_by='identity_id',
        settings={'index_granularity': 256}
    )
}}

{#-
    The table of the run before tells whose contact has changed; and only what `int_identities__touched` lists is worked out
    again, all else is carried over. Granules are small: the gateway looks up the few identities of a micro-batch.
-#}
{%- set before = identities_before() %}
{%- if before is not none and run_query("select countIf(what = 'all') from " ~ ref('int_identities__touched')).rows[0][0] %}
{%- set is_partial = false %}
{%- else %}
{%- set is_partial = before is not none %}
{%- endif %}

with

touched as (

    select id, what, records_through, hints_through from {{ ref('int_identities__touched') }}

),

{% if is_partial -%}
-- what stays as it is
kept as (

    select * from {{ this }}
    where
        identity_id not in (select id from touched where what in ('record', 'email', 'hint'))

),

{% endif -%}
records as (

    {% if is_partial -%}
    -- those that changed, and those that have an address with one of them; of each the newest row
    select * from {{ ref('int_records__combined') }}
    where identity_id in (select id from touched where what in ('record', 'address'))
    order by recorded_at desc
    limit 1 by identity_id
    {%- else -%}
    select * from {{ newest(ref('int_records__combined')) }}
    {%- endif %}

),

hints as (

    -- the rest of a row follows from its identity
    select distinct identity_id, record_identity_id, email_identity_id, message_contact_id
    from {{ ref('int_contacts__hinted') }}
    {% if is_partial -%}
    where identity_id in (select id from touched where what = 'hint')
    {%- endif %}

),

known_contacts as (

    select identity_id, contact_id from records
    {% if is_partial -%}
    union all

    select identity_id, contact_id from kept
    where
        kind = 'record'
        and identity_id not in (select identity_id from records)
        -- nobody asks for others
        and (
            identity_id in (select record_identity_id from hints)
            or contact_id in (select message_contact_id from hints)
        )
    {%- endif %}

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
    {% if is_partial -%}
    where identity_id in (select id from touched where what = 'email')
    {%- endif %}
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
        and (record_identity_id = 0 or record_identity_id not in (select identity_id from known_contacts))
        {% if is_partial -%}
        and email_identity_id in (select id from touched where what = 'email')
        {%- endif %}
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

known_emails as (

    select identity_id, contact_id, is_known_to_crm from emails
    {% if is_partial -%}
    union all

    select identity_id, contact_id, is_known_to_crm from kept
    where kind = 'email' and identity_id in (select email_identity_id from hints)
    {%- endif %}

),

led as (

    -- a contact of the ledger that has merged into another since is found by the address
    select
        hints.identity_id as identity_id,
        multiIf(
            hints.message_contact_id in (select contact_id from known_contacts), hints.message_contact_id,
            by_record.known_contact_id is not null, assumeNotNull(by_record.known_contact_id),
            by_email.known_contact_id is not null, assumeNotNull(by_email.known_contact_id),
            0
        ) as contact_id,
        hints.message_contact_id as message_contact_id,
        by_record.known_contact_id is not null or coalesce(by_email.is_known_to_crm, false) as is_known_to_crm
    from hints
    left any join (
        select identity_id as known_identity_id, contact_id as known_contact_id from known_contacts
    ) as by_record
        on by_record.known_identity_id = hints.record_identity_id
    left any join (
        select identity_id as known_identity_id, contact_id as known_contact_id, is_known_to_crm from known_emails
    ) as by_email
        on by_email.known_identity_id = hints.email_identity_id
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
    {% if is_partial -%}
    where identity_id in (select id from touched where what = 'record')
    {%- endif %}

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
    toDateTime64(0, 3, 'UTC') as moved_at,
    {% else -%}
    if(known.known_contact_id = identities.contact_id, assumeNotNull(known.known_moved_at), {{ stamp() }})::DateTime64(3, 'UTC') as moved_at,
    {% endif -%}
    -- all that was recorded until then is in here
    assumeNotNull((select max(records_through) from touched)) as records_through,
    assumeNotNull((select max(hints_through) from touched)) as hints_through
from identities
{% if before is not none -%}
left any join (
    select
        identity_id as known_identity_id,
        contact_id as known_contact_id,
        previous_contact_id as known_previous_contact_id,
        moved_at as known_moved_at
    from {{ this }}
    {% if is_partial -%}
    where identity_id in (select id from touched)
    {%- endif %}
) as known
    on known.known_identity_id = identities.identity_id
{%- endif %}
{% if is_partial %}
union all

select
    ---------- ids
    identity_id,
    contact_id,
    message_contact_id,
    previous_contact_id,

    ---------- text
    kind,
    source,
    identifier,

    ---------- booleans
    is_known_to_crm,

    ---------- timestamps
    moved_at,
    assumeNotNull((select max(records_through) from touched)) as records_through,
    assumeNotNull((select max(hints_through) from touched)) as hints_through
from kept
{%- endif %}
