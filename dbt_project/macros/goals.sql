{#-
    Conditions on a goal's event, as the file of a campaign has them: `event.name > 10 and event.plan = 'yearly'`. Read
    into an array of (name, operator, text, number); the text itself never becomes SQL. Whatever else it says is not
    understood (`are_goal_conditions_understood`), and such a goal is counted for nobody rather than for everybody.
-#}
{% macro goal_conditions(text) -%}
    arrayMap(
        part -> extractGroups(part, '^\\s*(?:event\\.)?([A-Za-z_][A-Za-z0-9_]*)\\s*(=|!=|>=|<=|>|<)\\s*(?:\'([^\'\\\\]*)\'|(-?[0-9]+(?:\\.[0-9]+)?))\\s*$'),
        if(trim({{ text }}) = '', emptyArrayString(), splitByRegexp('(?i)\\s+and\\s+', {{ text }}))
    )
{%- endmacro %}


{% macro are_goal_conditions_understood(conditions) -%}
    not arrayExists(condition -> empty(condition) or (condition[4] = '' and condition[2] not in ('=', '!=')), {{ conditions }})
{%- endmacro %}


{#- Whether the properties of an event, as JSON text, meet all conditions. A property that is not there meets none. -#}
{% macro meets_goal_conditions(conditions, properties) -%}
    (
        empty({{ conditions }})
        or arrayAll(
            (condition, written) -> written not in ('', 'null') and if(
                condition[4] = '',
                (trim(both '"' from written) = condition[3]) = (condition[2] = '='),
                coalesce(
                    multiIf(
                        condition[2] = '=', toFloat64OrNull(trim(both '"' from written)) = toFloat64OrZero(condition[4]),
                        condition[2] = '!=', toFloat64OrNull(trim(both '"' from written)) != toFloat64OrZero(condition[4]),
                        condition[2] = '>', toFloat64OrNull(trim(both '"' from written)) > toFloat64OrZero(condition[4]),
                        condition[2] = '>=', toFloat64OrNull(trim(both '"' from written)) >= toFloat64OrZero(condition[4]),
                        condition[2] = '<', toFloat64OrNull(trim(both '"' from written)) < toFloat64OrZero(condition[4]),
                        toFloat64OrNull(trim(both '"' from written)) <= toFloat64OrZero(condition[4])
                    ),
                    false
                )
            ),
            {{ conditions }},
            arrayMap(condition -> JSONExtractRaw({{ properties }}, condition[1]), {{ conditions }})
        )
    )
{%- endmacro %}


{#- Hash of the goals of all campaigns: another goal makes every month due. -#}
{% macro goals_hash() -%}
    coalesce((
        select groupBitXor(cityHash64(kind, name, goal_event, goal_where, goal_within_seconds))
        from {{ ref('stg_ledger__campaigns') }}
        where goal_event != ''
    ), 0)
{%- endmacro %}


{#- A hash of all events of each month, or of some months, that a campaign has as its goal: month, events_hash. -#}
{% macro goal_event_hashes(months=none) -%}
    select
        toYYYYMM(occurred_at) as month,
        groupBitXor(cityHash64(event_key, contact_id, event_type, occurred_at, revenue)) as events_hash
    from {{ ref('int_goals__happened') }}
    where {{ in_months('occurred_at', months) }}
    group by month
{%- endmacro %}


{#- Longest time, in days, in which a goal counts; 0 if no campaign has one. -#}
{% macro longest_goal_days() -%}
    {%- if execute -%}
        {%- set query -%}
            select if(count() = 0, 0, max(intDiv(goal_within_seconds, 86400) + 1))
            from {{ ref('stg_ledger__campaigns') }}
            where goal_event != ''
        {%- endset -%}
        {{ return(run_query(query).rows[0][0] | int) }}
    {%- endif -%}
    {{ return(1) }}
{%- endmacro %}


{#-
    Months of messages whose goals must be looked for anew; none on a full refresh, which means all. Due are those with a
    message that was sent or touches its reader otherwise than before, and those from which an event that came, went or
    changed hands can be reached. Without a goal, those that were built when there was one.
-#}
{% macro due_goal_months(longest) %}
    {%- if not is_incremental() -%}
        {{ return(none) }}
    {%- endif -%}
    {%- if longest == 0 -%}
        {%- set query = "select month from " ~ this ~ " where is_month and goals_hash != 0" -%}
        {{ return(run_query(query).rows | map(attribute=0) | sort) }}
    {%- endif -%}
    {%- set first_day = 'makeDate(intDiv(month, 100), month % 100, 1)' -%}
    {%- set query -%}
        with

        built as (

            select * from {{ this }}
            where is_month

        ),

        changed as (

            {{ months_of_other_rows(goal_event_hashes(), 'events_hash') }}

        )

        select arrayJoin({{ months_between(first_day ~ ' - ' ~ longest, 'addMonths(' ~ first_day ~ ', 1) - 1') }}) as due_month
        from changed

        union distinct

        -- with the months before: an event counts for the last message before it, which may be this one now
        select arrayJoin({{ months_between('assumeNotNull(sent_at) - toIntervalDay(' ~ longest ~ ')', 'assumeNotNull(sent_at)') }}) as due_month
        from {{ ref('int_messages__followed') }}
        where sent_at is not null and {{ has_message_changed() }}

        union distinct

        select month as due_month
        from built
        where goals_hash != {{ goals_hash() }}
    {%- endset -%}
    {{ return(run_query(query).rows | map(attribute=0) | sort) }}
{% endmacro %}


{#- Under which name `conversions` notes what it has taken in: other goals make every month due. -#}
{% macro conversions_taken() -%}
    {%- set goals = graph.nodes.values() | selectattr('name', 'equalto', 'conversion_goals') | first if execute else {} -%}
    conversions {{ goals.checksum.checksum[:16] if execute }}
{%- endmacro %}


{#-
    Months (as 201106) that `conversions` must build anew; none on a full refresh, which means all. Due are those in which an
    order counts or counted that came, changed or found its contact, and those of the goals that were loaded, or whose
    contact has moved.
-#}
{% macro due_conversion_months() %}
    {%- if not is_incremental() -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set name = conversions_taken() -%}
    {%- if taken_by(name).at[:4] == '1970' -%}
        {%- set query -%}
            select distinct toUInt32(partition_id) from system.parts
            where active and database = '{{ this.schema }}' and table = '{{ this.identifier }}'
        {%- endset -%}
        {%- do due_partitions(run_query(query).rows | map(attribute=0) | list) -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set days = days_to_take(name) -%}
    {%- set query -%}
        with

        moved as (

            select identity_id from {{ ref('int_contacts__identified') }}
            where moved_at >= {{ last_taken(name) }}

        ),

        types as (

            select event_type from {{ ref('conversion_goals') }}
            where event_type != 'order.placed'

        )

        select distinct month
        from (
            select arrayJoin(months) as month
            from {{ ref('int_orders__combined') }}
            where recorded_at > {{ last_taken(name) }} or identity_id in (select identity_id from moved)

            union all

            select toYYYYMM(occurred_at) as month
            from {{ ref('int_events__recorded') }}
            where
                type in (select event_type from types)
                and ({{ is_recorded_on(days) }} or identity_id in (select identity_id from moved))
        )
        order by month
    {%- endset -%}
    {%- set months = run_query(query).rows | map(attribute=0) | list -%}
    {%- do due_partitions(months) -%}
    {{ return(months) }}
{% endmacro %}
