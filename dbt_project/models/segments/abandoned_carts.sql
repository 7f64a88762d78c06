with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

),

browsed as (

    select * from {{ ref('int_contacts__browsed') }}

)

select profiles.contact_id as contact_id
from profiles
inner join browsed on browsed.contact_id = profiles.contact_id
where
    not profiles.is_deleted
    and browsed.last_cart_at >= {{ now() }} - toIntervalDay(3)
    and browsed.last_cart_at < {{ now() }} - toIntervalHour(1)
    and (profiles.last_order_at is null or profiles.last_order_at < browsed.last_cart_at)
