with

profiles as (

    -- the profile has everybody, and the score as of the last build, which is when the other figures stand too
    select * from {{ ref('contact_profiles') }}
    where not is_deleted

)

select
    ---------- ids
    engagement_band,

    ---------- text
    if(rfm_segment = '', 'no_orders', rfm_segment)::String as customer_group,

    ---------- numerics
    transform(engagement_band, ['active', 'cooling', 'cold', 'gone', 'never'], [1, 2, 3, 4, 5], 6)::UInt8 as band_order,
    count() as contacts_count,
    countIf(has_marketing_consent and not is_suppressed) as mailable_count,
    countIf(messages_sent_count > 0) as written_to_count,
    countIf(messages_opened_count > 0) as openers_count,
    countIf(messages_clicked_count > 0) as clickers_count,
    countIf(orders_count > 0) as customers_count,
    sum(engagement_score) as engagement_score_sum,
    sum(revenue)::Decimal(18, 2) as revenue
from profiles
group by engagement_band, customer_group
