{%- set fields = [
    'email', 'first_name', 'last_name', 'country', 'city', 'timezone', 'locale', 'phone', 'mobile_phone'
] -%}
with

rectifications as (

    select * from {{ source('raw', 'rectifications') }}

),

versions as (

    select * from {{ source('raw', 'crm_records') }}
    where object = 'contact' and (source, external_id) in (select source, external_id from rectifications)

),

told as (

    -- of each version and field what it says, beside the last correction before it
    select
        versions.source as source,
        versions.external_id as external_id,
        versions.updated_at as updated_at,
        versions.loaded_at as loaded_at,
        versions.run_id = 'rectification' as is_correction,
        rectifications.field as field,
        rectifications.value as value,
        rectifications.corrected_at as corrected_at,
        {{ compared(
            'rectifications.field',
            "multiIf(" ~ told_fields(fields) ~ "'')"
        ) }} = {{ compared('rectifications.field', 'rectifications.wrong') }} as is_wrong
    from versions
    inner join rectifications
        on rectifications.source = versions.source and rectifications.external_id = versions.external_id
    where
        versions.updated_at > rectifications.corrected_at
        and versions.loaded_at >= rectifications.loaded_at
    order by rectifications.corrected_at desc, rectifications.loaded_at desc
    limit 1 by source, external_id, updated_at, loaded_at, field

),

judged as (

    -- as versions were loaded, so that none that comes later changes what was made of those before it
    select
        *,
        max(not is_wrong and not is_correction) over (
            partition by source, external_id, field, corrected_at
            order by loaded_at, updated_at
            rows between unbounded preceding and current row
        ) as is_over
    from told

)

select
    ---------- ids
    source,
    external_id,

    ---------- semi-structured
    mapSort(mapFromArrays(groupArray(field::String), groupArray(value))) as put_right,

    ---------- timestamps
    updated_at,
    loaded_at
from judged
where is_wrong and not is_over
group by source, external_id, updated_at, loaded_at
