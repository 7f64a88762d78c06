{{
    config(
        order_by='identity_id',
        settings={'index_granularity': 256}
    )
}}

{#-
    The table of the run before tells whose contact has changed; and only what `int_identities__touched` lists is worked out
    again, all else is carried over. What is rare (merges, splits, visitors, accounts) costs nothing where there is none.
    Granules are small: the gateway looks up the few identities of a micro-batch.
-#}
{%- set before = identities_before() %}
{%- set query -%}
    select
        -- what is worked out in part goes through lists: a reload of everything is quicker without them
        (select countIf(what = 'all') + (count() > 500000) from {{ ref('int_identities__touched') }}),
        (select count() from {{ ref('int_identities__merged') }}),
        (select count() from {{ ref('int_identities__split') }}),
        (select count() from {{ ref('int_visitors__told') }}),
        (select count() from {{ ref('int_contacts__hinted') }} where record_identity_id != 0)
{%- endset %}
{#- a unit test gives rows that no query sees; dbt finds no columns where it finds `recursive` -#}
{%- set has_all_kinds = not execute or var('all_kinds_of_identities', false) %}
{%- set counts = [1, 0 if execute else 8, 1, 1, 1] if has_all_kinds else run_query(query).rows[0] | map('int') | list %}
{%- set is_partial = before is not none and not counts[0] %}
{%- set merges_count, has_splits, has_visitors, has_accounts = counts[1], counts[2] > 0, counts[3] > 0, counts[4] > 0 %}
{%- set has_merges = merges_count > 0 %}

with {{ 'recursive' if has_merges }}

touched as (

    select id, what, records_through, hints_through, visitors_through from {{ ref('int_identities__touched') }}

),

{% if is_partial -%}
-- what stays as it is
kept as (

    select * from {{ this }}
    where
        identity_id not in (
            select id from touched where what in ('record', 'email', 'hint', 'account', 'visitor', 'visit')
        )

),

{% endif -%}
splits as (

    select identity_id as split_identity_id, split_contact_id, split_change_id, split_contacts
    from {{ ref('int_identities__split') }}

),

loaded as (

    {% if is_partial -%}
    -- those that changed, and those that have an address with one of them; of each the newest row
    select * from {{ ref('int_records__combined') }}
    where identity_id in (select id from touched where what in ('record', 'address'))
    order by recorded_at desc
    limit 1 by identity_id
    {%- else -%}
    select * from {{ newest(ref('int_records__combined')) }}
    {%- endif %}

),

records as (

    select
        loaded.identity_id as identity_id,
        loaded.source as source,
        loaded.external_id as external_id,
        loaded.emails as emails,
        loaded.first_loaded_at as first_loaded_at,
        loaded.contact_id as own_contact_id,
        {% if has_splits -%}
        coalesce(splits.split_contact_id, loaded.contact_id) as contact_id,
        if(splits.split_contact_id is null, loaded.contact_key, concat('split:', assumeNotNull(splits.split_change_id))) as contact_key
        {%- else -%}
        loaded.contact_id as contact_id,
        loaded.contact_key as contact_key
        {%- endif %}
    from loaded
    {% if has_splits -%}
    left any join splits on splits.split_identity_id = loaded.identity_id
    {%- endif %}

),

hints as (

    -- the rest of a row follows from its identity
    select distinct identity_id, record_identity_id, email_identity_id, message_contact_id
    from {{ ref('int_contacts__hinted') }}
    {% if is_partial -%}
    where identity_id in (select id from touched where what = 'hint')
    {%- endif %}

),

known_contacts as (

    select identity_id, contact_id from records
    {% if is_partial -%}
    union all

    select identity_id, named_contact_id as contact_id from kept
    where
        kind = 'record'
        and identity_id not in (select identity_id from records)
        -- nobody asks for others
        and (
            identity_id in (select record_identity_id from hints)
            or named_contact_id in (select message_contact_id from hints)
        )
    {%- endif %}

),

record_addresses as (

    select
        arrayJoin(emails) as email,
        {{ identity_of("''", "''", 'email') }} as identity_id,
        contact_id,
        contact_key,
        first_loaded_at
    from records

),

shared_addresses as (

    -- of several contacts that ever had an email, it leads to the one that it names, else to the one we knew first
    select
        identity_id as shared_identity_id,
        argMin(contact_id, tuple(contact_key != email, first_loaded_at, contact_key)) as owner_contact_id
    from record_addresses
    where identity_id in (
        select identity_id from record_addresses
        group by identity_id
        having min(contact_id) != max(contact_id)
    )
    group by identity_id

),

record_emails as (

    select
        identity_id,
        any(record_addresses.contact_id) as any_contact_id,
        any(record_addresses.email) as email
    from record_addresses
    {% if is_partial -%}
    where identity_id in (select id from touched where what = 'email')
    {%- endif %}
    group by identity_id

),

unknown_emails as (

    -- an email that no CRM record had is a contact too, unless the same hint names a record
    select
        email_identity_id as identity_id,
        any(email) as email
    from {{ ref('int_contacts__hinted') }}
    where
        message_contact_id = 0
        and email_identity_id not in (select identity_id from record_addresses)
        and (record_identity_id = 0 or record_identity_id not in (select identity_id from known_contacts))
        {% if is_partial -%}
        and email_identity_id in (select id from touched where what = 'email')
        {%- endif %}
    group by email_identity_id

),

owned_emails as (

    select
        record_emails.identity_id as identity_id,
        coalesce(shared_addresses.owner_contact_id, record_emails.any_contact_id) as own_contact_id,
        record_emails.email as email,
        true as is_known_to_crm
    from record_emails
    left any join shared_addresses on shared_addresses.shared_identity_id = record_emails.identity_id

    union all

    select
        identity_id,
        {{ contact_id_of('email') }} as own_contact_id,
        email,
        false as is_known_to_crm
    from unknown_emails

),

{% set emails %}
    select
        owned_emails.*,
        {% if has_splits -%}
        coalesce(splits.split_contact_id, owned_emails.own_contact_id) as contact_id
        {%- else -%}
        owned_emails.own_contact_id as contact_id
        {%- endif %}
    from owned_emails
    {% if has_splits -%}
    left any join splits on splits.split_identity_id = owned_emails.identity_id
    {%- endif %}
{%- endset -%}

{% if is_partial -%}
-- a list: each name of a CTE is a copy of it that is looked at and run again, and this one is asked for three times
(

    select groupArray(tuple(identity_id, own_contact_id, email, is_known_to_crm, contact_id))
    from (
    {{ emails }}
    )

) as email_list,

emails as (

    select
        listed.1 as identity_id,
        listed.2 as own_contact_id,
        listed.3 as email,
        listed.4 as is_known_to_crm,
        listed.5 as contact_id
    from (select arrayJoin(email_list) as listed)

),

{% else -%}
emails as (

    {{ emails }}

),

{% endif -%}
{% if has_accounts -%}
told_accounts as (

    -- an id that no CRM knows leads where the address leads that was first told with it
    select
        record_identity_id as identity_id,
        any(hinted.sources[1]) as source,
        any(hinted.external_id) as external_id,
        argMin(email_identity_id, tuple(hinted.first_seen_at, hinted.email)) as first_email_identity_id
    from {{ ref('int_contacts__hinted') }} as hinted
    where
        record_identity_id != 0
        {% if is_partial -%}
        and record_identity_id in (select id from touched where what = 'account')
        {%- else -%}
        and record_identity_id not in (select identity_id from records)
        {%- endif %}
    group by record_identity_id

),

{% endif -%}
known_emails as (

    select identity_id, contact_id, is_known_to_crm from emails
    {% if is_partial -%}
    union all

    select identity_id, named_contact_id as contact_id, is_known_to_crm from kept
    where
        kind = 'email'
        and (
            identity_id in (select email_identity_id from hints)
            {% if has_accounts -%}
            or identity_id in (select first_email_identity_id from told_accounts)
            {%- endif %}
        )
    {%- endif %}

),

{% if has_accounts -%}
accounts as (

    select
        told_accounts.identity_id as identity_id,
        told_accounts.source as source,
        told_accounts.external_id as external_id,
        by_email.known_contact_id as own_contact_id,
        {% if has_splits -%}
        coalesce(splits.split_contact_id, by_email.known_contact_id) as contact_id,
        {%- else -%}
        by_email.known_contact_id as contact_id,
        {%- endif %}
        by_email.is_known_to_crm as is_known_to_crm
    from told_accounts
    inner join (
        select identity_id as known_identity_id, contact_id as known_contact_id, is_known_to_crm from known_emails
    ) as by_email
        on by_email.known_identity_id = told_accounts.first_email_identity_id
    {% if has_splits -%}
    left any join splits on splits.split_identity_id = told_accounts.identity_id
    {%- endif %}

),

{% endif -%}
led as (

    -- a contact of the ledger that has merged into another since is found by the address
    select
        hints.identity_id as identity_id,
        multiIf(
            {% if has_splits -%}
            -- what was sent to an address that was taken out of a contact was sent to whoever has it now
            hints.message_contact_id != 0
                and coalesce(by_email.known_contact_id in (select split_contact_id from splits), false),
            assumeNotNull(by_email.known_contact_id),
            {% endif -%}
            hints.message_contact_id in (select contact_id from known_contacts), hints.message_contact_id,
            by_record.known_contact_id is not null, assumeNotNull(by_record.known_contact_id),
            by_email.known_contact_id is not null, assumeNotNull(by_email.known_contact_id),
            0
        ) as contact_id,
        hints.message_contact_id as message_contact_id,
        by_record.known_contact_id is not null or coalesce(by_email.is_known_to_crm, false) as is_known_to_crm
    from hints
    left any join (
        select identity_id as known_identity_id, contact_id as known_contact_id from known_contacts
    ) as by_record
        on by_record.known_identity_id = hints.record_identity_id
    left any join (
        select identity_id as known_identity_id, contact_id as known_contact_id, is_known_to_crm from known_emails
    ) as by_email
        on by_email.known_identity_id = hints.email_identity_id
    where hints.identity_id != hints.email_identity_id

),

{% if has_visitors -%}
told as (

    select
        visitor_id,
        person_identity_id,
        min(told.first_at) as known_from,
        any(told.source) as source,
        any(told.anonymous_id) as anonymous_id
    from {{ ref('int_visitors__told') }} as told
    {% if is_partial -%}
    where visitor_id in (select id from touched where what = 'visitor')
    {%- endif %}
    group by visitor_id, person_identity_id

),

people as (

    select identity_id, contact_id, is_known_to_crm from emails

    union all

    select identity_id, contact_id, true as is_known_to_crm from records
    {% if has_accounts -%}
    union all

    select identity_id, contact_id, is_known_to_crm from accounts
    {%- endif %}
    {% if is_partial -%}
    union all

    select identity_id, named_contact_id as contact_id, is_known_to_crm from kept
    where
        kind in ('email', 'record', 'account')
        and identity_id in (select person_identity_id from told)
        -- records with an address of one that changed stand above, too
        and identity_id not in (select identity_id from records)
    {%- endif %}

),

visitors as (

    -- as `int_visitors__shared`: of two people named at the same moment the one with the greater number
    select
        told.visitor_id as visitor_id,
        argMin(told.person_identity_id, tuple(told.known_from, -told.person_identity_id)) as first_person,
        any(told.source) as source,
        any(told.anonymous_id) as anonymous_id,
        groupArray(tuple(
            told.person_identity_id, coalesce(people.contact_id, 0), coalesce(people.is_known_to_crm, false)
        )) as persons,
        -- whether what they did can pass from one contact to another: most use an address here and an account there
        min(coalesce(people.contact_id, 0)) != max(coalesce(people.contact_id, 0)) as is_shared
    from told
    left any join people on people.identity_id = told.person_identity_id
    group by visitor_id

),

visits as (

    select
        {{ visitor_as('visitor_id', 'person.1', 'first_person') }} as identity_id,
        person.2 as contact_id,
        source,
        anonymous_id,
        person.3 as is_known_to_crm,
        is_shared
    from visitors
    array join persons as person
    where person.2 != 0

),

{% endif -%}
identities as (

    select
        identity_id,
        contact_id as named_contact_id,
        own_contact_id,
        'record' as kind,
        source::LowCardinality(String) as source,
        external_id as identifier,
        0::Int64 as message_contact_id,
        true as is_known_to_crm,
        false as is_shared
    from records
    {% if is_partial -%}
    where identity_id in (select id from touched where what = 'record')
    {%- endif %}

    union all

    select
        identity_id,
        contact_id as named_contact_id,
        own_contact_id,
        'email' as kind,
        ''::LowCardinality(String) as source,
        email as identifier,
        0::Int64 as message_contact_id,
        is_known_to_crm,
        false as is_shared
    from emails

    union all

    select
        identity_id,
        contact_id as named_contact_id,
        contact_id as own_contact_id,
        if(message_contact_id != 0, 'message', 'hint') as kind,
        ''::LowCardinality(String) as source,
        '' as identifier,
        message_contact_id,
        is_known_to_crm,
        false as is_shared
    from led
    where contact_id != 0
    {%- if has_accounts %}

    union all

    select
        identity_id,
        contact_id as named_contact_id,
        own_contact_id,
        'account' as kind,
        source::LowCardinality(String) as source,
        external_id as identifier,
        0::Int64 as message_contact_id,
        is_known_to_crm,
        false as is_shared
    from accounts
    {%- endif %}
    {%- if has_visitors %}

    union all

    select
        identity_id,
        contact_id as named_contact_id,
        contact_id as own_contact_id,
        'visitor' as kind,
        source::LowCardinality(String) as source,
        anonymous_id as identifier,
        0::Int64 as message_contact_id,
        is_known_to_crm,
        is_shared
    from visits
    {%- endif %}

),

{% if has_merges -%}
endpoints as (

    -- a merge is about the contact that an identity led to then: a split that came later takes out no more than that
    select
        ends.identity_id as identity_id,
        ends.own_contact_id as own_contact_id,
        {% if has_splits -%}
        splits.split_contacts as split_contacts
        {%- else -%}
        []::Array(Tuple(DateTime64(3, 'UTC'), Int64)) as split_contacts
        {%- endif %}
    from (
        select identity_id, own_contact_id from identities
        where identity_id in (
            select arrayJoin([identity_id, into_identity_id]) from {{ ref('int_identities__merged') }}
        )
        {% if is_partial -%}
        union all

        select identity_id, own_contact_id from kept
        where identity_id in (
            select arrayJoin([identity_id, into_identity_id]) from {{ ref('int_identities__merged') }}
        )
        {%- endif %}
    ) as ends
    {% if has_splits -%}
    left any join splits on splits.split_identity_id = ends.identity_id
    {%- endif %}

),

(

    -- a list, since each round below asks for it: from which contact, into which, and when
    select groupUniqArray(tuple(
        {{ contact_then('goes', 'merges.merged_at') }},
        {{ contact_then('stays', 'merges.merged_at') }},
        merges.merged_at
    ))
    from {{ ref('int_identities__merged') }} as merges
    inner join endpoints as goes on goes.identity_id = merges.identity_id
    inner join endpoints as stays on stays.identity_id = merges.into_identity_id

) as edges,

links as (

    select distinct
        link.1 as one_id,
        link.2 as other_id
    from (
        select arrayJoin(arrayFlatten(arrayMap(
            edge -> [tuple(edge.1, edge.2), tuple(edge.2, edge.1), tuple(edge.1, edge.1), tuple(edge.2, edge.2)],
            edges
        ))) as link
    )

),

labels as (

    -- contacts that merges hold together, in whatever order and direction, end with the same label: the smallest id among them
    select distinct
        one_id as labelled_id,
        one_id as label,
        0::UInt16 as step
    from links

    union all

    select
        links.other_id as labelled_id,
        min(labels.label) as label,
        (labels.step + 1)::UInt16 as step
    from labels
    inner join links on links.one_id = labels.labelled_id
    where labels.step < {{ [merges_count, 64] | min }}
    group by links.other_id, labels.step

),

grouped as (

    select
        labelled_id,
        min(labels.label) as label
    from labels
    group by labelled_id

),

goers as (

    select distinct edge.1 as goer_id
    from (select arrayJoin(edges) as edge)
    where edge.1 != edge.2

),

stayers as (

    select
        edge.2 as stayer_id,
        max(edge.3) as named_at
    from (select arrayJoin(edges) as edge)
    group by edge.2

),

survivors as (

    -- who never went into another stays; of several, or if they went round in a circle, the one named last
    select
        grouped.label as label,
        argMin(
            grouped.labelled_id,
            tuple(
                grouped.labelled_id in (select goer_id from goers),
                -toUnixTimestamp64Milli(coalesce(stayers.named_at, toDateTime64(0, 3, 'UTC'))),
                grouped.labelled_id
            )
        ) as survivor_contact_id
    from grouped
    left any join stayers on stayers.stayer_id = grouped.labelled_id
    group by grouped.label

),

merged as (

    select
        grouped.labelled_id as merged_contact_id,
        survivors.survivor_contact_id as survivor_contact_id
    from grouped
    inner join survivors on survivors.label = grouped.label

),

{% endif -%}
together as (

    select
        identities.*,
        {% if before is none -%}
        0::Int64 as known_contact_id,
        0::Int64 as known_previous_contact_id,
        toDateTime64(0, 3, 'UTC') as known_moved_at
        {%- else -%}
        coalesce(known.known_contact_id, 0) as known_contact_id,
        coalesce(known.known_previous_contact_id, 0) as known_previous_contact_id,
        coalesce(known.known_moved_at, toDateTime64(0, 3, 'UTC')) as known_moved_at
        {%- endif %}
    from identities
    {% if before is not none -%}
    left any join (
        select
            identity_id as known_identity_id,
            contact_id as known_contact_id,
            previous_contact_id as known_previous_contact_id,
            moved_at as known_moved_at
        from {{ this }}
        {% if is_partial -%}
        where identity_id in (select id from touched)
        {%- endif %}
    ) as known
        on known.known_identity_id = identities.identity_id
    {%- endif %}
    {% if is_partial %}
    union all

    select
        identity_id,
        named_contact_id,
        own_contact_id,
        kind,
        source,
        identifier,
        message_contact_id,
        is_known_to_crm,
        false as is_shared,
        contact_id as known_contact_id,
        previous_contact_id as known_previous_contact_id,
        moved_at as known_moved_at
    from kept
    {%- endif %}

)

select
    ---------- ids
    together.identity_id::Int64 as identity_id,
    {% if has_merges -%}
    if(
        coalesce(merged.survivor_contact_id, 0) != 0, assumeNotNull(merged.survivor_contact_id), together.named_contact_id
    )::Int64 as contact_id,
    {%- else -%}
    together.named_contact_id::Int64 as contact_id,
    {%- endif %}
    together.named_contact_id::Int64 as named_contact_id,
    together.own_contact_id::Int64 as own_contact_id,
    together.message_contact_id::Int64 as message_contact_id,
    if(
        together.known_contact_id != 0 and together.known_contact_id != contact_id,
        together.known_contact_id,
        together.known_previous_contact_id
    )::Int64 as previous_contact_id,

    ---------- text
    together.kind::LowCardinality(String) as kind,
    together.source::LowCardinality(String) as source,
    together.identifier as identifier,

    ---------- booleans
    together.is_known_to_crm::Bool as is_known_to_crm,

    ---------- timestamps
    {% if before is none -%}
    toDateTime64(0, 3, 'UTC') as moved_at,
    {% else -%}
    -- what a shared visitor did may have passed from one of them to another, though each leads where it led
    if(
        together.known_contact_id = contact_id and not together.is_shared, together.known_moved_at, {{ stamp() }}
    )::DateTime64(3, 'UTC') as moved_at,
    {% endif -%}
    -- all that was recorded until then is in here
    assumeNotNull((select max(records_through) from touched)) as records_through,
    assumeNotNull((select max(hints_through) from touched)) as hints_through,
    assumeNotNull((select max(visitors_through) from touched)) as visitors_through
from together
{% if has_merges -%}
left any join merged on merged.merged_contact_id = together.named_contact_id
{%- endif %}
