with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

)

select contact_id
from profiles
where
    not is_deleted
    and messages_sent_count >= 1
    and messages_opened_count = 0
