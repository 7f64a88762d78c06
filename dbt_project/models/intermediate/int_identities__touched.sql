{{
    config(
        order_by=['what', 'id']
    )
}}

-- depends_on: {{ ref('stg_identities__changes') }}, {{ ref('int_visitors__shared') }}

{%- set before = identities_before() %}
{%- set visitors_seen -%}
    assumeNotNull(greatest(
        (select max(recorded_at) from {{ ref('int_visitors__told') }}),
        (select max(recorded_at) from {{ ref('int_visitors__shared') }})
    ))
{%- endset %}

{%- if before is none %}

select
    ---------- ids
    0::Int64 as id,

    ---------- text
    'all'::LowCardinality(String) as what,

    ---------- timestamps
    assumeNotNull((select max(recorded_at) from {{ ref('int_records__combined') }})) as records_through,
    assumeNotNull((select max(recorded_at) from {{ ref('int_contacts__hinted') }})) as hints_through,
    {{ visitors_seen }} as visitors_through

{%- else %}

{#- constants: as subqueries they would be looked at wherever they stand -#}
{%- set query -%}
    select toString(max(records_through)), toString(max(hints_through)), toString(max(visitors_through)) from {{ before }}
{%- endset %}
{%- set through = run_query(query).rows[0] %}

-- Lists, since each of them is asked for several times, and each name of a CTE is a copy of it that is looked at and run again.

with

known as (

    select * from {{ before }}

),

(

    -- they are few, and one that was undone counts as much as one that is new: all are looked at
    select groupUniqArray(identity_id)
    from {{ ref('stg_identities__changes') }}
    where action = 'split'

) as split_ids,

records as (

    select identity_id, contact_id, emails
    from {{ ref('int_records__combined') }}
    where
        recorded_at > toDateTime64('{{ through[0] }}', 3, 'UTC')
        or identity_id in (select arrayJoin(split_ids))

),

(

    select groupUniqArray(identity_id) from records

) as record_ids,

heard as (

    select identity_id, record_identity_id, email_identity_id
    from {{ ref('int_contacts__hinted') }}
    where recorded_at > toDateTime64('{{ through[1] }}', 3, 'UTC')

),

(

    -- the rest of a row follows from its identity, so one that is known says nothing new
    select tuple(groupUniqArray(identity_id), groupUniqArray(email_identity_id))
    from heard
    where identity_id not in (
        select identity_id from known where identity_id in (select identity_id from heard)
    )

) as new_hints,

(

    select groupUniqArray(identity_id)
    from (
        select {{ identity_of("''", "''", 'arrayJoin(emails)') }} as identity_id
        from records

        union all

        select arrayJoin(new_hints.2) as identity_id

        union all

        select email_identity_id as identity_id
        from {{ ref('int_contacts__hinted') }}
        where
            record_identity_id in (select arrayJoin(record_ids))
            or email_identity_id in (select arrayJoin(split_ids))
    )

) as email_ids,

(

    -- when something was first heard of may change, too
    select groupUniqArray(identity_id)
    from (
        select record_identity_id as identity_id from heard
        where record_identity_id != 0

        union all

        select record_identity_id as identity_id
        from {{ ref('int_contacts__hinted') }}
        where
            record_identity_id != 0
            and (
                email_identity_id in (select arrayJoin(email_ids))
                or record_identity_id in (select arrayJoin(split_ids))
            )
    )

) as named_ids,

(

    -- ids that no CRM knows
    select groupArray(identity_id)
    from (select arrayJoin(named_ids) as identity_id)
    where identity_id not in (
        select identity_id from {{ ref('int_records__combined') }}
        where identity_id in (select arrayJoin(named_ids))
    )

) as account_ids,

turned as (

    select visitor_id, person_identity_id
    from {{ ref('int_visitors__told') }}
    where visitor_id in (
        select visitor_id from {{ ref('int_visitors__shared') }}
        where recorded_at > toDateTime64('{{ through[2] }}', 3, 'UTC')
    )

),

passed as (

    -- though nobody new was told, what such a visitor did may have passed from one contact to another
    select turned.visitor_id as visitor_id
    from turned
    left any join (
        select identity_id as known_identity_id, contact_id as known_contact_id
        from known
        where identity_id in (select person_identity_id from turned)
    ) as people
        on people.known_identity_id = turned.person_identity_id
    group by visitor_id
    having min(coalesce(people.known_contact_id, 0)) != max(coalesce(people.known_contact_id, 0))

),

visitors as (

    select visitor_id, person_identity_id
    from {{ ref('int_visitors__told') }}
    where visitor_id in (
        -- somebody who was not known to be there, or not so early
        select visitor_id from {{ ref('int_visitors__told') }}
        where visitor_id in (
            select visitor_id from {{ ref('int_visitors__told') }}
            where recorded_at > toDateTime64('{{ through[2] }}', 3, 'UTC')
        )
        group by visitor_id, person_identity_id
        having min(first_told).2 > toDateTime64('{{ through[2] }}', 3, 'UTC')

        union distinct

        select visitor_id from passed

        union distinct

        select visitor_id from {{ ref('int_visitors__told') }}
        where
            person_identity_id in (select arrayJoin(record_ids))
            or person_identity_id in (select arrayJoin(email_ids))
            or person_identity_id in (select arrayJoin(account_ids))
    )

),

contacts as (

    select contact_id from records

    union distinct

    select arrayJoin([contact_id, named_contact_id, own_contact_id]) as contact_id from known
    where identity_id in (select arrayJoin(record_ids))

),

touched as (

    select arrayJoin(record_ids) as id, 'record' as what

    union all

    select arrayJoin(email_ids) as id, 'email' as what

    union all

    select arrayJoin(account_ids) as id, 'account' as what

    union all

    select distinct visitor_id as id, 'visitor' as what from visitors

    union all

    -- what such a visitor did as one person and as another
    select distinct {{ visitor_as('visitor_id', 'person_identity_id', '0') }} as id, 'visit' as what from visitors

    union all

    select distinct identity_id as id, 'hint' as what
    from {{ ref('int_contacts__hinted') }}
    where
        identity_id in (select arrayJoin(new_hints.1))
        or record_identity_id in (select arrayJoin(record_ids))
        or email_identity_id in (select arrayJoin(email_ids))
        or (message_contact_id != 0 and message_contact_id in (select contact_id from contacts))

    union all

    -- of several records that have an email, one is its owner: all of them are compared
    select distinct identity_id as id, 'address' as what
    from (
        select identity_id, {{ identity_of("''", "''", 'arrayJoin(emails)') }} as email_identity_id
        from {{ ref('int_records__combined') }}
    )
    where email_identity_id in (select arrayJoin(email_ids))

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
    {{ visitors_seen }} as visitors_through
from touched

{%- endif %}
