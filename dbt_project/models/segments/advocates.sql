with

best as (

    select contact_id from {{ ref('champions') }}

    union distinct

    select contact_id from {{ ref('loyal_customers') }}

),

engaged as (

    select contact_id from {{ ref('engaged') }}

)

select contact_id
from best
where contact_id in (select contact_id from engaged)
