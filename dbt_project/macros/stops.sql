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


{#-
    What an unsubscribe, complaint, bounce or signing up is about: a telephone number is of `sms`; what says `channel: all`
    (the page of preferences) is of all channels; any other is of mail, and silences nothing else.
-#}
{% macro stop_channel() -%}
    multiIf(
        coalesce(properties.phone::Nullable(String), '') != '', 'sms',
        coalesce(properties.channel::Nullable(String), '') = 'all', 'all',
        'email'
    )
{%- endmacro %}


{#-
    Of the stops of one address those in force, earliest first: when, the event, its type, whether it is of all channels. Who
    signs up again takes back an unsubscribe, never a complaint or a bounce.
-#}
{% macro standing_stops() -%}
    arraySort(
        stop -> (stop.1, stop.2),
        arrayFilter(
            stop -> stop.3 != 'unsubscribed' or stop.1 >= maxIf(occurred_at, type = 'subscribed'),
            groupArrayIf(tuple(occurred_at, event_id, type::String, is_global), type != 'subscribed')
        )
    )
{%- endmacro %}
