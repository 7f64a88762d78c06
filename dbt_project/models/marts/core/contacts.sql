{{
    config(
        order_by='contact_id'
    )
}}

{%- set fields = [
    'email', 'first_name', 'last_name', 'country', 'city', 'timezone', 'locale', 'phone', 'mobile_phone'
] %}

with

moved as (

    -- records that a merge or a split has given to another contact than they name
    select identity_id as moved_identity_id, contact_id as moved_contact_id
    from {{ ref('int_contacts__identified') }}
    where kind = 'record' and contact_id != own_contact_id

),

(

    -- addresses that were taken out of a contact by hand, with whom they were given to: few, and asked for by each record
    select groupUniqArray(tuple(identifier, contact_id))
    from {{ ref('int_contacts__identified') }}
    where kind = 'email' and named_contact_id != own_contact_id

) as split_emails,

records as (

    -- whose address is somebody else's now, is not written to there
    select
        loaded.* except (contact_id, email, last_email),
        coalesce(moved.moved_contact_id, loaded.contact_id) as contact_id,
        if(
            loaded.email in (select arrayJoin(split_emails.1))
                and (loaded.email, contact_id) not in (select arrayJoin(split_emails)),
            '',
            loaded.email
        ) as email,
        if(
            loaded.last_email in (select arrayJoin(split_emails.1))
                and (loaded.last_email, contact_id) not in (select arrayJoin(split_emails)),
            '',
            loaded.last_email
        ) as last_email
    from {{ newest(ref('int_records__combined'), 'loaded') }}
    left any join moved on moved.moved_identity_id = loaded.identity_id

),

(

    -- the records of those who have several, by the key of the table, so that no others are read for them
    select groupArrayArray(identity_ids)
    from (
        select groupArray(identity_id) as identity_ids
        from records
        group by contact_id
        having count() > 1
    )

) as several,

-- most contacts have one record, and nothing has to be compared
single_contacts as (

    select
        contact_id,
        if(email != '', email, last_email) as email,
        first_name,
        last_name,
        country,
        city,
        timezone,
        locale,
        phone,
        [source::String] as sources,
        is_deleted,
        created_at,
        updated_at
    from records
    where identity_id not in (select arrayJoin(several))

),

combined_contacts as (

    -- several records of one contact: of each value the newest that is known, of records that were not deleted first
    select
        records.contact_id as contact_id,
        coalesce(
            nullIf(argMaxIf(records.email, tuple(not records.is_deleted, records.updated_at), records.email != ''), ''),
            argMax(records.last_email, records.updated_at)
        ) as email,
        argMax(records.first_name, tuple(not records.is_deleted, records.updated_at)) as first_name,
        argMax(records.last_name, tuple(not records.is_deleted, records.updated_at)) as last_name,
        argMax(records.country, tuple(not records.is_deleted, records.updated_at)) as country,
        argMax(records.city, tuple(not records.is_deleted, records.updated_at)) as city,
        argMax(records.timezone, tuple(not records.is_deleted, records.updated_at)) as timezone,
        argMax(records.locale, tuple(not records.is_deleted, records.updated_at)) as locale,
        argMax(
            records.phone, tuple({{ is_e164('records.phone') }}, not records.is_deleted, records.updated_at)
        ) as phone,
        arraySort(groupUniqArray(records.source::String)) as sources,
        min(records.is_deleted) as is_deleted,
        min(records.created_at) as created_at,
        max(records.updated_at) as updated_at
    from records
    where records.identity_id in (select arrayJoin(several))
    group by records.contact_id

),

seen_emails as (

    select
        identifiers.contact_id as contact_id,
        identifiers.identifier as email,
        hints.sources as sources,
        hints.first_seen_at as first_seen_at,
        hints.last_seen_at as last_seen_at
    from {{ ref('int_contacts__hinted') }} as hints
    inner join {{ ref('int_contacts__identified') }} as identifiers
        on identifiers.identity_id = hints.email_identity_id
    where
        identifiers.kind = 'email'
        and not identifiers.is_known_to_crm
        and hints.message_contact_id = 0

    union all

    -- a record has it, but it was given to a contact of its own
    select
        split.2 as contact_id,
        split.1 as email,
        [holders.source] as sources,
        holders.created_at as first_seen_at,
        holders.updated_at as last_seen_at
    from (
        select source::String as source, arrayJoin(emails) as email, created_at, updated_at
        from {{ newest(ref('int_records__combined')) }}
        where hasAny(emails, split_emails.1)
    ) as holders
    inner join (select arrayJoin(split_emails) as split) as splits on splits.split.1 = holders.email

),

hinted_contacts as (

    -- of several addresses that were merged the one that was seen last
    select
        seen_emails.contact_id as contact_id,
        argMax(seen_emails.email, tuple(seen_emails.last_seen_at, seen_emails.email)) as email,
        arraySort(groupUniqArrayArray(seen_emails.sources)) as sources,
        min(seen_emails.first_seen_at) as created_at,
        max(seen_emails.last_seen_at) as updated_at
    from seen_emails
    group by seen_emails.contact_id

),

decided as (

    -- few: those whose sources disagreed, and the two-way sync decided
    select
        contact_id as decided_contact_id,
        {%- for field in fields %}
        countIf(field = '{{ field }}') > 0 as is_{{ field }}_decided,
        anyIf(value, field = '{{ field }}') as decided_{{ field }},
        {%- endfor %}
        anyIf(losers, field = 'phone') as phone_losers
    from {{ ref('stg_crm__decisions') }}
    where field in ('{{ fields | join("', '") }}')
    group by contact_id

),

recorded_contacts as (

    select * from single_contacts

    union all

    select * from combined_contacts

),

contacts as (

    -- merged: known to a CRM, and seen under an address that no CRM has
    select
        recorded_contacts.contact_id as contact_id,
        if(recorded_contacts.email != '', recorded_contacts.email, coalesce(hinted_contacts.email, '')) as email,
        recorded_contacts.first_name as first_name,
        recorded_contacts.last_name as last_name,
        recorded_contacts.country as country,
        recorded_contacts.city as city,
        recorded_contacts.timezone as timezone,
        recorded_contacts.locale as locale,
        recorded_contacts.phone as phone,
        if(
            empty(hinted_contacts.sources),
            recorded_contacts.sources,
            arraySort(arrayDistinct(arrayConcat(recorded_contacts.sources, hinted_contacts.sources)))
        ) as sources,
        recorded_contacts.is_deleted as is_deleted,
        least(recorded_contacts.created_at, coalesce(hinted_contacts.created_at, recorded_contacts.created_at)) as created_at,
        greatest(recorded_contacts.updated_at, coalesce(hinted_contacts.updated_at, recorded_contacts.updated_at)) as updated_at
    from recorded_contacts
    left any join hinted_contacts on hinted_contacts.contact_id = recorded_contacts.contact_id

    union all

    select
        contact_id,
        email,
        null as first_name,
        null as last_name,
        null as country,
        null as city,
        null as timezone,
        null as locale,
        null as phone,
        sources,
        false as is_deleted,
        created_at,
        updated_at
    from hinted_contacts
    where contact_id not in (select contact_id from records)

)

select
    ---------- ids
    contact_id,

    ---------- text
    -- nobody loses an address by a decision
    if(is_email_decided and decided_email != '', {{ normalised_email('decided_email') }}, email)::String as email,
    {%- for field in fields if field not in ('email', 'phone', 'mobile_phone') %}
    if(is_{{ field }}_decided, nullIf(decided_{{ field }}, ''), {{ field }})::Nullable(String) as {{ field }},
    {%- endfor %}
    multiIf(
        is_mobile_phone_decided and decided_mobile_phone != '',
        coalesce({{ e164('decided_mobile_phone') }}, decided_mobile_phone),
        -- a landline does not outdo a mobile: only a number that has lost is replaced
        is_phone_decided and (
            phone is null
            or has(
                arrayMap(
                    loser -> coalesce({{ e164("JSONExtractString(loser, 'value')") }}, JSONExtractString(loser, 'value')),
                    JSONExtractArrayRaw(assumeNotNull(phone_losers))
                ),
                phone
            )
        ),
        nullIf(coalesce({{ e164('decided_phone') }}, decided_phone), ''),
        phone
    )::Nullable(String) as phone,
    sources,

    ---------- booleans
    is_deleted::Bool as is_deleted,

    ---------- timestamps
    created_at::DateTime64(3, 'UTC') as created_at,
    updated_at
from contacts
left any join decided on decided.decided_contact_id = contacts.contact_id
