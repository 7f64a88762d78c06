{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('ReplacingMergeTree', 'rebuilt_at'),
        order_by='message_hash',
        query_settings={'optimize_on_insert': 0},
        post_hook=["{{ note_taken() }}", "{{ note_sends_taken() }}"]
    )
}}

{%- set window = "toIntervalDay(" ~ var('conversion_window_days') ~ ")" %}
{%- set windows = "toIntervalDay(2 * " ~ var('conversion_window_days') ~ ")" %}
{%- set life = "toIntervalDay(" ~ var('message_life_days') ~ ")" %}
{%- set far_off = "toDateTime64('2299-12-31 00:00:00', 3, 'UTC')" %}

with

{% if is_incremental() -%}
moved as (

    select identity_id, contact_id, previous_contact_id, kind
    from {{ ref('int_contacts__identified') }}
    where moved_at >= {{ last_taken() }}

),

new_sends as (

    select identity_id, least(coalesce(accepted_at, confirmed_at), coalesce(confirmed_at, accepted_at)) as sent_from
    from {{ ref('int_messages__followed') }}
    where sent_changed_at > {{ last_taken(this.identifier ~ ' sends') }}

),

new_orders as (

    -- orders that came, changed, or found their contact
    select identity_ids, ordered_at
    from {{ ref('int_orders__combined') }}
    where recorded_at > {{ last_taken() }} or identity_id in (select identity_id from moved)

),

(

    -- the earliest order, or message that may take an order from the one before it: nothing changes further back
    select least(
        coalesce((select minOrNull(ordered_at) from new_orders), {{ far_off }}),
        coalesce((select minOrNull(sent_from) from new_sends), {{ far_off }}),
        if(
            (select count() from moved where kind = 'message' and previous_contact_id != 0) > 0,
            toDateTime64('1970-03-31 00:00:00', 3, 'UTC'),
            {{ far_off }}
        )
    )

) as changed_from,

(

    -- whose messages and orders are looked at: a list, since each name of a CTE is a copy of it that is run again
    select groupUniqArray(contact_id)
    from (
        select contact_id
        from {{ ref('int_contacts__identified') }}
        where
            identity_id in (select arrayJoin(identity_ids) from new_orders)
            -- a message takes an order from the one before it only if there is one after it
            or (
                identity_id in (select identity_id from new_sends)
                and contact_id in (
                    select contact_id from {{ ref('int_contacts__identified') }}
                    where identity_id in (
                        select identity_id from {{ ref('int_orders__combined') }} where ordered_at >= changed_from
                    )
                )
            )

        union all

        select arrayJoin([contact_id, previous_contact_id]) as contact_id from moved
    )

) as due_contacts,

{% endif -%}
owners as (

    select identity_id as owner_identity_id, contact_id as owner_contact_id, kind as owner_kind
    from {{ ref('int_contacts__identified') }}
    {% if is_incremental() -%}
    -- a table of all who are known would be made for each join
    where contact_id in (select arrayJoin(due_contacts))
    {%- endif %}

),

sent as (

    -- of each message the newest row
    select
        followed.message_hash as message_hash,
        any(owners.owner_contact_id) as contact_id,
        assumeNotNull(argMax(followed.sent_at, followed.rebuilt_at)) as sent_at
    from {{ ref('int_messages__followed') }} as followed
    inner join owners on owners.owner_identity_id = followed.identity_id
    where
        owners.owner_kind = 'message'
        {% if is_incremental() -%}
        and followed.created_at >= changed_from - {{ windows }} - {{ life }}
        and followed.identity_id in (
            select owner_identity_id from owners where owner_kind = 'message'
        )
        {%- endif %}
    group by message_hash
    having
        argMax(followed.sent_at, followed.rebuilt_at) is not null
        {% if is_incremental() -%}
        and sent_at >= changed_from - {{ windows }}
        {%- endif %}

),

orders as (

    select
        orders.order_id as order_id,
        owners.owner_contact_id as contact_id,
        orders.ordered_at as ordered_at,
        orders.revenue as revenue
    {% if is_incremental() -%}
    from (
        {{ newest_orders(
            ['order_id', 'identity_id', 'ordered_at', 'revenue', 'is_sale'],
            'ordered_at >= changed_from - ' ~ window ~ ' and identity_id in (select owner_identity_id from owners)'
        ) }}
    ) as orders
    {%- else -%}
    from {{ newest(ref('int_orders__combined'), 'orders') }}
    {%- endif %}
    inner join owners on owners.owner_identity_id = orders.identity_id
    where
        orders.is_sale
        {% if is_incremental() -%}
        and orders.ordered_at >= changed_from - {{ window }}
        {%- endif %}

),

conversions as (

    -- an order counts for the last message before it, so that no pound is counted twice
    select
        sent.message_hash as message_hash,
        count()::UInt32 as orders_count,
        sum(orders.revenue)::Decimal(18, 2) as revenue,
        argMin(orders.order_id, tuple(orders.ordered_at, orders.order_id)) as converted_order_id,
        min(orders.ordered_at) as converted_at,
        any(sent.sent_at) as sent_at
    from orders
    asof join sent
        on sent.contact_id = orders.contact_id and sent.sent_at <= orders.ordered_at
    where orders.ordered_at < sent.sent_at + {{ window }}
    group by sent.message_hash

)

{%- if is_incremental() %},

known as (

    select
        message_hash,
        argMax(
            tuple(this.orders_count, this.revenue, this.converted_order_id, this.converted_at), this.rebuilt_at
        ) as conversion
    from {{ this }} as this
    where message_hash in (select message_hash from sent where sent_at >= changed_from - {{ window }})
    group by message_hash

),

whole as (

    -- orders of messages before this moment were not all looked at
    select * from conversions
    where sent_at >= changed_from - {{ window }}

)
{%- endif %}

{% set conversions = 'whole' if is_incremental() else 'conversions' %}
select
    ---------- ids
    {% if is_incremental() -%}
    assumeNotNull(coalesce(whole.message_hash, known.message_hash)) as message_hash,
    {%- else -%}
    conversions.message_hash as message_hash,
    {%- endif %}
    -- without orders the row stays, to outdo the one before it
    toNullable({{ conversions }}.converted_order_id) as converted_order_id,

    ---------- numerics
    coalesce({{ conversions }}.orders_count, 0)::UInt32 as orders_count,
    coalesce({{ conversions }}.revenue, 0)::Decimal(18, 2) as revenue,

    ---------- timestamps
    toNullable({{ conversions }}.converted_at) as converted_at,
    {{ stamp() }} as rebuilt_at
{% if is_incremental() -%}
from whole
full outer join known on known.message_hash = whole.message_hash
where
    coalesce(whole.orders_count, 0) != coalesce(known.conversion.1, 0)
    or coalesce(whole.revenue, 0) != coalesce(known.conversion.2, 0)
    or coalesce(whole.converted_order_id, '') != coalesce(known.conversion.3, '')
    or whole.converted_at is distinct from known.conversion.4
{%- else -%}
from conversions
{%- endif %}
