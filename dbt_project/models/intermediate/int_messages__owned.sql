{{
    config(
        materialized='view',
        query_settings={'do_not_merge_across_partitions_select_final': 1}
    )
}}

{#- with the setting, whoever asks for some months reads these alone (profiles.yml) -#}

with

followed as (

    select * from {{ newest(ref('int_messages__followed')) }}

),

merged as (

    select identity_id as merged_identity_id, contact_id as merged_contact_id
    from {{ ref('int_contacts__identified') }}
    where kind = 'message' and contact_id != message_contact_id

)

select
    ---------- ids
    followed.message_id as message_id,
    followed.identity_id as identity_id,
    if(
        coalesce(merged.merged_contact_id, 0) != 0, assumeNotNull(merged.merged_contact_id), followed.ledger_contact_id
    )::Int64 as contact_id,

    ---------- text
    followed.kind as kind,
    followed.name as name,
    followed.occurrence as occurrence,
    followed.variant as variant,
    followed.channel as channel,

    ---------- timestamps
    followed.created_at as created_at,
    followed.sent_at as sent_at,
    followed.first_opened_at as first_opened_at,
    followed.first_clicked_at as first_clicked_at,
    followed.rebuilt_at as rebuilt_at
from followed
left any join merged on merged.merged_identity_id = followed.identity_id
