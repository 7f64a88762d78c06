{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'recorded_at'),
        order_by='identity_id',
        query_settings={'optimize_on_insert': 0}
    )
}}

{%- set values = ['email', 'first_name', 'last_name', 'country', 'city', 'timezone', 'locale', 'phone', 'merged_into', 'is_deleted'] %}
{%- set columns = ['identity_id', 'source', 'external_id'] + values + [
    'updated_at', 'load_rank', 'emails', 'first_email', 'first_email_loaded_at', 'first_email_updated_at', 'last_email',
    'last_email_updated_at', 'last_email_load_rank', 'created_at', 'first_loaded_at', 'last_loaded_at',
] %}

with

loaded as (

    select
        *,
        {{ identity_of('source', 'external_id', "''") }} as identity_id
    from {{ ref('stg_crm__contacts') }}
    {% if is_incremental() -%}
    where loaded_at > {{ newest_load('last_loaded_at', 'recorded_at') }}
    {%- endif %}

),

versions as (

    -- a version that was loaded twice counts as it was loaded first
    select
        identity_id,
        source,
        external_id,
        email,
        first_name,
        last_name,
        country,
        city,
        timezone,
        locale,
        phone,
        merged_into,
        is_deleted,
        updated_at,
        -toUnixTimestamp64Milli(loaded_at) as load_rank,
        if(email = '', [], [email]) as emails,
        email as first_email,
        loaded_at as first_email_loaded_at,
        updated_at as first_email_updated_at,
        email as last_email,
        updated_at as last_email_updated_at,
        load_rank as last_email_load_rank,
        coalesce(created_at, updated_at) as created_at,
        loaded_at as first_loaded_at,
        loaded_at as last_loaded_at
    from loaded
    {% if is_incremental() %}
    union all

    -- rows that newer ones have outdone do no harm: what they know, the newer ones know, too
    select {{ columns | join(', ') }}
    from {{ this }}
    where identity_id in (
        -- the raw rows: a name of a CTE is a copy of it, and the records' view is the dearest part of this. It stands
        -- below what is loaded, so that a row that comes meanwhile is one more here, and not one less
        select {{ identity_of('source', 'external_id', "''") }}
        from {{ source('raw', 'crm_records') }}
        where object = 'contact' and loaded_at > {{ newest_load('last_loaded_at', 'recorded_at') }}
    )
    {% endif %}

),

{% if not is_incremental() -%}
-- most records have one version, for which nothing has to be compared
several as (

    select identity_id from versions
    group by identity_id
    having count() > 1

),

{% endif -%}
combined as (

    {% if not is_incremental() -%}
    select {{ columns | join(', ') }}
    from versions
    where identity_id not in (select identity_id from several)

    union all

    {% endif -%}
    select {{ columns | join(', ') }}
    from (
        select
            versions.identity_id as identity_id,
            any(versions.source) as source,
            any(versions.external_id) as external_id,
            {%- for column in values %}
            argMax(tuple(versions.{{ column }}), tuple(versions.updated_at, versions.load_rank)).1 as {{ column }},
            {%- endfor %}
            max(tuple(versions.updated_at, versions.load_rank)).1 as updated_at,
            max(tuple(versions.updated_at, versions.load_rank)).2 as load_rank,
            arraySort(groupUniqArrayArray(versions.emails)) as emails,
            argMin(
                tuple(versions.first_email, versions.first_email_loaded_at, versions.first_email_updated_at),
                tuple(versions.first_email = '', versions.first_email_loaded_at, versions.first_email_updated_at)
            ) as first,
            first.1 as first_email,
            first.2 as first_email_loaded_at,
            first.3 as first_email_updated_at,
            argMax(
                tuple(versions.last_email, versions.last_email_updated_at, versions.last_email_load_rank),
                tuple(versions.last_email != '', versions.last_email_updated_at, versions.last_email_load_rank)
            ) as last,
            last.1 as last_email,
            last.2 as last_email_updated_at,
            last.3 as last_email_load_rank,
            min(versions.created_at) as created_at,
            min(versions.first_loaded_at) as first_loaded_at,
            max(versions.last_loaded_at) as last_loaded_at
        from versions
        {% if not is_incremental() -%}
        where versions.identity_id in (select identity_id from several)
        {%- endif %}
        group by versions.identity_id
    )

)

select
    ---------- ids
    identity_id,
    source,
    external_id,
    -- the first email ever loaded names the contact, so that a change of email keeps it
    if(first_email != '', first_email, concat(source, ':', external_id))::String as contact_key,
    {{ contact_id_of('contact_key') }} as contact_id,

    ---------- text
    email,
    first_name,
    last_name,
    country,
    city,
    timezone,
    locale,
    phone,
    merged_into,
    emails,
    first_email,
    last_email,

    ---------- numerics
    load_rank,
    last_email_load_rank,

    ---------- booleans
    is_deleted,

    ---------- timestamps
    created_at,
    updated_at,
    first_email_loaded_at,
    first_email_updated_at,
    last_email_updated_at,
    first_loaded_at,
    last_loaded_at,
    {{ stamp() }} as recorded_at
from combined
