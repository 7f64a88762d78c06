{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'rebuilt_at'),
        partition_by='entry_month',
        order_by=['funnel', 'contact_id'],
        query_settings={
            'throw_on_max_partitions_per_insert_block': 0,
            'do_not_merge_across_partitions_select_final': 1
        },
        post_hook="{{ note_taken() }}"
    )
}}

-- depends_on: {{ ref('int_contacts__identified') }}, {{ ref('int_orders__combined') }}, {{ ref('int_events__recorded') }}

{%- set are_all_due = are_all_funnels_due() %}
{%- set days = none if are_all_due else days_to_take() %}
{%- set unit = '1000000000' %}

with

steps as (

    select * from {{ ref('funnel_steps') }}

),

{% if not are_all_due -%}
(

    -- what lay in the future then, may be past now
    select argMax(as_of, rebuilt_at) from {{ this }}

) as looked_at,

(

    select max(within_days) from steps

) as longest,

moved as (

    select identity_id, previous_contact_id
    from {{ ref('int_contacts__identified') }}
    where moved_at >= {{ last_taken() }}

),

news as (

    select identity_ids, ordered_at as occurred_at
    from {{ ref('int_orders__combined') }}
    where
        recorded_at > {{ last_taken() }}
        or ordered_at > looked_at
        or identity_id in (select identity_id from moved)

    union all

    -- whose it was before the ledger told whose message it was about, is another's way now
    select
        if(is_message_known, [identity_id, {{ identity_of('source', 'external_id', 'email', 'anonymous_id') }}], [identity_id]) as identity_ids,
        occurred_at
    from {{ ref('int_events__recorded') }}
    where {{ is_recorded_on(days) }} and type in (select event_type from steps)

    union all

    select [identity_id] as identity_ids, occurred_at
    from {{ ref('int_events__recorded') }}
    where
        type in (select event_type from steps)
        and not is_machine
        and {{ is_recorded_since("toDate(" ~ funnels_from() ~ ")") }}
        and (occurred_at > looked_at or identity_id in (select identity_id from moved))

),

seen as (

    -- who is looked at, and from which month on: those who lost what was theirs, from the first
    select
        contact_id,
        min(from_month) as from_month
    from (
        select
            identities.contact_id as contact_id,
            toStartOfMonth(greatest({{ funnels_from() }}, toDate(told.first_at - toIntervalDay(longest)))) as from_month
        from {{ ref('int_contacts__identified') }} as identities
        inner join (
            select arrayJoin(identity_ids) as told_identity_id, min(occurred_at) as first_at
            from news
            group by told_identity_id
        ) as told
            on told.told_identity_id = identities.identity_id

        union all

        select previous_contact_id as contact_id, toDate({{ funnels_from() }}) as from_month
        from moved
        where previous_contact_id != 0
    )
    group by contact_id

),

(

    -- a list, since each name of a CTE is a copy of it that is run again
    select groupArray(tuple(contact_id, from_month)) from seen

) as due_contacts,

arrayMin(arrayPushBack(due_contacts.2, toDate({{ now() }}))) as changed_from,

-- not the marts: those look everybody up who ever did anything
owners as (

    select
        identities.identity_id as owner_identity_id,
        identities.contact_id as owner_contact_id,
        seen_from.2 as owner_from_month
    from {{ ref('int_contacts__identified') }} as identities
    inner join (select arrayJoin(due_contacts) as seen_from) as seen_list on seen_list.seen_from.1 = identities.contact_id
    -- else a table of all who are known would be made to join orders with
    where identities.contact_id in (select arrayJoin(due_contacts.1))

),

happened as (

    select identity_id, 'order.placed' as type, ordered_at as occurred_at
    from (
        {{ newest_orders(
            ['identity_id', 'ordered_at', 'is_sale'],
            'ordered_at >= changed_from and identity_id in (select owner_identity_id from owners)'
        ) }}
    )
    where is_sale

    union all

    select identity_id, type::String as type, occurred_at
    from {{ ref('int_events__recorded') }}
    where
        type in (select event_type from steps where event_type != 'order.placed')
        and not is_machine
        and {{ loaded_after('loaded_on', 'toDateTime64(changed_from, 3, \'UTC\')') }}
        and identity_id in (select owner_identity_id from owners)

),

events as (

    select
        owners.owner_contact_id as contact_id,
        happened.type as type,
        happened.occurred_at as occurred_at
    from happened
    inner join owners on owners.owner_identity_id = happened.identity_id
    where happened.occurred_at >= owners.owner_from_month and happened.occurred_at <= {{ now() }}

),

{% else -%}
orders as (

    select
        assumeNotNull(orders.contact_id) as contact_id,
        'order.placed' as type,
        ordered_at as occurred_at
    from {{ ref('orders') }} as orders
    where
        is_sale
        and orders.contact_id is not null
        and ordered_at >= {{ funnels_from() }}
        and ordered_at <= {{ now() }}

),

events as (

    select
        assumeNotNull(events.contact_id) as contact_id,
        type::String as type,
        occurred_at
    from {{ ref('events') }} as events
    where
        type in (select event_type from steps where event_type != 'order.placed')
        and not is_machine
        and events.contact_id is not null
        and occurred_at >= {{ funnels_from() }}
        and occurred_at <= {{ now() }}
        and {{ loaded_within('loaded_on', 31 * var('funnel_months')) }}

    union all

    select * from orders

),

{% endif -%}

taken as (

    -- an event belongs to every month in which the first step may have been taken; the first step to its own
    select
        events.contact_id as contact_id,
        steps.funnel as funnel,
        steps.step as step,
        events.occurred_at as occurred_at,
        arrayJoin({{ months_between(
            'if(step = 1, events.occurred_at, events.occurred_at - toIntervalDay(steps.within_days))', 'events.occurred_at'
        ) }}) as entry_month,
        -- windowFunnel takes one window for all rows, so time is counted in windows of the funnel
        toUInt64(round(
            (toUnixTimestamp64Milli(events.occurred_at) - toUnixTimestamp(toDateTime(makeDate(intDiv(entry_month, 100), entry_month % 100, 1), 'UTC')) * 1000)
            * {{ unit }}. / (steps.within_days * 86400000)
        )) as windows
    from events
    inner join steps on steps.event_type = events.type

),

passed as (

    select
        funnel,
        contact_id,
        entry_month,
        windowFunnel({{ unit }})(
            windows,
            {%- for step in range(1, 9) %}
            step = {{ step }}{{ ',' if not loop.last }}
            {%- endfor %}
        ) as steps_passed
    from taken
    group by funnel, contact_id, entry_month
    having steps_passed > 0

),

{% if is_incremental() -%}
compared as (

    select funnel, contact_id, entry_month, steps_passed, 0 as steps_known from passed

    union all

    -- of each the newest row: those of a few cost less to compare than all of them with `final`
    select
        funnel,
        contact_id,
        entry_month,
        0 as steps_passed,
        -- the column's own name, or ClickHouse would take the 0 beside it for it
        argMax(known.steps_passed, known.rebuilt_at) as steps_known
    from {{ this }} as known
    {% if not are_all_due -%}
    inner join (select arrayJoin(due_contacts) as seen_from) as seen_list on seen_list.seen_from.1 = known.contact_id
    where
        entry_month >= toYYYYMM(changed_from)
        and entry_month >= toYYYYMM(seen_from.2)
    {% endif -%}
    group by funnel, contact_id, entry_month
    having steps_known > 0

),

{% endif -%}
due as (

    {% if is_incremental() -%}
    -- whoever has come no further needs no new row, and whoever has not entered after all needs one that says so
    select funnel, contact_id, entry_month, max(compared.steps_passed) as steps_passed
    from compared
    group by funnel, contact_id, entry_month
    {% if not are_all_due -%}
    having max(compared.steps_passed) != max(compared.steps_known)
    {%- endif %}
    {%- else -%}
    select * from passed
    {%- endif %}

)

select
    ---------- ids
    funnel::LowCardinality(String) as funnel,
    contact_id::Int64 as contact_id,
    entry_month::UInt32 as entry_month,

    ---------- numerics
    steps_passed::UInt8 as steps_passed,
    {{ funnel_rules() }} as rules,

    ---------- timestamps
    {{ now() }} as as_of,
    {{ stamp() }} as rebuilt_at
from due
