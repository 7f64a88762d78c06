{%- set phones = ['mobile_phone', 'mobilephone', 'MobilePhone', 'phone', 'Phone'] -%}
with

records as (

    select * from {{ source('raw', 'crm_records') }}
    where object = 'contact'

),

versions as (

    -- one select, and not one more for the few who had something put right: each reader is a copy of all this
    select
        records.*,
        rights.put_right as put_right,
        [
            {%- for name in phones %}
            {{ told_or_right(name) }}{{ ',' if not loop.last }}
            {%- endfor %}
        ] as told_phones
    from records
    left any join {{ ref('stg_crm__rectified') }} as rights
        on
            rights.source = records.source
            and rights.external_id = records.external_id
            and rights.updated_at = records.updated_at
            and rights.loaded_at = records.loaded_at

)

select
    ---------- ids
    source,
    external_id,

    ---------- text
    {{ normalised_email("coalesce(" ~ told_or_right('email') ~ ", '')") }} as email,
    {%- for name in ['first_name', 'last_name', 'country', 'city', 'timezone', 'locale'] %}
    nullIf(trim({{ told_or_right(name) }}), '') as {{ name }},
    {%- endfor %}
    -- the first that names its country, a mobile before a landline; else the first as it was given
    arrayFirst(
        number -> number is not null,
        arrayConcat({{ e164_of('told_phones') }}, arrayMap(told -> nullIf(trim(told), ''), told_phones))
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
from versions
