{#- An email as identity knows it: trimmed, lower case. -#}
{% macro normalised_email(column) -%}
    lower(trim(both ' \t\r\n' from {{ column }}))
{%- endmacro %}


{#- contact_id of a contact key: 63 bits of SipHash, so that it is a positive Int64. -#}
{% macro contact_id_of(key) -%}
    toInt64(bitShiftRight(sipHash64({{ key }}), 1))
{%- endmacro %}


{#-
    Adds `contact_id` to rows with hints: Nullable(Int64), null where no hint leads to a contact.

    A message's own contact comes first, then the CRM record (source, external_id), then the email. Reads right with
    join_use_nulls on or off, since views are read by clients that set neither.

    rows: relation or subquery with source, external_id, email (normalised) and, if has_messages, message_id.
-#}
{% macro with_contacts(rows, has_messages=true) -%}
    select
        hinted.*,
        coalesce(
            {% if has_messages -%}
            nullIf(by_message.contact_of_message, 0),
            {% endif -%}
            nullIf(by_record.contact_of_record, 0),
            nullIf(by_email.contact_of_email, 0)
        ) as contact_id
    from {{ rows }} as hinted
    -- names of joined columns differ from those of `hinted`, or ClickHouse would call the latter `hinted.source`
    left join (
        select source as record_source, identifier as record_id, contact_id as contact_of_record
        from {{ ref('int_contacts__identified') }}
        where kind = 'record'
    ) as by_record
        on by_record.record_source = hinted.source and by_record.record_id = hinted.external_id
    left join (
        select identifier as known_email, contact_id as contact_of_email
        from {{ ref('int_contacts__identified') }}
        where kind = 'email'
    ) as by_email
        on by_email.known_email = hinted.email
    {% if has_messages -%}
    left join (
        select message_id as known_message_id, any(contact_id) as contact_of_message
        from {{ source('raw', 'messages') }}
        -- the ledger keeps the contact of the day; one that has merged into another since is found by its hints
        where contact_id in (select contact_id from {{ ref('int_contacts__identified') }})
        group by message_id
    ) as by_message
        on by_message.known_message_id = hinted.message_id
    {%- endif %}
{%- endmacro %}
