{#-
    Sums of events by who did it, kept so that a day costs that day's events.

    A table of states has a partition a load day, and one, '1970-01-01', in which all days up to `folded_through` are added
    up. A run writes the days that are due; when more than var `fold_after_days` of them stand, it adds all but the newest
    to the folded partition. Each partition is replaced whole: days up to `folded_through` do not count any more even if a
    killed run left them there, so whatever is replaced first, the sums are right. A day that is built again after it was
    folded, or a change of the rules (`rules`, a hash of them), adds up all of them anew from the events.

        {%- set due = due_states(rules) %}
        with events as (select ... from int_events__recorded where {{ is_due_state(due) }}),
             by_day as ({{ day_or_base(due) }} as day ... group by)
        union all {{ states_to_fold(due, columns) }}
-#}

{#- The folded partition. -#}
{% macro folded() -%}
    toDate('1970-01-01')
{%- endmacro %}


{#-
    What a run has to write: `days` to read from the events (none: all), `fold` the last day to add to the folded partition
    (none: leave it), `states` the days whose states go into it, with the folded partition itself if `keeps_base`.
-#}
{% macro due_states(rules="0") %}
    {%- set keep = var('load_overlap_days') + 1 -%}
    {%- set events = ref('int_events__recorded') -%}
    {%- if not is_incremental() -%}
        {%- if not execute -%}{{ return({'days': none, 'fold': none, 'states': [], 'is_full': true}) }}{%- endif -%}
        {%- set newest = run_query("select toString(" ~ newest_load_day(events) ~ " - " ~ keep ~ ")").rows -%}
        {{ return({'days': none, 'fold': newest[0][0] if newest | length else '1970-01-01', 'states': [], 'is_full': true}) }}
    {%- endif -%}
    {%- set given = load_days() -%}
    {%- set query -%}
        with

        (select max(folded_through) from {{ this }} where loaded_on = {{ folded() }}) as folded_through,

        (select any(rules) from {{ this }}) as kept_rules,

        (select {{ rules }}) as rules,

        kept as (

            select loaded_on as kept_on, max(recorded_at) as kept_at
            from {{ this }}
            where loaded_on > folded_through
            group by loaded_on

        ),

        recorded as (

            select loaded_on, max(recorded_at) as recorded_at
            from {{ events }}
            where
                {% if given -%}
                {{ is_recorded_on(given) }} or {{ is_recorded_since('(folded_through + 1)') }}
                {%- else -%}
                {{ is_recorded_since('(folded_through + 1)') }}
                {%- endif %}
            group by loaded_on

        )

        select
            toString(coalesce(loaded_on, kept_on)) as day,
            loaded_on is not null and (
                recorded_at != coalesce(kept_at, toDateTime64(0, 3, 'UTC'))
                {%- if given %} or {{ is_of_days('loaded_on', given) }}{% endif %}
            ) as is_due,
            toString(folded_through),
            coalesce(kept_rules, rules) != rules
        from recorded
        full outer join kept on kept_on = loaded_on
        order by day
    {%- endset -%}
    {%- set rows = run_query(query).rows -%}
    {%- set folded_through = rows[0][2] if rows | length else '1970-01-01' -%}
    {%- if rows | length and rows[0][3] -%}
        {%- set fold = run_query("select toString(greatest(" ~ newest_load_day(events) ~ " - " ~ keep ~ ", toDate('" ~ folded_through ~ "')))").rows[0][0] -%}
        {{ return({'days': none, 'fold': fold, 'states': [], 'is_full': true}) }}
    {%- endif -%}
    {%- set due, standing, back = [], [], [] -%}
    {%- for row in rows -%}
        {%- if row[0] <= folded_through -%}
            {%- do back.append(row[0]) -%}
        {%- else -%}
            {%- do standing.append(row[0]) -%}
            {%- if row[1] -%}{%- do due.append(row[0]) -%}{%- endif -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if back -%}
        {#- the folded days are added up from the events again, up to where they were folded -#}
        {{ return({'days': due, 'fold': folded_through, 'states': [], 'is_full': true}) }}
    {%- endif -%}
    {%- if standing | length > var('fold_after_days') -%}
        {%- set fold = standing[-1 - keep] -%}
        {%- set states = [] -%}
        {%- for day in standing if day <= fold and day not in due -%}{%- do states.append(day) -%}{%- endfor -%}
        {{ return({'days': due, 'fold': fold, 'states': states, 'is_full': false}) }}
    {%- endif -%}
    {{ return({'days': due, 'fold': none, 'states': [], 'is_full': false}) }}
{% endmacro %}


{#- Load days of events that a run adds up. -#}
{% macro is_due_state(due) -%}
    {%- if due.days is none -%}
    true
    {%- elif due.is_full -%}
    ({{ is_recorded_on(due.days) }} or loaded_on <= toDate('{{ due.fold }}'))
    {%- else -%}
    {{ is_recorded_on(due.days) }}
    {%- endif -%}
{%- endmacro %}


{#- Partition that an event's load day is added up in. -#}
{% macro state_partition(due) -%}
    {%- if due.fold is none -%}
    loaded_on
    {%- else -%}
    if(loaded_on <= toDate('{{ due.fold }}'), {{ folded() }}, loaded_on)
    {%- endif -%}
{%- endmacro %}


{#- Rows of the table that go into the folded partition anew, beside what is read from the events. -#}
{% macro is_folded_state(due) -%}
    {%- if due.fold is none or due.is_full -%}
    false
    {%- else -%}
    (loaded_on = {{ folded() }} or {{ is_of_days('loaded_on', due.states) }})
    {%- endif -%}
{%- endmacro %}


{#- The column folded_through of what a run writes. -#}
{% macro folded_through(due, partition) -%}
    if({{ partition }} = {{ folded() }}, toDate('{{ due.fold or "1970-01-01" }}'), {{ folded() }})
{%- endmacro %}


{#- A table of states as it counts: the folded days, and those after them. -#}
{% macro states_of(relation) -%}
    select * from {{ relation }}
    where
        loaded_on = {{ folded() }}
        or loaded_on > (select max(folded_through) from {{ relation }} where loaded_on = {{ folded() }})
{%- endmacro %}


{#- Post-hook: partitions of days that were folded are of no use any more. -#}
{% macro drop_folded() %}
    {%- if execute and is_incremental() -%}
        {%- set query -%}
            select distinct toString(loaded_on) from {{ this }}
            where
                loaded_on != {{ folded() }}
                and loaded_on <= (select max(folded_through) from {{ this }} where loaded_on = {{ folded() }})
        {%- endset -%}
        {%- set commands = [] -%}
        {%- for row in run_query(query).rows -%}
            {%- do commands.append("drop partition '" ~ row[0] ~ "'") -%}
        {%- endfor -%}
        {%- if commands -%}
            {{ return("alter table " ~ this ~ " " ~ commands | join(', ')) }}
        {%- endif -%}
    {%- endif -%}
    {{ return('') }}
{% endmacro %}


{#-
    What a model has to do that adds rows up by month (`int_messages__summed`, `int_products__sold`) and keeps those of long ago,
    to which nothing happens any more, added up as month 0: `fold`, the last month (as 201106) that goes into it; `read`, a
    condition on the rows to add up; `keep`, one on its own rows, called `kept`, that go into month 0 anew. What happens to a
    folded month all the same has all of them added up again. `touched`: months of the new rows.

    rows: what is added up. moment: its time, whose month counts. is_new: condition on rows that were not seen yet. months: an
    array of the months such a row counts in, or counted in. open_days: how long something may happen to a row.
-#}
{% macro due_month_sums(rows, moment, is_new, months, open_days) %}
    {%- if not execute -%}
        {{ return({'fold': 0, 'read': 'true', 'keep': 'false', 'touched': []}) }}
    {%- endif -%}
    {%- if not is_incremental() -%}
        {#- a clock that runs ahead closes no month -#}
        {%- set query -%}
            select toYYYYMM(
                greatest(least(max({{ moment }}), {{ now() }}), toDateTime64('1971-01-01 00:00:00', 3, 'UTC')) - toIntervalDay({{ open_days }})
            )
            from {{ rows }}
        {%- endset -%}
        {{ return({'fold': run_query(query).rows[0][0], 'read': 'true', 'keep': 'false', 'touched': []}) }}
    {%- endif -%}
    {%- set query -%}
        with

        touched as (

            select distinct arrayJoin({{ months }}) as month
            from {{ rows }}
            where {{ is_new }}

        )

        select
            (select max(folded_through) from {{ this }} where month = 0),
            -- the newest month that there is, touched or not
            least(toYYYYMM({{ now() }}), greatest((select max(month) from touched), (select max(month) from {{ this }}))),
            (select arrayStringConcat(arraySort(groupArray(toString(month))), ',') from touched)
    {%- endset -%}
    {%- set row = run_query(query).rows[0] -%}
    {%- set folded = row[0] | int -%}
    {%- set touched = row[2].split(',') | reject('equalto', '') | map('int') | list -%}
    {%- if not touched -%}
        {{ return({'fold': folded, 'read': 'false', 'keep': 'false', 'touched': []}) }}
    {%- endif -%}
    {#- months before the newest one, counted in months -#}
    {%- set count = (row[1] | int // 100) * 12 + row[1] | int % 100 - 1 - (open_days / 30) | round(0, 'ceil') | int -%}
    {%- set fold = [folded, (count // 12) * 100 + count % 12 + 1] | max -%}
    {%- set read = "toYYYYMM(" ~ moment ~ ") in (" ~ touched | join(', ') ~ ")" -%}
    {%- set keep = 'false' -%}
    {%- if touched | select('le', folded) | list -%}
        {%- set read = "(toYYYYMM(" ~ moment ~ ") <= " ~ fold ~ " or " ~ read ~ ")" -%}
    {%- elif fold > folded -%}
        {%- set keep = "(kept.month = 0 or (kept.month > " ~ folded ~ " and kept.month <= " ~ fold
            ~ " and kept.month not in (" ~ touched | join(', ') ~ ")))" -%}
    {%- endif -%}
    {{ return({'fold': fold, 'read': read, 'keep': keep, 'touched': touched}) }}
{% endmacro %}


{#- The month that a row is added up in. -#}
{% macro sum_month(moment, due) -%}
    if(toYYYYMM({{ moment }}) <= {{ due.fold }}, 0, toYYYYMM({{ moment }}))::UInt32
{%- endmacro %}


{#- The sums by month as they count. -#}
{% macro month_sums_of(relation) -%}
    select * from {{ relation }}
    where month = 0 or month > (select max(folded_through) from {{ relation }} where month = 0)
{%- endmacro %}


{#- Post-hook: months that were folded are of no use any more. -#}
{% macro drop_folded_months() %}
    {%- if execute and is_incremental() -%}
        {%- set query -%}
            select distinct toString(month) from {{ this }}
            where month != 0 and month <= (select max(folded_through) from {{ this }} where month = 0)
        {%- endset -%}
        {%- set commands = [] -%}
        {%- for row in run_query(query).rows -%}
            {%- do commands.append("drop partition " ~ row[0]) -%}
        {%- endfor -%}
        {%- if commands -%}
            {{ return("alter table " ~ this ~ " " ~ commands | join(', ')) }}
        {%- endif -%}
    {%- endif -%}
    {{ return('') }}
{% endmacro %}
