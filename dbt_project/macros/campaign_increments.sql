{#-
    How marts of campaigns follow messages at the cost of what changed.

    `int_messages__segmented` takes over the messages that were rebuilt since its own last run; what is counted from it
    is rebuilt by whole months of messages, those in which a message was taken over: as far back as the life of a message
    reaches. Each model notes the newest stamp that it has seen (`int_increments__taken`) when it is done, so that one that
    failed or was killed half way catches up.
-#}

{#- Post-hook of such models: notes the newest stamp. -#}
{% macro note_messages_taken(messages) -%}
    insert into {{ ref('int_increments__taken') }} (model, taken_at, taken_on)
    select '{{ this.identifier }}', max(rebuilt_at), toDate(max(rebuilt_at), 'UTC')
    from {{ messages }}
{%- endmacro %}


{#-
    For `int_messages__segmented`: months (as 201106) of messages that were rebuilt, or whose orders count anew, since it
    last ran; none on a full refresh. Asked before, so that ClickHouse reads the partitions of these months only.
-#}
{% macro rebuilt_months() %}
    {%- if not is_incremental() -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set query -%}
        select distinct toYYYYMM(created_at) as month
        from {{ ref('int_messages__followed') }}
        where
            rebuilt_at > {{ last_taken() }}
            or message_hash in (
                select message_hash from {{ ref('int_messages__converted') }}
                where rebuilt_at > {{ last_taken() }}
            )
        order by month
    {%- endset -%}
    {#- rows, not columns: an empty answer may come without its columns -#}
    {{ return(run_query(query).rows | map(attribute=0) | list) }}
{% endmacro %}


{#-
    Months (as 201106) of messages, of those that meet a condition, that a model over `int_messages__segmented` or another
    table of messages must rebuild; none on a full refresh, which means all. Asked before the model's query, so that
    ClickHouse reads the partitions of these months only.
-#}
{% macro touched_months(messages=none, condition='true') %}
    {%- if not is_incremental() -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set query -%}
        select distinct toYYYYMM(created_at) as month
        from {{ messages or ref('int_messages__segmented') }}
        where rebuilt_at > {{ last_taken() }} and {{ condition }}
        order by month
    {%- endset -%}
    {{ return(run_query(query).rows | map(attribute=0) | list) }}
{% endmacro %}


{#- Whether a message was decided on in one of these months. -#}
{% macro is_of_months(months) -%}
    {{ 'toYYYYMM(created_at) in (' ~ months | join(', ') ~ ')' if months else 'false' }}
{%- endmacro %}


{#-
    The messages of those months, each as it is now. A message is of one month, so models read each month by itself
    (do_not_merge_across_partitions_select_final).
-#}
{% macro messages_of(months) -%}
    select * from {{ ref('int_messages__segmented') }} final
    {% if months is not none -%}
    where {{ is_of_months(months) }}
    {%- endif %}
{%- endmacro %}


{#-
    Whether an event, called `events`, may be part of the life of messages of those months, and is of that of its own
    message, called `messages`. Load days before the first of the months are not read.
-#}
{% macro is_of_message_life(months) -%}
    events.occurred_at < messages.created_at + toIntervalDay({{ var('message_life_days') }})
    {%- if months %}
        and {{ loaded_after('events.loaded_on', "toDateTime64('" ~ (months[0] | string)[:4] ~ "-" ~ (months[0] | string)[4:] ~ "-01 00:00:00', 3, 'UTC')") }}
    {%- endif %}
{%- endmacro %}
