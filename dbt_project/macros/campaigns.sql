{#-
    What the marts of campaigns count, each a sum over messages: column -> expression over `int_messages__segmented`.
    So that a rate by day, by segment and by mailbox provider is always the same rate.
-#}
{% macro campaign_counts() %}
    {{ return({
        'audience_count': "count()",
        'sent_count': "countIf(messages.is_sent)",
        'skipped_count': "countIf(messages.status = 'skipped')",
        'skipped_suppressed_count': "countIf(messages.status = 'skipped' and messages.reason = 'suppressed')",
        'skipped_no_consent_count': "countIf(messages.status = 'skipped' and messages.reason = 'no_consent')",
        'skipped_frequency_cap_count': "countIf(messages.status = 'skipped' and messages.reason = 'frequency_cap')",
        'failed_count': "countIf(messages.status in ('failed', 'rejected', 'invalid'))",
        'unknown_count': "countIf(messages.status = 'unknown')",
        'delivered_count': "countIf(messages.delivered_at is not null)",
        'opened_count': "countIf(messages.is_opened)",
        'machine_opened_count': "countIf(not messages.is_opened and messages.machine_opens_count > 0)",
        'opens_count': "sum(messages.opens_count)",
        'machine_opens_count': "sum(messages.machine_opens_count)",
        'clicked_count': "countIf(messages.is_clicked)",
        'machine_clicked_count': "countIf(not messages.is_clicked and messages.machine_clicks_count > 0)",
        'clicks_count': "sum(messages.clicks_count)",
        'machine_clicks_count': "sum(messages.machine_clicks_count)",
        'bounced_count': "countIf(messages.bounced_at is not null)",
        'hard_bounced_count': "countIf(messages.bounce_class = 'hard')",
        'complained_count': "countIf(messages.complained_at is not null)",
        'unsubscribed_count': "countIf(messages.unsubscribed_at is not null)",
        'converted_count': "countIf(messages.converted_at is not null)",
        'orders_count': "sum(messages.orders_count)",
    }) }}
{% endmacro %}


{#- Every count, revenue and the time of sending, of rows of `int_messages__segmented` that are called `messages`: for a group by. -#}
{% macro campaign_sums_of_messages() -%}
    {%- for column, expression in campaign_counts().items() %}
        {{ expression }}::UInt64 as {{ column }},
    {%- endfor %}
        sum(messages.revenue)::Decimal(18, 2) as revenue,
        min(messages.sent_at) as first_sent_at,
        max(messages.sent_at) as last_sent_at
{%- endmacro %}


{#- The same of rows that hold these sums already, which are called `counted`: for a group by. -#}
{% macro campaign_sums_of_sums() -%}
    {%- for column in campaign_counts() %}
        sum(counted.{{ column }}) as {{ column }},
    {%- endfor %}
        sum(counted.revenue)::Decimal(18, 2) as revenue,
        min(counted.first_sent_at) as first_sent_at,
        max(counted.last_sent_at) as last_sent_at
{%- endmacro %}


{#- The columns of a mart of campaigns, over a relation with the sums: counts, rates and times; has_goals: and the campaign's own goal. -#}
{% macro campaign_columns(has_goals=false) -%}
    ---------- numerics
    {%- for column in campaign_counts() %}
    {{ column }},
    {%- endfor %}
    revenue,
    {{ rate('delivered_count', 'sent_count') }} as delivery_rate,
    {{ rate('opened_count', 'delivered_count') }} as open_rate,
    {{ rate('clicked_count', 'delivered_count') }} as click_rate,
    {{ rate('clicked_count', 'opened_count') }} as click_to_open_rate,
    {{ rate('bounced_count', 'sent_count') }} as bounce_rate,
    {{ rate('hard_bounced_count', 'sent_count') }} as hard_bounce_rate,
    {{ rate('complained_count', 'delivered_count') }} as complaint_rate,
    {{ rate('unsubscribed_count', 'delivered_count') }} as unsubscribe_rate,
    {{ rate('converted_count', 'delivered_count') }} as conversion_rate,
    {{ rate('toFloat64(revenue)', 'delivered_count') }} as revenue_per_recipient,
    {%- if has_goals %}
    goal_reached_count,
    goal_revenue,
    {{ rate('goal_reached_count', 'delivered_count') }} as goal_rate,
    {%- endif %}

    ---------- timestamps
    first_sent_at,
    last_sent_at
{%- endmacro %}
