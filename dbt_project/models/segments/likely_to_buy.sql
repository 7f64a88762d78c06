with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

),

predictions as (

    select * from {{ ref('int_predictions__current') }}

)

select contact_id
from profiles
where
    not is_deleted
    and contact_id in (select contact_id from predictions where model = 'purchase' and score >= 0.5)
