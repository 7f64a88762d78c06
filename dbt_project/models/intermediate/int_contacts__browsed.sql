{{
    config(
        order_by='contact_id'
    )
}}

with

events as (

    select * from {{ ref('int_events__recorded') }}
    where
        type in ('product.viewed', 'cart.updated')
        and not is_machine
        and occurred_at >= {{ now() }} - toIntervalDay(7)
        -- nothing is loaded before it happens: partitions of older loads are not read
        and {{ loaded_within('loaded_on', 7) }}

),

identities as (

    select
        identity_id,
        countIf(type = 'product.viewed') as views_count,
        maxIfOrNull(occurred_at, type = 'product.viewed') as last_viewed_at,
        maxIfOrNull(occurred_at, type = 'cart.updated') as last_cart_at
    from events
    group by identity_id

),

owners as (

    select
        identity_id,
        contact_id
    from {{ ref('int_contacts__identified') }}
    where identity_id in (select identity_id from identities)

)

select
    ---------- ids
    owners.contact_id as contact_id,

    ---------- numerics
    sum(identities.views_count) as views_count,

    ---------- timestamps
    max(identities.last_viewed_at) as last_viewed_at,
    max(identities.last_cart_at) as last_cart_at
from identities
inner join owners on owners.identity_id = identities.identity_id
group by owners.contact_id
