{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        on_schema_change='fail',
        partition_by='month',
        order_by=['experiment', 'contact_id', 'variant'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        post_hook="{{ note_messages_taken(ref('int_messages__followed')) }}"
    )
}}

{%- set months = touched_months(ref('int_messages__followed'), "experiment != ''") %}

{% if is_incremental() and not months -%}
{{ nothing_due() }}

{%- else -%}
with

followed as (

    select * from {{ newest(ref('int_messages__followed')) }}
    where
        experiment != ''
        and variant not in ('', 'remainder')
        -- who was held out was meant to get it
        and (sent_at is not null or (status = 'skipped' and reason = 'holdout'))
        {%- if months %}
        and {{ is_of_months(months) }}
        {%- endif %}

),

merged as (

    -- a contact that has merged into another since is found by the address
    select identity_id as merged_identity_id, contact_id as merged_contact_id
    from {{ ref('int_contacts__identified') }}
    where kind = 'message' and contact_id != message_contact_id

),

owned as (

    select
        followed.*,
        if(
            coalesce(merged.merged_contact_id, 0) != 0,
            assumeNotNull(merged.merged_contact_id),
            followed.ledger_contact_id
        )::Int64 as contact_id,
        -- the instant that the clock of the settings has, by which answers are measured
        coalesce(followed.sent_at, followed.created_at) as exposed_at
    from followed
    left any join merged on merged.merged_identity_id = followed.identity_id

)

select
    ---------- ids
    toYYYYMM(owned.created_at)::UInt32 as month,
    contact_id,

    ---------- text
    experiment,
    variant,
    any(owned.kind)::LowCardinality(String) as kind,
    any(owned.name)::LowCardinality(String) as name,
    argMin(owned.occurrence, owned.exposed_at)::String as occurrence,
    argMin(owned.message_id, owned.exposed_at) as message_id,

    ---------- numerics
    count()::UInt32 as messages_count,

    ---------- timestamps
    min(owned.exposed_at) as exposed_at,
    minOrNull(least(coalesce(first_opened_at, first_clicked_at), coalesce(first_clicked_at, first_opened_at))) as opened_at,
    minOrNull(first_clicked_at) as clicked_at,
    minOrNull(owned.unsubscribed_at) as unsubscribed_at,
    minOrNull(owned.complained_at) as complained_at,
    minOrNull(owned.bounced_at) as bounced_at,
    {{ stamp() }} as rebuilt_at
from owned
group by month, experiment, contact_id, variant

{%- endif %}
