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
    Who must not be written to, of people with `last_subscribed_at`, `last_unsubscribed_at` and `last_complained_at`. A merge
    makes one of several: what one of them decided is taken back by what another said only after the merge.

    parts: relation with contact_id, a row for each of those who are one now.
-#}
{% macro stopped_people(parts) -%}
    select people.contact_id as contact_id
    from (
        select
            contact_id,
            groupArray(tuple(last_subscribed_at, last_unsubscribed_at, last_complained_at)) as decisions,
            max(last_subscribed_at) as newest_at
        from {{ parts }}
        group by contact_id
    ) as people
    left any join (
        select contact_id as merged_contact_id, merged_at from {{ ref('int_contacts__merged') }}
    ) as merged
        on merged.merged_contact_id = people.contact_id
    where arrayExists(
        decision -> {{ is_stopped(
            "greatest(decision.1, if(people.newest_at > coalesce(merged.merged_at, toDateTime64(0, 3, 'UTC')), people.newest_at, toDateTime64(0, 3, 'UTC')))",
            'decision.2',
            'decision.3',
        ) }},
        people.decisions
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
