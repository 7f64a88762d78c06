{%- set phones = ['mobile_phone', 'mobilephone', 'MobilePhone', 'phone', 'Phone'] -%}
with

records as (

    select * from {{ source('raw', 'crm_records') }}
    where object = 'contact'

),

as_told as (

    select * from records
    where (source, external_id) not in (select source, external_id from {{ source('raw', 'rectifications') }})

),

-- few: records of people who had something put right
rectified as (

    select
        records.*,
        rights.put_right as put_right
    from records
    left any join {{ ref('stg_crm__rectified') }} as rights
        on
            rights.source = records.source
            and rights.external_id = records.external_id
            and rights.updated_at = records.updated_at
            and rights.loaded_at = records.loaded_at
    where
        (records.source, records.external_id) in (
            select source, external_id from {{ source('raw', 'rectifications') }}
        )

)

{% for relation in ['as_told', 'rectified'] -%}
{%- set is_rectified = relation == 'rectified' -%}
select
    ---------- ids
    source,
    external_id,

    ---------- text
    {{ normalised_email("coalesce(" ~ told_or_right('email', is_rectified) ~ ", '')") }} as email,
    {%- for name in ['first_name', 'last_name', 'country', 'city', 'timezone', 'locale'] %}
    nullIf(trim({{ told_or_right(name, is_rectified) }}), '') as {{ name }},
    {%- endfor %}
    -- the first that names its country, a mobile before a landline; else the first as it was given
    coalesce(
        {%- for name in phones %}
        {{ e164(told_or_right(name, is_rectified)) }},
        {%- endfor %}
        {%- for name in phones %}
        nullIf(trim({{ told_or_right(name, is_rectified) }}), ''){{ ',' if not loop.last }}
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
from {{ relation }}
{% if not loop.last %}
union all

{% endif %}
{%- endfor %}
