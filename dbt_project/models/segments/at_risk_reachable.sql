with

at_risk as (

    select contact_id from {{ ref('at_risk') }}

),

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

)

select contact_id
from profiles
where
    has_marketing_consent
    and not is_suppressed
    and contact_id in (select contact_id from at_risk)
