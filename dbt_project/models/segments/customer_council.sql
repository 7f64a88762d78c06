with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

),

members as (

    select * from {{ ref('int_lists__identified') }}

)

select contact_id
from members
where
    list = 'customer_council'
    and contact_id in (select contact_id from profiles where not is_deleted)
