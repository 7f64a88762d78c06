with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

)

select contact_id
from profiles
where
    not is_deleted
    and orders_count = 1
    and first_order_at < {{ now() }} - toIntervalDay(90)
