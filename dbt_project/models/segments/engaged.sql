with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

)

select contact_id
from profiles
where
    not is_deleted
    and engagement_score >= 20
