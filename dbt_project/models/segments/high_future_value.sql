with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

),

predictions as (

    select * from {{ ref('int_predictions__current') }}
    where model = 'lifetime_value'

),

(select quantile(0.8)(score) from predictions) as threshold

select contact_id
from profiles
where
    not is_deleted
    and orders_count > 0
    and contact_id in (select contact_id from predictions where score > 0 and score >= threshold)
