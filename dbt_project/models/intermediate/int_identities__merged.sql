{{
    config(
        materialized='view'
    )
}}

with

records as (

    -- of a record the newest row: a version that came later may say that it was not merged after all
    select
        identity_id,
        argMax(source, recorded_at) as source,
        argMax(external_id, recorded_at) as external_id,
        argMax(merged_into, recorded_at) as merged_into,
        max(records.updated_at) as merged_at
    from {{ ref('int_records__combined') }} as records
    where identity_id in (select identity_id from {{ ref('int_records__combined') }} where merged_into != '')
    group by identity_id

)

select
    ---------- ids
    concat('crm:', source, ':', external_id) as change_id,
    identity_id,
    {{ identity_of('source', 'merged_into', "''") }} as into_identity_id,

    ---------- text
    'crm'::LowCardinality(String) as decided_by,
    source::LowCardinality(String) as source,
    external_id,
    '' as email,
    source::LowCardinality(String) as into_source,
    merged_into as into_external_id,
    '' as into_email,

    ---------- timestamps
    merged_at
from records
where merged_into != '' and merged_into != external_id

union all

select
    ---------- ids
    change_id,
    identity_id,
    into_identity_id,

    ---------- text
    'hand'::LowCardinality(String) as decided_by,
    source,
    external_id,
    email,
    into_source,
    into_external_id,
    into_email,

    ---------- timestamps
    occurred_at as merged_at
from {{ ref('stg_identities__changes') }}
where action = 'merge' and undone_by = '' and identity_id != 0 and into_identity_id != 0
