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
    and (last_engaged_at is null or last_engaged_at < {{ now() }} - toIntervalDay(120))
