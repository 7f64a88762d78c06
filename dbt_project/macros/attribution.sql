{#-
    Credit of each touch of a path, by every model: name -> expression of type Array(Float64) that adds up to 1 over the
    path, in one pass over its arrays. Takes any relation with two arrays in the order of time:

    ages: days from each touch to the conversion.
    effects: removal effect of each touch's campaign or channel, below 0 where none is known.
-#}
{% macro attribution_models(ages='ages', effects='effects') %}
    {%- set count = 'length(' ~ ages ~ ')' -%}
    {%- set positions = 'arrayEnumerate(' ~ ages ~ ')' -%}
    {%- set half_life = var('attribution_half_life_days') -%}
    {#- seen from the last touch, so that nothing vanishes however long ago the path was -#}
    {%- set halved = 'arrayMap(age -> exp2((' ~ ages ~ '[-1] - age) / ' ~ half_life ~ '), ' ~ ages ~ ')' -%}
    {#- a campaign too new to have an effect counts like the mean of the others on the path -#}
    {%- set known = 'arrayFilter(effect -> effect >= 0, ' ~ effects ~ ')' -%}
    {%- set filled -%}
        arrayMap(
            (effect, mean) -> if(effect >= 0, effect, mean),
            {{ effects }},
            arrayResize([]::Array(Float64), {{ count }}, if(empty({{ known }}), 1., arraySum({{ known }}) / length({{ known }})))
        )
    {%- endset -%}
    {#- where no campaign of the path has any effect, all are equal -#}
    {%- set weighed = 'if(arraySum(' ~ filled ~ ') > 0, ' ~ filled ~ ', arrayMap(age -> 1., ' ~ ages ~ '))' -%}
    {{ return({
        'first_touch': 'arrayMap(position -> if(position = 1, 1., 0.), ' ~ positions ~ ')',
        'last_touch': 'arrayMap(position -> if(position = 1, 1., 0.), arrayReverse(' ~ positions ~ '))',
        'linear': 'arrayMap(age -> 1. / ' ~ count ~ ', ' ~ ages ~ ')',
        'position_based': 'multiIf('
            ~ count ~ ' = 1, [1.], '
            ~ count ~ ' = 2, [0.5, 0.5], '
            ~ 'arrayMap(position -> if(position in (1, ' ~ count ~ '), 0.4, 0.2 / (' ~ count ~ ' - 2)), ' ~ positions ~ '))',
        'time_decay': shares(halved),
        'data_driven': shares(weighed),
    }) }}
{% endmacro %}


{#- Numbers divided by their sum. -#}
{% macro shares(numbers) -%}
    arrayMap((number, total) -> number / total, {{ numbers }}, arrayResize([]::Array(Float64), length({{ numbers }}), arraySum({{ numbers }})))
{%- endmacro %}


{#- When a message touched its reader, by the var `attribution_touch`; null if it did not. -#}
{% macro attribution_touched_at() -%}
    {%- set touch = var('attribution_touch') -%}
    {%- if touch == 'sent' -%}
        sent_at
    {%- elif touch == 'clicked' -%}
        first_clicked_at
    {%- elif touch == 'opened' -%}
        {#- whoever clicks has read it, though images were off -#}
        least(coalesce(first_opened_at, first_clicked_at), coalesce(first_clicked_at, first_opened_at))
    {%- else -%}
        {{ exceptions.raise_compiler_error(
            "Variable attribution_touch is '" ~ touch ~ "'. Fix: set it to sent, opened or clicked."
        ) }}
    {%- endif -%}
{%- endmacro %}


{#-
    A hash of all of a message that credit and goals follow: the rest of its life may change without them.
    message: alias of a relation with these columns.
-#}
{% macro what_touches(message) -%}
    cityHash64(
        {%- for text in ['kind', 'name', 'occurrence', 'variant', 'channel'] %}
        {{ message }}.{{ text }}::String,
        {%- endfor %}
        {%- for moment in ['sent_at', 'first_opened_at', 'first_clicked_at'] %}
        coalesce({{ message }}.{{ moment }}, toDateTime64(0, 3, 'UTC')){{ ',' if not loop.last }}
        {%- endfor %}
    )
{%- endmacro %}


{#- A number for where a touch was: arrays of numbers cost a fraction of arrays of names. -#}
{% macro attribution_place(kind, campaign, channel) -%}
    cityHash64({{ kind }}::String, {{ campaign }}::String, {{ channel }}::String)
{%- endmacro %}


{#-
    What these numbers stand for, one tuple of arrays: (places, kinds, campaigns, channels, states); a state is what the chain of
    campaigns calls it. To be a constant of a query; read from all rows of messages, whichever is the newest.
-#}
{% macro attribution_places(months) -%}
    select tuple(groupArray(place), groupArray(kind), groupArray(campaign), groupArray(channel), groupArray(concat(kind, '/', campaign)))
    from (
        select distinct
            kind::String as kind,
            name::String as campaign,
            channel::String as channel,
            {{ attribution_place('kind', 'name', 'channel') }} as place
        from {{ ref('int_messages__followed') }}
        where
            sent_at is not null
            and {{ near_months('created_at', months, before=var('attribution_window_days') + var('message_life_days')) }}
    )
{%- endmacro %}


{#- All vars that change what attribution says, as one text: a new value makes every month due. -#}
{% macro attribution_settings() -%}
    {%- set values = [] -%}
    {%- for name in ('touch', 'window_days', 'half_life_days', 'learning_months', 'states') -%}
        {%- do values.append(var('attribution_' ~ name) | string) -%}
    {%- endfor -%}
    {{ values | join(' ') }}
{%- endmacro %}


{#- Months (as 201106) from that of one moment to that of another. -#}
{% macro months_between(first, last) -%}
    arrayMap(
        months_on -> toYYYYMM(addMonths(toStartOfMonth({{ first }}), months_on)),
        range(dateDiff('month', {{ first }}, {{ last }}) + 1)
    )
{%- endmacro %}


{#- Whether a moment is in one of the months; `months` none means all. The months stand in the query as constants. -#}
{% macro in_months(moment, months) -%}
    {%- if months is none -%}
        true
    {%- elif not months -%}
        false
    {%- else -%}
        toYYYYMM({{ moment }}) in ({{ months | join(', ') }})
    {%- endif -%}
{%- endmacro %}


{#-
    Whether a moment is between the first and the last of the months, or at most so many days before or after; without
    numbers, the window of attribution. `months` none means all.
-#}
{% macro near_months(moment, months, before=none, after=none) -%}
    {%- if months is none -%}
        true
    {%- elif not months -%}
        false
    {%- else -%}
        {%- set window = var('attribution_window_days') -%}
        {{ moment }} >= toDateTime64(makeDate({{ months[0] // 100 }}, {{ months[0] % 100 }}, 1), 3, 'UTC') - toIntervalDay({{ window if before is none else before }})
        and {{ moment }} < addMonths(toDateTime64(makeDate({{ months[-1] // 100 }}, {{ months[-1] % 100 }}, 1), 3, 'UTC'), 1) + toIntervalDay({{ window if after is none else after }})
    {%- endif -%}
{%- endmacro %}


{#-
    Months whose rows are others than those that the model was built from; the query that uses it calls that `built`.

    hashes: a query of month and a hash of its rows, called `name`.
-#}
{% macro months_of_other_rows(hashes, name) -%}
    select coalesce(hashed.month, built.month) as month
    from (
        {{ hashes }}
    ) as hashed
    full outer join built on built.month = hashed.month
    where coalesce(hashed.{{ name }}, 0) != coalesce(built.{{ name }}, 0)
{%- endmacro %}


{#- A hash of all conversions of each month, or of some months: month, conversions_hash. -#}
{% macro conversion_hashes(months=none) -%}
    select
        toYYYYMM(converted_at) as month,
        groupBitXor(cityHash64(conversion_id, contact_id, goal, revenue, converted_at)) as conversions_hash
    from {{ ref('conversions') }}
    where {{ in_months('converted_at', months) }}
    group by month
{%- endmacro %}


{#- A hash of the removal effects of each month, or of some months: month, effects_hash. -#}
{% macro effect_hashes(months=none) -%}
    select
        month,
        groupBitXor(cityHash64(goal, state, removal_effect)) as effects_hash
    from {{ ref('int_attribution__effects') }}
    where
        dimension = 'campaign'
        {% if months is not none -%}
        and {{ 'month in (' ~ months | join(', ') ~ ')' if months else 'false' }}
        {%- endif %}
    group by month
{%- endmacro %}


{#- Up to when a model has followed messages: the newest of them, and the newest move of a contact. -#}
{% macro messages_seen_at() -%}
    greatest(
        coalesce((select max(rebuilt_at) from {{ ref('int_messages__followed') }}), toDateTime64(0, 3, 'UTC')),
        coalesce((select max(moved_at) from {{ ref('int_contacts__identified') }}), toDateTime64(0, 3, 'UTC'))
    )
{%- endmacro %}


{#-
    Whether a message of int_messages__followed has come to touch its reader, or otherwise than before, or has gone to another
    contact, since the rows in `built` were. Reads the stored rows, older versions too: of a message that changed every month
    it was ever in is due.
-#}
{% macro has_message_changed() -%}
    {%- set moved -%}
        (
            select identity_id from {{ ref('int_contacts__identified') }}
            where
                kind = 'message'
                and previous_contact_id != 0
                and moved_at > (select coalesce(max(messages_seen_at), toDateTime64(0, 3, 'UTC')) from {{ this }} where is_month)
        )
    {%- endset -%}
    (
        touch_changed_at > (select max(messages_seen_at) from built)
        {%- if execute and run_query('select count() from ' ~ moved).rows[0][0] | int > 0 %}
        or identity_id in {{ moved }}
        {%- endif %}
    )
{%- endmacro %}


{#-
    Months (as 201106) that a model of attribution must build anew; none on a full refresh, which means all.

    Each month of such a table has one row of its own (`is_month`) that says what it was built from: hashes of its
    conversions and of the removal effects, the newest message, the settings. Due are the months in which a conversion
    came, went or changed hands, or a message touched somebody, with their neighbours within the window; for paths,
    months with other removal effects too. All other months are closed, and stay as they are.
-#}
{% macro due_attribution_months(has_effects=false) %}
    {%- if not is_incremental() -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set window = 'toIntervalDay(' ~ var('attribution_window_days') ~ ')' -%}
    {%- set first_day = 'makeDate(intDiv(month, 100), month % 100, 1)' -%}
    {%- set query -%}
        with

        built as (

            select * from {{ this }}
            where is_month

        ),

        changed as (

            {{ months_of_other_rows(conversion_hashes(), 'conversions_hash') }}

            union distinct

            -- one that touches no longer, because a rule says now that a machine opened it, did so after it was sent
            select toYYYYMM(assumeNotNull(coalesce({{ attribution_touched_at() }}, sent_at))) as month
            from {{ ref('int_messages__followed') }}
            where sent_at is not null and {{ has_message_changed() }}

        )

        select arrayJoin({{ months_between(first_day ~ ' - ' ~ window, 'addMonths(' ~ first_day ~ ', 1) - toIntervalDay(1) + ' ~ window) }}) as due_month
        from changed

        union distinct

        select month as due_month
        from built
        where settings != '{{ attribution_settings() }}'
        {%- if has_effects %}

        union distinct

        {{ months_of_other_rows(effect_hashes(), 'effects_hash') }}
        {%- endif %}
    {%- endset -%}
    {#- rows, not columns: an empty answer may come without its columns -#}
    {{ return(run_query(query).rows | map(attribute=0) | sort) }}
{% endmacro %}


{#- One row a model of attribution: its name, and the conversions and revenue that it credits. -#}
{% macro credit_of_each_model() -%}
    arrayJoin(
        [
            {%- for model in attribution_models() %}
            tuple(
                '{{ model | replace('_', ' ') }}', {{ model }}_conversions, {{ model }}_revenue
            ){{ ',' if not loop.last }}
            {%- endfor %}
        ]
    )
{%- endmacro %}
