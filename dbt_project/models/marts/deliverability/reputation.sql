{{
    config(
        order_by=['day', 'window_days', 'sending_domain', 'provider', 'mailbox_provider']
    )
}}

with

days as (

    select * from {{ ref('deliverability_by_day') }}

),

thresholds as (

    select * from {{ ref('reputation_thresholds') }}

),

windows as (

    -- as tuples: days, and the counts of so many up to this one
    select
        day,
        sending_domain,
        provider,
        mailbox_provider,
        [
            {%- for window_days in (1, 7, 30) %}
            tuple(
                {{ window_days }}::UInt8,
                sum(days.sent_count) over of_{{ window_days }},
                sum(days.reached_count) over of_{{ window_days }},
                sum(days.hard_bounced_count) over of_{{ window_days }},
                sum(days.complained_count) over of_{{ window_days }}
            ){{ ',' if not loop.last }}
            {%- endfor %}
        ] as windows
    from days
    window
        {%- for window_days in (1, 7, 30) %}
        of_{{ window_days }} as (
            partition by sending_domain, provider, mailbox_provider order by day
            range between {{ window_days - 1 }} preceding and current row
        ){{ ',' if not loop.last }}
        {%- endfor %}

),

measured as (

    select
        day,
        sending_domain,
        provider,
        mailbox_provider,
        rolled.1 as window_days,
        rolled.2 as sent_count,
        rolled.3 as reached_count,
        rolled.4 as hard_bounced_count,
        rolled.5 as complained_count
    from windows
    array join windows.windows as rolled

),

metrics as (

    -- as tuples: metric, rate, messages it is of, cases
    select
        *,
        {{ rate('hard_bounced_count', 'sent_count') }} as hard_bounce_rate,
        {{ rate('complained_count', 'reached_count') }} as complaint_rate,
        [
            tuple('complaint_rate', coalesce(complaint_rate, 0), reached_count, complained_count),
            tuple('hard_bounce_rate', coalesce(hard_bounce_rate, 0), sent_count, hard_bounced_count)
        ] as rates,
        (
            select groupArray(
                tuple(metric, mailbox_provider, level, threshold, minimum_messages, minimum_cases, source)
            )
            from thresholds
        ) as lines
    from measured

),

judged as (

    select
        *,
        -- lines of a mailbox provider's own stand in for the general ones of that metric
        arrayFilter(
            line -> line.2 = mailbox_provider
                or (
                    line.2 = ''
                    and not arrayExists(own -> own.1 = line.1 and own.2 = mailbox_provider and own.2 != '', lines)
                ),
            lines
        ) as own_lines,
        -- what is crossed, the worst first: critical before warning, then what is exceeded most
        arraySort(
            line -> tuple(line.3 != 'critical', -arrayFirst(rate -> rate.1 = line.1, rates).2 / line.4, line.1),
            arrayFilter(
                line -> arrayExists(
                    rate -> rate.1 = line.1 and rate.2 >= line.4 and rate.3 >= line.5 and rate.4 >= line.6,
                    rates
                ),
                own_lines
            )
        ) as crossed
    from metrics

)

select
    ---------- ids
    day,
    window_days,
    sending_domain,
    provider,
    mailbox_provider,

    ---------- text
    if(notEmpty(crossed), crossed[1].3, 'ok') as status,
    if(notEmpty(crossed), crossed[1].1, '') as crossed_metric,
    if(notEmpty(crossed), crossed[1].7, '') as crossed_source,

    ---------- numerics
    sent_count,
    reached_count,
    hard_bounced_count,
    complained_count,
    hard_bounce_rate,
    complaint_rate,
    if(notEmpty(crossed), toNullable(crossed[1].4), null) as crossed_threshold,

    ---------- booleans
    -- whether any line could be crossed at this volume, whatever the rates
    arrayExists(
        line -> arrayExists(rate -> rate.1 = line.1 and rate.3 >= line.5, rates), own_lines
    )::Bool as is_judged,
    (day = max(day) over (partition by window_days, sending_domain, provider, mailbox_provider))::Bool as is_latest
from judged
