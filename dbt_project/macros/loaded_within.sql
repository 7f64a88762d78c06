{#-
    Whether a row may hold what happened within so many days: nothing is loaded before it happens, so partitions of older
    loads need not be read. For `loaded_on` and `loaded_at`.

    Loads are dated by the wall clock, `now()` is that of the settings; in a rehearsal the earlier of the two counts, since
    rows of a day long past are loaded today, and rows of a day to come too.
-#}
{% macro loaded_within(column, days) -%}
    {%- set ahead = [var('clock_offset', env_var('MAILHOUSE_CLOCK_OFFSET', '0')) | float, 0.0] | max -%}
    {{ column }} >= toDate({{ now() }} - toIntervalDay({{ days }}) - toIntervalSecond({{ ahead | round(0, 'ceil') | int }}), 'UTC')
{%- endmacro %}
