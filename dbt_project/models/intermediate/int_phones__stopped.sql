{{
    config(
        materialized='view'
    )
}}

with

said as (

    select
        address as phone,
        max(told.subscribed_at) as last_subscribed_at,
        max(told.unsubscribed_at) as last_unsubscribed_at,
        max(told.complained_at) as last_complained_at,
        max(told.bounced_at) as last_bounced_at
    from {{ ref('int_stops__told') }} as told
    where channel = 'sms'
    group by phone

)

select phone
from said
where
    last_bounced_at > toDateTime64(0, 3, 'UTC')
    or {{ is_stopped('last_subscribed_at', 'last_unsubscribed_at', 'last_complained_at') }}
