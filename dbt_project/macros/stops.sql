{#-
    Whether somebody must not be written to, by when they last signed up, unsubscribed and complained (1970: never): who
    signs up again takes back an unsubscribe, never a complaint.
-#}
{% macro is_stopped(subscribed_at, unsubscribed_at, complained_at) -%}
    (
        {{ complained_at }} > toDateTime64(0, 3, 'UTC')
        or ({{ unsubscribed_at }} > toDateTime64(0, 3, 'UTC') and {{ unsubscribed_at }} >= {{ subscribed_at }})
    )
{%- endmacro %}
