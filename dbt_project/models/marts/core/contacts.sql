{{
    config(
        order_by='contact_id'
    )
}}

with

versions as (

    select * from {{ ref('stg_crm__contacts') }}

),

identifiers as (

    select * from {{ ref('int_contacts__identified') }}

),

events as (

    select * from {{ ref('events') }}

),

consents as (

    select * from {{ ref('stg_consents__changes') }}

),

records as (

    -- each record as it is now
    select
        source,
        external_id,
        argMax(
            tuple(email, first_name, last_name, country, city, timezone, locale, phone, is_deleted),
            tuple(versions.updated_at, loaded_at)
        ) as current,
        argMaxIf(email, tuple(versions.updated_at, loaded_at), email != '') as last_email,
        min(coalesce(versions.created_at, versions.updated_at)) as created_at,
        max(versions.updated_at) as updated_at
    from versions
    group by source, external_id

),

crm_contacts as (

    -- several records of one contact: of each value the newest that is known, of records that were not deleted first
    select
        identifiers.contact_id as contact_id,
        coalesce(
            nullIf(argMaxIf(current.1, tuple(not current.9, records.updated_at), current.1 != ''), ''),
            argMax(last_email, records.updated_at)
        ) as email,
        argMax(current.2, tuple(not current.9, records.updated_at)) as first_name,
        argMax(current.3, tuple(not current.9, records.updated_at)) as last_name,
        argMax(current.4, tuple(not current.9, records.updated_at)) as country,
        argMax(current.5, tuple(not current.9, records.updated_at)) as city,
        argMax(current.6, tuple(not current.9, records.updated_at)) as timezone,
        argMax(current.7, tuple(not current.9, records.updated_at)) as locale,
        argMax(current.8, tuple(not current.9, records.updated_at)) as phone,
        arraySort(groupUniqArray(records.source::String)) as sources,
        min(current.9) as is_deleted,
        min(records.created_at) as created_at,
        max(records.updated_at) as updated_at
    from records
    inner join identifiers
        on
            identifiers.kind = 'record'
            and identifiers.source = records.source
            and identifiers.identifier = records.external_id
    group by identifiers.contact_id

),

hints as (

    select email, source, occurred_at from events where email != ''

    union all

    select email, source, occurred_at from consents where email != ''

),

hinted_contacts as (

    select
        identifiers.contact_id as contact_id,
        identifiers.identifier as email,
        arraySort(groupUniqArray(hints.source::String)) as sources,
        min(hints.occurred_at) as created_at,
        max(hints.occurred_at) as updated_at
    from identifiers
    inner join hints on hints.email = identifiers.identifier
    where identifiers.kind = 'email' and not identifiers.is_known_to_crm
    group by identifiers.contact_id, identifiers.identifier

),

contacts as (

    select * from crm_contacts

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

)

select
    ---------- ids
    contact_id,

    ---------- text
    email::String as email,
    first_name::Nullable(String) as first_name,
    last_name::Nullable(String) as last_name,
    country::Nullable(String) as country,
    city::Nullable(String) as city,
    timezone::Nullable(String) as timezone,
    locale::Nullable(String) as locale,
    phone::Nullable(String) as phone,
    sources,

    ---------- booleans
    is_deleted::Bool as is_deleted,

    ---------- timestamps
    created_at::DateTime64(3, 'UTC') as created_at,
    updated_at
from contacts
