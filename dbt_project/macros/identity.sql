{#- An email as identity knows it: trimmed, lower case. -#}
{% macro normalised_email(column) -%}
    lower(trim(both ' \t\r\n' from {{ column }}))
{%- endmacro %}


{#- contact_id of a contact key: 63 bits of SipHash, so that it is a positive Int64. -#}
{% macro contact_id_of(key) -%}
    toInt64(bitShiftRight(sipHash64({{ key }}), 1))
{%- endmacro %}


{#-
    identity_id of what a row says about a person: a hash of source, external id and normalised email. 0 if it says
    neither, or, if it names a visitor who is not known, less than 0.
-#}
{% macro identity_of(source, external_id, email, anonymous_id="''") -%}
    multiIf(
        {{ external_id }} != '' or {{ email }} != '',
        toInt64(bitShiftRight(
            sipHash64(if({{ external_id }} = '', '', {{ source }}::String), {{ external_id }}, {{ email }}), 1
        )),
        {{ anonymous_id }} != '',
        {{ visitor_of(source, anonymous_id) }},
        0
    )
{%- endmacro %}


{#- identity_id of what names a visitor alone, below 0. -#}
{% macro visitor_of(source, anonymous_id) -%}
    (-toInt64(bitShiftRight(sipHash64({{ source }}::String, {{ anonymous_id }}), 1)))
{%- endmacro %}


{#- Who an event says that its visitor is: identity_id of the account if it gives one, else of the email. -#}
{% macro person_of(source, external_id, email) -%}
    {{ identity_of(source, external_id, "if(" ~ external_id ~ " = '', " ~ email ~ ", '')") }}
{%- endmacro %}


{#- Whether an event says who its visitor is. -#}
{% macro names_visitor() -%}
    anonymous_id != '' and (external_id != '' or email != '')
{%- endmacro %}


{#-
    identity_id of what a visitor did while they were a certain person, below 0: the visitor's own for the first person,
    and another for each of the others, so that one mapping of identities to contacts serves all.
-#}
{% macro visitor_as(visitor_id, person_identity_id, first_person) -%}
    if(
        {{ person_identity_id }} = {{ first_person }},
        {{ visitor_id }},
        -toInt64(bitShiftRight(sipHash64('visitor', {{ visitor_id }}, {{ person_identity_id }}), 1))
    )
{%- endmacro %}


{#- The same by time, from the turns of `int_visitors__shared`: whoever was named last, before the first the first. -#}
{% macro visitor_at(visitor_id, turns, moment) -%}
    {{ visitor_as(
        visitor_id,
        turns ~ "[greatest(arrayLastIndex(turn -> turn.1 <= " ~ moment ~ ", " ~ turns ~ "), 1)].2",
        turns ~ "[1].2",
    ) }}
{%- endmacro %}


{#- The contact of an end of a merge at its time: what the last split before it had made of it, else its own. -#}
{% macro contact_then(end, moment) -%}
    if(
        arrayExists(split -> split.1 <= {{ moment }}, {{ end }}.split_contacts),
        arrayLast(split -> split.1 <= {{ moment }}, {{ end }}.split_contacts).2,
        {{ end }}.own_contact_id
    )
{%- endmacro %}


{#- identity_id of whom a message was sent to, by the contact and the address that the ledger has. -#}
{% macro identity_of_message(contact_id, email) -%}
    toInt64(bitShiftRight(sipHash64('message', {{ contact_id }}, {{ email }}), 1))
{%- endmacro %}


{#-
    Adds `contact_id` and `named_contact_id` to rows with hints: Nullable(Int64), null where no hint leads to a contact.

    The CRM record (source, external_id) comes first, then the email, then an account that no CRM knows. Reads right with join_use_nulls on or off, since views
    are read by clients that set neither.

    rows: relation or subquery with source, external_id and email (normalised).
-#}
{% macro with_contacts(rows) -%}
    select
        hinted.*,
        coalesce(
            if(by_record.kind_of_record = 'record', nullIf(by_record.contact_of_record, 0), null),
            nullIf(by_email.contact_of_email, 0),
            nullIf(by_record.contact_of_record, 0)
        ) as contact_id,
        -- as it would be without merges
        coalesce(
            if(by_record.kind_of_record = 'record', nullIf(by_record.name_of_record, 0), null),
            nullIf(by_email.name_of_email, 0),
            nullIf(by_record.name_of_record, 0)
        ) as named_contact_id
    from {{ rows }} as hinted
    -- names of joined columns differ from those of `hinted`, or ClickHouse would call the latter `hinted.source`
    left join (
        select source as record_source, identifier as record_id, contact_id as contact_of_record, kind as kind_of_record,
            named_contact_id as name_of_record
        from {{ ref('int_contacts__identified') }}
        where kind in ('record', 'account')
    ) as by_record
        on by_record.record_source = hinted.source and by_record.record_id = hinted.external_id
    left join (
        select identifier as known_email, contact_id as contact_of_email, named_contact_id as name_of_email
        from {{ ref('int_contacts__identified') }}
        where kind = 'email'
    ) as by_email
        on by_email.known_email = hinted.email
{%- endmacro %}


{#-
    The table of identities as the last run left it, none in a full refresh or if there is none. `int_identities__touched`
    compares with it and it is made from that: looked up by name, never by `ref`, as `settled_stays` does.
-#}
{% macro identities_before() %}
    {%- if not execute or flags.FULL_REFRESH -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set node = graph.nodes.values() | selectattr('name', 'equalto', 'int_contacts__identified') | first -%}
    {%- set before = load_relation(api.Relation.create(database=node.database, schema=node.schema, identifier=node.alias)) -%}
    {%- if before is none or 'visitors_through' not in adapter.get_columns_in_relation(before) | map(attribute='name') -%}
        {{ return(none) }}
    {%- endif -%}
    {{ return(before) }}
{% endmacro %}
