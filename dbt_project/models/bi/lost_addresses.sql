with

suppressions as (

    select * from {{ ref('suppressions') }}
    where channel = 'email'

)

select
    ---------- ids
    suppressed_at::Date as suppressed_on,
    reason,

    ---------- numerics
    count() as addresses_count,
    countIf(is_bounced) as dead_addresses_count
from suppressions
group by suppressed_on, reason
