{%- set phones = ['mobile_phone', 'mobilephone', 'MobilePhone', 'phone', 'Phone'] -%}
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
    -- the first that names its country, a mobile before a landline; else the first as it was given
    coalesce(
        {%- for name in phones %}
        {{ e164('properties.' ~ name ~ '::Nullable(String)') }},
        {%- endfor %}
        {%- for name in phones %}
        nullIf(trim(properties.{{ name }}::Nullable(String)), ''){{ ',' if not loop.last }}
        {%- endfor %}
    ) as phone,
    nullIf(trim(properties.push_token::Nullable(String)), '') as push_token,

    -- the record that this one went into, which is why it is deleted
    if(is_deleted, trim(coalesce(properties.merged_into::Nullable(String), '')), '') as merged_into,

    ---------- booleans
    is_deleted,

    ---------- timestamps
    parseDateTime64BestEffortOrNull(properties.created_at::Nullable(String), 3, 'UTC') as created_at,
    updated_at,
    loaded_at
from records
where object = 'contact'
