{{
    config(
        order_by=['campaign', 'occurrence', 'variant', 'kind']
    )
}}

with

messages as (

    select * from {{ ref('messages') }}

),

counted as (

    select
        kind,
        name as campaign,
        occurrence,
        variant,
        count() as audience_count,
        countIf(is_sent) as sent_count,
        countIf(status = 'skipped') as skipped_count,
        countIf(status = 'skipped' and reason = 'suppressed') as skipped_suppressed_count,
        countIf(status = 'skipped' and reason = 'no_consent') as skipped_no_consent_count,
        countIf(status = 'skipped' and reason = 'frequency_cap') as skipped_frequency_cap_count,
        countIf(status in ('failed', 'rejected', 'invalid')) as failed_count,
        countIf(status = 'unknown') as unknown_count,
        countIf(delivered_at is not null) as delivered_count,
        countIf(is_opened) as opened_count,
        countIf(not is_opened and machine_opens_count > 0) as machine_opened_count,
        countIf(is_clicked) as clicked_count,
        countIf(not is_clicked and machine_clicks_count > 0) as machine_clicked_count,
        countIf(bounced_at is not null) as bounced_count,
        countIf(bounce_class = 'hard') as hard_bounced_count,
        countIf(complained_at is not null) as complained_count,
        countIf(unsubscribed_at is not null) as unsubscribed_count,
        countIf(converted_at is not null) as converted_count,
        sum(orders_count) as orders_count,
        sum(revenue) as revenue,
        min(sent_at) as first_sent_at,
        max(sent_at) as last_sent_at
    from messages
    group by kind, campaign, occurrence, variant

)

select
    ---------- ids
    kind,
    campaign,
    occurrence,
    variant,

    ---------- numerics
    audience_count,
    sent_count,
    skipped_count,
    skipped_suppressed_count,
    skipped_no_consent_count,
    skipped_frequency_cap_count,
    failed_count,
    unknown_count,
    delivered_count,
    opened_count,
    machine_opened_count,
    clicked_count,
    machine_clicked_count,
    bounced_count,
    hard_bounced_count,
    complained_count,
    unsubscribed_count,
    converted_count,
    orders_count::UInt64 as orders_count,
    revenue::Decimal(18, 2) as revenue,
    {{ rate('delivered_count', 'sent_count') }} as delivery_rate,
    {{ rate('opened_count', 'delivered_count') }} as open_rate,
    {{ rate('clicked_count', 'delivered_count') }} as click_rate,
    {{ rate('clicked_count', 'opened_count') }} as click_to_open_rate,
    {{ rate('bounced_count', 'sent_count') }} as bounce_rate,
    {{ rate('complained_count', 'delivered_count') }} as complaint_rate,
    {{ rate('unsubscribed_count', 'delivered_count') }} as unsubscribe_rate,
    {{ rate('converted_count', 'delivered_count') }} as conversion_rate,

    ---------- timestamps
    first_sent_at,
    last_sent_at
from counted
