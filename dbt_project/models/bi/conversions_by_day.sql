with

conversions as (

    select * from {{ ref('conversions') }}

)

select
    ---------- ids
    goal,
    toDate(converted_at, 'UTC') as converted_on,

    ---------- numerics
    count() as conversions_count,
    uniqExact(contact_id) as contacts_count,
    sum(revenue)::Decimal(18, 2) as revenue
from conversions
group by goal, converted_on
