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
    and orders_count > 0
    and contact_id in (select contact_id from predictions where model = 'churn' and score >= 0.7)
