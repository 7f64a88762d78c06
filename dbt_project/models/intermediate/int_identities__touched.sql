{{
    config(
        order_by=['what', 'id']
    )
}}

-- depends_on: {{ ref('stg_identities__changes') }}

{%- set before = identities_before() %}

{%- if before is none %}

select
    ---------- ids
    0::Int64 as id,

    ---------- text
    'all'::LowCardinality(String) as what,

    ---------- timestamps
    assumeNotNull((select max(recorded_at) from {{ ref('int_records__combined') }})) as records_through,
    assumeNotNull((select max(recorded_at) from {{ ref('int_contacts__hinted') }})) as hints_through,
    assumeNotNull((select max(recorded_at) from {{ ref('int_visitors__told') }})) as visitors_through

{%- else %}

with

known as (

    select * from {{ before }}

),

(select max(records_through) from known) as old_records_through,

(select max(hints_through) from known) as old_hints_through,

(select max(visitors_through) from known) as old_visitors_through,

splits as (

    -- they are few, and one that was undone counts as much as one that is new: all are looked at
    select distinct identity_id as split_identity_id
    from {{ ref('stg_identities__changes') }}
    where action = 'split'

),

records as (

    select identity_id, contact_id, emails
    from {{ ref('int_records__combined') }}
    where
        recorded_at > assumeNotNull(old_records_through)
        or identity_id in (select split_identity_id from splits)

),

heard as (

    select identity_id, record_identity_id, email_identity_id
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
    where
        record_identity_id in (select identity_id from records)
        or email_identity_id in (select split_identity_id from splits)

),

named as (

    -- when something was first heard of may change, too
    select record_identity_id as identity_id from heard
    where record_identity_id != 0

    union distinct

    select record_identity_id as identity_id
    from {{ ref('int_contacts__hinted') }}
    where
        record_identity_id != 0
        and (
            email_identity_id in (select identity_id from emails)
            or record_identity_id in (select split_identity_id from splits)
        )

),

accounts as (

    -- ids that no CRM knows
    select identity_id from named
    where identity_id not in (
        select identity_id from {{ ref('int_records__combined') }}
        where identity_id in (select identity_id from named)
    )

),

visitors as (

    select visitor_id, person_identity_id
    from {{ ref('int_visitors__told') }}
    where visitor_id in (
        select visitor_id from {{ ref('int_visitors__told') }}
        where
            recorded_at > assumeNotNull(old_visitors_through)
            or person_identity_id in (select identity_id from records)
            or person_identity_id in (select identity_id from emails)
            or person_identity_id in (select identity_id from accounts)
    )

),

contacts as (

    select contact_id from records

    union distinct

    select arrayJoin([contact_id, named_contact_id, own_contact_id]) as contact_id from known
    where identity_id in (select identity_id from records)

),

touched as (

    select distinct identity_id as id, 'record' as what from records

    union all

    select identity_id as id, 'email' as what from emails

    union all

    select identity_id as id, 'account' as what from accounts

    union all

    select distinct visitor_id as id, 'visitor' as what from visitors

    union all

    -- what such a visitor did as one person and as another
    select distinct {{ visitor_as('visitor_id', 'person_identity_id', '0') }} as id, 'visit' as what from visitors

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
    assumeNotNull((select max(recorded_at) from {{ ref('int_contacts__hinted') }})) as hints_through,
    assumeNotNull((select max(recorded_at) from {{ ref('int_visitors__told') }})) as visitors_through
from touched

{%- endif %}
