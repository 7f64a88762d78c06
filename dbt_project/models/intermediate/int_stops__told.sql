{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        on_schema_change='fail',
        engine=engine('AggregatingMergeTree'),
        order_by=['channel', 'address', 'message_hash'],
        query_settings={'optimize_on_insert': 0},
        post_hook="{{ note_loads_taken() }}"
    )
}}

with

events as (

    -- as `suppressions` reads them
    select *, if(stop_channel = 'sms', 'sms', 'all') as channel
    from {{ ref('stg_events__events') }}
    where
        type in ('unsubscribed', 'complained', 'bounced', 'subscribed')
        and not is_machine
        and (
            (stop_channel = 'sms' and (type != 'bounced' or bounce_class = 'hard'))
            or (stop_channel = 'all' and type = 'unsubscribed')
            -- who signs up again by mail takes back what was said of all channels
            or (stop_channel != 'sms' and type = 'subscribed')
        )
        and (phone != '' or email != '' or message_id != '')
        {% if is_incremental() -%}
        and loaded_at > {{ newest_load_or_note('last_loaded_at', 'recorded_at') }}
        {%- endif %}

)

select
    ---------- ids
    -- some providers name only the message
    if(events.channel = 'all' and events.email = '', events.message_hash, 0)::UInt64 as message_hash,

    ---------- text
    events.channel::LowCardinality(String) as channel,
    if(events.channel = 'sms', coalesce({{ e164('events.phone') }}, events.phone), events.email)::String as address,

    ---------- timestamps
    {%- for type in ['subscribed', 'unsubscribed', 'complained', 'bounced'] %}
    maxIf(events.occurred_at, type = '{{ type }}')::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as {{ type }}_at,
    {%- endfor %}
    max(events.loaded_at)::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as last_loaded_at,
    {{ stamp() }}::SimpleAggregateFunction(max, DateTime64(3, 'UTC')) as recorded_at
from events
group by channel, address, message_hash
