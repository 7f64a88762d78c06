with

messages as (

    select * from {{ ref('messages') }}

),

orders as (

    select * from {{ ref('orders') }}
    where contact_id is not null

),

memberships as (

    select * from {{ ref('segment_memberships') }}

),

mail as (

    select
        contact_id,
        arrayJoin(
            arrayFilter(
                moment -> moment.2 is not null,
                [
                    tuple('skipped', if(status = 'skipped', toNullable(created_at), null)),
                    tuple('sent', sent_at),
                    tuple('delivered', delivered_at),
                    tuple('opened', first_opened_at),
                    tuple('clicked', first_clicked_at),
                    tuple('bounced', bounced_at),
                    tuple('complained', complained_at),
                    tuple('unsubscribed', unsubscribed_at)
                ]
            )
        ) as moment,
        name as subject_name,
        multiIf(moment.1 = 'skipped', reason, moment.1 = 'bounced', bounce_class, variant)::String as detail
    from messages

),

moments as (

    select
        contact_id,
        assumeNotNull(moment.2) as happened_at,
        'mail' as area,
        moment.1 as happening,
        subject_name::String as subject_name,
        detail,
        0::Decimal(18, 2) as revenue
    from mail

    union all

    select
        assumeNotNull(contact_id) as contact_id,
        ordered_at as happened_at,
        'shop' as area,
        if(is_sale, 'ordered', 'cancelled') as happening,
        order_id as subject_name,
        concat(toString(items_count), ' items') as detail,
        revenue
    from orders

    union all

    select
        contact_id,
        valid_from as happened_at,
        'segment' as area,
        'entered' as happening,
        segment::String as subject_name,
        '' as detail,
        0::Decimal(18, 2) as revenue
    from memberships

    union all

    select
        contact_id,
        assumeNotNull(valid_to) as happened_at,
        'segment' as area,
        'left' as happening,
        segment::String as subject_name,
        '' as detail,
        0::Decimal(18, 2) as revenue
    from memberships
    where valid_to is not null

)

select
    ---------- ids
    contact_id,

    ---------- text
    area,
    happening,
    subject_name,
    detail,

    ---------- numerics
    revenue,

    ---------- timestamps
    happened_at
from moments
