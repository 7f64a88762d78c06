with

records as (

    select * from {{ source('raw', 'crm_records') }}

)

select
    ---------- ids
    source,
    external_id,

    ---------- text
    {{ normalised_email("coalesce(properties.email::Nullable(String), '')") }} as email,
    nullIf(trim(properties.first_name::Nullable(String)), '') as first_name,
    nullIf(trim(properties.last_name::Nullable(String)), '') as last_name,
    nullIf(trim(properties.country::Nullable(String)), '') as country,
    nullIf(trim(properties.city::Nullable(String)), '') as city,
    nullIf(trim(properties.timezone::Nullable(String)), '') as timezone,
    nullIf(trim(properties.locale::Nullable(String)), '') as locale,
    nullIf(trim(properties.phone::Nullable(String)), '') as phone,

    ---------- booleans
    is_deleted,

    ---------- timestamps
    parseDateTime64BestEffortOrNull(properties.created_at::Nullable(String), 3, 'UTC') as created_at,
    updated_at,
    loaded_at
from records
where object = 'contact'
