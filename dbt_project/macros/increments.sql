{#-
    How models follow the rows that were loaded, at the cost of those rows.

    `int_events__recorded` keeps each load day as a partition and stamps it with the time at which it was built
    (`recorded_at`). A model that has not taken in a partition with that stamp, takes it in: so each looks after itself,
    one that failed catches up, and a day that is built again is taken in again.

    var load_days: days (YYYY-MM-DD) to build whatever the stamps say: partitions that Dagster is asked for, backfills.
    var load_overlap_days: so many days before the newest one are looked at, too: rows may be loaded around midnight.
    var load_overlap_minutes: the same for raw tables that are followed by the time of loading alone.
-#}
{% macro load_days() %}
    {%- set days = var('load_days', []) -%}
    {{ return([days] if days is string else days | map('string') | list) }}
{% endmacro %}


{#- A list of days as constants that a partition key or an index understands. -#}
{% macro is_of_days(column, days) -%}
    {%- if days -%}
    {{ column }} in (
        {%- for day in days %}toDate('{{ day }}'){{ ', ' if not loop.last }}{% endfor -%}
    )
    {%- else -%}
    false
    {%- endif -%}
{%- endmacro %}


{#- The same for the time of loading: passes over granules of other days. -#}
{% macro was_loaded_on(column, days) -%}
    {%- if days -%}
    ({{ column }} >= toDateTime64('{{ days | min }} 00:00:00', 3, 'UTC')
        and {{ column }} < toDateTime64('{{ days | max }} 00:00:00', 3, 'UTC') + toIntervalDay(1)
        and {{ is_of_days("toDate(" ~ column ~ ", 'UTC')", days) }})
    {%- else -%}
    false
    {%- endif -%}
{%- endmacro %}


{#-
    Rows of `int_events__recorded` of a list of load days. A load day lies in the partition (`slot`) of its own or of its
    month, so ClickHouse need not look at others.
-#}
{% macro is_recorded_on(days) -%}
    {%- if days -%}
    (slot in (
        {%- for day in days %}toDate('{{ day }}'), toDate('{{ day[:7] }}-01'){{ ', ' if not loop.last }}{% endfor -%}
    ) and {{ is_of_days('loaded_on', days) }})
    {%- else -%}
    false
    {%- endif -%}
{%- endmacro %}


{#- Rows of `int_events__recorded` from a load day on, given as an expression. -#}
{% macro is_recorded_since(day) -%}
    (slot >= toStartOfMonth({{ day }}) and loaded_on >= {{ day }})
{%- endmacro %}


{#- The newest load day of `int_events__recorded`: told by its partitions, no row is read. -#}
{% macro newest_load_day(relation) -%}
    (select greatest(max(slot), toDate('1970-03-01')) from {{ relation }})
{%- endmacro %}


{#-
    For `int_events__recorded`: load days to build, the partition of each, the months in which their events happened, and how
    many rows each day has. A row that comes after the question makes that number too small, and its day due again.

    A day is due if the number of its rows differs from what its partition was built of, if the ledger has told since whose
    message an event was about, or if a visitor turned out to have been another person at the time of an event. Days that
    share a partition are built together.

    On a full refresh load days of long ago share a partition a month: a block of an insert is cut into a part a partition.
-#}
{% macro due_loads() %}
    {%- if not is_incremental() -%}
        {%- set newest = run_query("select toString(toDate(max(loaded_at), 'UTC')) from " ~ source('raw', 'events')).rows[0][0] if execute else '1970-01-01' -%}
        {{ return({
            'days': none,
            'months': none,
            'count': none,
            'slot': "if(loaded_on < toDate('" ~ newest ~ "') - 35, toStartOfMonth(loaded_on), loaded_on)",
        }) }}
    {%- endif -%}
    {%- set given = load_days() -%}
    {%- set since = newest_load_day(this) ~ " - " ~ var('load_overlap_days') -%}
    {%- set moved = moved_visits() -%}
    {%- set query -%}
        with

        loaded as (

            select
                toDate(loaded_at, 'UTC') as loaded_on,
                count() as loads_count,
                arrayStringConcat(groupUniqArray(toString(toYYYYMM(occurred_at))), ',') as months
            from {{ source('raw', 'events') }}
            where {{ was_loaded_on('loaded_at', given + moved) if given else "loaded_at >= " ~ since ~ " or " ~ was_loaded_on('loaded_at', moved) }}
            group by loaded_on

        ),

        built as (

            select loaded_on as built_on, any(slot) as built_slot, any(day_loads_count) as built_count
            from {{ this }}
            where
                {% if not given -%}
                slot >= toStartOfMonth({{ since }}) or
                {%- endif %}
                slot in (
                {%- for day in given + moved %}toDate('{{ day }}'), toDate('{{ day[:7] }}-01'){{ ', ' if not loop.last }}{% endfor -%}
                )
            group by loaded_on

        ),

        told as (

            -- events whose message the ledger did not know yet
            select distinct loaded_on as told_on
            from {{ this }}
            where
                {{ is_recorded_since(since) }}
                and not is_message_known
                and message_hash != 0
                and message_hash in (
                    select message_hash from {{ ref('int_messages__addressed') }}
                    where first_loaded_at >= {{ since }}
                )

        )

        select
            toString(coalesce(loaded_on, built_on)) as day,
            toString(coalesce(built_slot, loaded_on)) as slot,
            coalesce(months, '') as months,
            {%- if given %}
            loaded_on is not null
            {%- else %}
            loaded_on is not null and (
                loads_count != coalesce(built_count, 0)
                or loaded_on in (select told_on from told)
                or {{ is_of_days('loaded_on', moved) }}
            )
            {%- endif %} as is_due,
            coalesce(loads_count, 0) as day_loads_count
        from loaded
        full outer join built on built_on = loaded_on
        order by day
    {%- endset -%}
    {%- set rows = run_query(query).rows -%}
    {%- set slots = rows | selectattr(3) | map(attribute=1) | unique | list -%}
    {%- set days, months, places, counts, others = [], [], [], [], [] -%}
    {%- for row in rows if row[1] in slots -%}
        {%- do days.append(row[0]) -%}
        {%- do counts.append(row[4]) -%}
        {%- do places.append("toDate('" ~ row[1] ~ "')") -%}
        {%- if row[2] -%}
            {%- do months.extend(row[2].split(',')) -%}
        {%- else -%}
            {%- do others.append(row[0]) -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if others -%}
        {%- set query -%}
            select distinct toString(toYYYYMM(occurred_at)) from {{ source('raw', 'events') }}
            where {{ was_loaded_on('loaded_at', others) }}
        {%- endset -%}
        {%- do months.extend(run_query(query).rows | map(attribute=0)) -%}
    {%- endif -%}
    {%- set keys = [] -%}
    {%- for day in days -%}{%- do keys.append("toDate('" ~ day ~ "')") -%}{%- endfor -%}
    {{ return({
        'days': days,
        'months': months | unique | sort | list,
        'slot': "transform(loaded_on, [" ~ keys | join(', ') ~ "], [" ~ places | join(', ') ~ "], loaded_on)"
            if keys else "loaded_on",
        'count': "transform(loaded_on, [" ~ keys | join(', ') ~ "], [" ~ counts | join(', ') ~ "]::Array(UInt64), 0::UInt64)"
            if keys else "0",
    }) }}
{% endmacro %}


{#-
    For `due_loads`: load days with events of visitors who, as far as is known now, were other people than their rows say. Looked
    up by identity, and only for visitors that were named anew since days were last built.
-#}
{% macro moved_visits() -%}
    {%- set is_new -%}
        recorded_at >= (
            select greatest(max(recorded_at), toDateTime64(0, 3, 'UTC')) from {{ this }}
            where slot >= toStartOfMonth({{ newest_load_day(this) }})
        )
    {%- endset -%}
    {#- asked first, since on most days there is none -#}
    {%- if not run_query("select count() from " ~ ref('int_visitors__shared') ~ " where " ~ is_new).rows[0][0] | int -%}
        {{ return([]) }}
    {%- endif -%}
    {%- set query -%}
        with

        changed as (

            select visitor_id, turns
            from {{ newest(ref('int_visitors__shared')) }}
            where {{ is_new }}

        ),

        identities as (

            -- the visitor's own, and one for each person, since another one may have come first as far as was known
            select
                arrayJoin(arrayPushFront(
                    arrayMap(
                        person -> {{ visitor_as('visitor_id', 'person', '0') }},
                        arrayDistinct(arrayMap(turn -> turn.2, turns))
                    ),
                    visitor_id
                )) as visit_identity_id,
                visitor_id,
                turns
            from changed

        )

        select distinct toString(recorded.loaded_on)
        from {{ this }} as recorded
        inner join identities on identities.visit_identity_id = recorded.identity_id
        where
            recorded.identity_id in (select visit_identity_id from identities)
            and recorded.identity_id != {{ visitor_at('identities.visitor_id', 'identities.turns', 'recorded.occurred_at') }}
    {%- endset -%}
    {{ return(run_query(query).rows | map(attribute=0) | list) }}
{%- endmacro %}


{#-
    For models over other raw tables: rows that were loaded later than this are new. It is the newest that was taken in; but
    an insert that began earlier may have ended after that run looked, so if the run was within var `load_overlap_minutes` of
    what it took in, so many minutes before the run. Rows may be taken in twice.

    loaded_at, stamp: columns of this model: the newest load in a row, and when the row was written.
-#}
{% macro newest_load(loaded_at, stamp) -%}
    (
        select least(
            max({{ loaded_at }}),
            greatest(max({{ stamp }}), toDateTime64('1970-01-31 00:00:00', 3, 'UTC'))
                - toIntervalMinute({{ var('load_overlap_minutes') }})
        )
        from {{ this }}
    )
{%- endmacro %}


{#-
    The same for a model over raw events that may find nothing in them for years (nobody gives a number, nobody stops by text
    message): what its rows do not tell, its notes do.
-#}
{% macro newest_load_or_note(loaded_at, stamp) -%}
    greatest({{ newest_load(loaded_at, stamp) }}, {{ last_taken() }})
{%- endmacro %}


{#-
    Post-hook of such models. What came while the model ran is not noted as taken, by the same measure as in `newest_load`: an
    insert takes at most var `load_overlap_minutes`.
-#}
{% macro note_loads_taken() -%}
    insert into {{ ref('int_increments__taken') }} (model, taken_at)
    select '{{ this.identifier }}', least(max(loaded_at), {{ stamp() }} - toIntervalMinute({{ var('load_overlap_minutes') }}))
    from {{ source('raw', 'events') }}
    where loaded_at >= {{ last_taken() }}
{%- endmacro %}


{#-
    For models that keep one row a key and may take in a day twice: load days not taken in yet, and the stamp up to which
    they are; of old days only partitions that ClickHouse has written since are looked at. None on a full refresh: everything.

    What was taken in is noted by `note_taken`, after the rows are written: a run that is killed in between does the same
    again.
-#}
{% macro days_to_take(name=none) %}
    {%- if not is_incremental() -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set given = load_days() -%}
    {#- models that have taken in the same, as most have, get one answer: the facts do not change any more in this run -#}
    {%- set taken = taken_by(name or this.identifier) -%}
    {%- set asked = taken.at ~ ' ' ~ taken.on -%}
    {%- set known = graph.get('days_to_take', {}) -%}
    {%- if known.get('run') != invocation_id -%}
        {%- set known = {'run': invocation_id, 'days': {}} -%}
    {%- endif -%}
    {%- if asked in known.days -%}
        {{ return(known.days[asked]) }}
    {%- endif -%}
    {%- set query -%}
        select toString(loaded_on) as day
        from {{ ref('int_events__recorded') }}
        where
            {% if given -%}
            {{ is_recorded_on(given) }}
            {%- else -%}
            (
                {{ is_recorded_since("(toDate('" ~ taken.on ~ "') - " ~ var('load_overlap_days') ~ ")") }}
                -- days of long ago, too, if a visitor of theirs was named late: their parts are young
                or slot in (
                    select toDate(partition) from system.parts
                    where
                        active
                        and database = '{{ ref('int_events__recorded').schema }}'
                        and table = '{{ ref('int_events__recorded').identifier }}'
                        and modification_time >= {{ last_taken(name) }} - toIntervalMinute(1)
                )
            )
            and recorded_at > {{ last_taken(name) }}
            {%- endif %}
        group by loaded_on
        order by day
    {%- endset -%}
    {%- set days = run_query(query).rows | map(attribute=0) | list -%}
    {%- do known.days.update({asked: days}) -%}
    {%- do graph.update({'days_to_take': known}) -%}
    {{ return(days) }}
{% endmacro %}


{#-
    What a model has taken in: `at`, the stamp up to which it is everything, and `on`, the newest load day. Asked for all
    models at once, the first time that a run needs to know, and put into queries as a constant: a subquery would be looked at
    wherever it stands. Nobody but the model itself writes it, when it is done.
-#}
{% macro taken_by(name) %}
    {%- set taken = ref('int_increments__taken') -%}
    {%- if not execute -%}{{ return({'at': '1970-01-01 00:00:00.000', 'on': '1970-03-01'}) }}{%- endif -%}
    {%- set known = graph.get('taken', {}) -%}
    {%- if known.get('run') != invocation_id -%}
        {%- set query -%}
            select model::String, toString(max(taken_at)), toString(greatest(max(taken_on), toDate('1970-03-01')))
            from {{ taken }}
            group by model
        {%- endset -%}
        {%- set known = {'run': invocation_id, 'models': {}} -%}
        {%- for row in run_query(query).rows -%}
            {%- do known.models.update({row[0]: {'at': row[1], 'on': row[2]}}) -%}
        {%- endfor -%}
        {%- do graph.update({'taken': known}) -%}
    {%- endif -%}
    {{ return(known.models.get(name, {'at': '1970-01-01 00:00:00.000', 'on': '1970-03-01'})) }}
{% endmacro %}


{#- The stamp up to which such a model has taken in everything. -#}
{% macro last_taken(name=none) -%}
    toDateTime64('{{ taken_by(name or this.identifier).at }}', 3, 'UTC')
{%- endmacro %}


{#- Post-hook of such models: notes up to which stamp they have taken in. -#}
{% macro note_taken(name=none) -%}
    insert into {{ ref('int_increments__taken') }} (model, taken_at, taken_on)
    select '{{ name or this.identifier }}', max(recorded_at), max(loaded_on)
    from {{ ref('int_events__recorded') }}
    where {{ is_recorded_since(newest_load_day(ref('int_events__recorded')) ~ " - " ~ var('load_overlap_days')) }}
{%- endmacro %}


{#- The same for a model that follows another one, by the stamps of its rows, and not the events. -#}
{% macro note_taken_from(relation) -%}
    insert into {{ ref('int_increments__taken') }} (model, taken_at)
    select '{{ this.identifier }}', max(recorded_at) from {{ relation }}
{%- endmacro %}


{#-
    For `int_messages__converted`: the newest change of a message's sending that it has seen. Messages are rebuilt after the
    events of their run were recorded, so by the stamp of those each would be new once more in the next run, and all of them
    after a full refresh.
-#}
{% macro note_sends_taken() -%}
    insert into {{ ref('int_increments__taken') }} (model, taken_at)
    select '{{ this.identifier }} sends', max(sent_changed_at) from {{ ref('int_messages__followed') }}
{%- endmacro %}


{#-
    Whether a load day may hold what happened since a moment: nothing is loaded before it happens. Load days are of the wall
    clock; in a rehearsal of days to come the clock of the settings runs ahead of it.
-#}
{% macro loaded_after(loaded_on, moment) -%}
    {%- set ahead = [var('clock_offset', env_var('MAILHOUSE_CLOCK_OFFSET', '0')) | float, 0.0] | max -%}
    {{ loaded_on }} >= toDate(greatest({{ moment }}, toDateTime64('1970-03-31 00:00:00', 3, 'UTC')))
        - {{ 1 + (ahead / 86400) | round(0, 'ceil') | int }}
{%- endmacro %}


{#- A table that keeps one row a key, as it reads when older rows are left out. Unit tests put a subquery in its place. -#}
{% macro newest(relation, alias=none) -%}
    {{ relation }}{{ ' as ' ~ alias if alias }}{{ '' if '__dbt__cte__' in relation | string else ' final' }}
{%- endmacro %}


{#-
    Rows of `int_events__recorded` that meet a condition, with the contact whose they are, as the mart `events` gives them.
    That one looks everybody up who ever did anything; here only those of whom these rows speak are.
-#}
{% macro owned_events(columns, condition) -%}
    select
        {%- for column in columns %}
        recorded.{{ column }} as {{ column }},
        {%- endfor %}
        owners.owner_contact_id as contact_id
    from {{ ref('int_events__recorded') }} as recorded
    inner join (
        select identity_id as owner_identity_id, contact_id as owner_contact_id
        from {{ ref('int_contacts__identified') }}
        where identity_id in (select identity_id from {{ ref('int_events__recorded') }} where {{ condition }})
    ) as owners
        on owners.owner_identity_id = recorded.identity_id
    where {{ condition }}
{%- endmacro %}


{#- The query of a model that replaces partitions, when none is due: ClickHouse need not even look at the whole one. -#}
{% macro nothing_due() -%}
    select * from {{ this }} where false
{%- endmacro %}
