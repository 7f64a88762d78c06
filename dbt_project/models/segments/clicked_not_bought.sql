with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

)

select contact_id
from profiles
where
    not is_deleted
    and last_clicked_at >= {{ now() }} - toIntervalDay(14)
    and (last_order_at is null or last_order_at < last_clicked_at)
