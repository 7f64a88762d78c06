{{
    config(
        order_by=['what', 'id']
    )
}}

{%- set before = identities_before() %}

{%- if before is none %}

select
    ---------- ids
    0::Int64 as id,

    ---------- text
    'all'::LowCardinality(String) as what,

    ---------- timestamps
    assumeNotNull((select max(recorded_at) from {{ ref('int_records__combined') }})) as records_through,
    assumeNotNull((select max(recorded_at) from {{ ref('int_contacts__hinted') }})) as hints_through

{%- else %}

with

known as (

    select * from {{ before }}

),

(select max(records_through) from known) as old_records_through,

(select max(hints_through) from known) as old_hints_through,

records as (

    select identity_id, contact_id, emails
    from {{ ref('int_records__combined') }}
    where recorded_at > assumeNotNull(old_records_through)

),

heard as (

    select identity_id, email_identity_id
    from {{ ref('int_contacts__hinted') }}
    where recorded_at > assumeNotNull(old_hints_through)

),

new_hints as (

    -- the rest of a row follows from its identity, so one that is known says nothing new
    select identity_id, email_identity_id
    from heard
    where identity_id not in (
        select identity_id from known where identity_id in (select identity_id from heard)
    )

),

emails as (

    select {{ identity_of("''", "''", 'arrayJoin(emails)') }} as identity_id
    from records

    union distinct

    select email_identity_id as identity_id from new_hints

    union distinct

    select email_identity_id as identity_id
    from {{ ref('int_contacts__hinted') }}
    where record_identity_id in (select identity_id from records)

),

contacts as (

    select contact_id from records

    union distinct

    select contact_id from known
    where identity_id in (select identity_id from records)

),

touched as (

    select distinct identity_id as id, 'record' as what from records

    union all

    select identity_id as id, 'email' as what from emails

    union all

    select distinct identity_id as id, 'hint' as what
    from {{ ref('int_contacts__hinted') }}
    where
        identity_id in (select identity_id from new_hints)
        or record_identity_id in (select identity_id from records)
        or email_identity_id in (select identity_id from emails)
        or (message_contact_id != 0 and message_contact_id in (select contact_id from contacts))

    union all

    -- of several records that have an email, one is its owner: all of them are compared
    select distinct identity_id as id, 'address' as what
    from (
        select identity_id, {{ identity_of("''", "''", 'arrayJoin(emails)') }} as email_identity_id
        from {{ ref('int_records__combined') }}
    )
    where email_identity_id in (select identity_id from emails)

    union all

    select 0 as id, 'nothing' as what

)

select
    ---------- ids
    id::Int64 as id,

    ---------- text
    what::LowCardinality(String) as what,

    ---------- timestamps
    assumeNotNull((select max(recorded_at) from {{ ref('int_records__combined') }})) as records_through,
    assumeNotNull((select max(recorded_at) from {{ ref('int_contacts__hinted') }})) as hints_through
from touched

{%- endif %}
