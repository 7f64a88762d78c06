with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

)

select contact_id
from profiles
where
    not is_deleted
    and has_marketing_consent
    and not is_suppressed
    and orders_count = 0
