{{
    config(
        order_by=['day', 'source']
    )
}}

with

subscribers as (

    select * from {{ ref('int_subscribers__changed') }}

),

contacts as (

    select * from {{ ref('contacts') }}

),

counted as (

    select
        toDate(subscribers.changed_at, 'UTC') as day,
        subscribers.source::String as source,
        0 as new_contacts_count,
        countIf(change = 'joined') as joined_count,
        countIf(change = 'withdrawn') as withdrawn_count,
        countIf(change = 'unsubscribed') as unsubscribed_count,
        countIf(change = 'complained') as complained_count,
        countIf(change = 'hard_bounced') as hard_bounced_count
    from subscribers
    group by day, source

    union all

    select
        toDate(contacts.created_at, 'UTC') as day,
        contacts.sources[1] as source,
        count() as new_contacts_count,
        0 as joined_count,
        0 as withdrawn_count,
        0 as unsubscribed_count,
        0 as complained_count,
        0 as hard_bounced_count
    from contacts
    group by day, source

),

days as (

    select
        day,
        source,
        sum(counted.new_contacts_count) as new_contacts_count,
        sum(counted.joined_count) as joined_count,
        sum(counted.withdrawn_count) as withdrawn_count,
        sum(counted.unsubscribed_count) as unsubscribed_count,
        sum(counted.complained_count) as complained_count,
        sum(counted.hard_bounced_count) as hard_bounced_count,
        (withdrawn_count + unsubscribed_count + complained_count + hard_bounced_count)::UInt64 as lost_count,
        joined_count::Int64 - lost_count::Int64 as net_count
    from counted
    group by day, source

),

sizes as (

    select
        *,
        sum(net_count) over (partition by source order by day) as subscribers_count
    from days

)

select
    ---------- ids
    day,
    source,

    ---------- numerics
    new_contacts_count::UInt64 as new_contacts_count,
    joined_count::UInt64 as joined_count,
    withdrawn_count::UInt64 as withdrawn_count,
    unsubscribed_count::UInt64 as unsubscribed_count,
    complained_count::UInt64 as complained_count,
    hard_bounced_count::UInt64 as hard_bounced_count,
    lost_count,
    net_count::Int64 as net_count,
    subscribers_count::Int64 as subscribers_count,
    -- of those who were there when the day began, or came on it: a list that lives a day can lose everybody, not more
    {{ rate('lost_count', '(subscribers_count + lost_count)') }} as churn_rate
from sizes
