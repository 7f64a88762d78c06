{#-
    The time, UTC, milliseconds, through the clock of the settings: MAILHOUSE_CLOCK_OFFSET seconds are added to the wall
    clock, so that a rehearsal on past data sees that day as today. Models take the time from here and nowhere else.
-#}
{% macro now() -%}
    {%- set offset = var('clock_offset', env_var('MAILHOUSE_CLOCK_OFFSET', '0')) | float -%}
    (now64(3, 'UTC') + toIntervalMillisecond({{ (offset * 1000) | round | int }}))
{%- endmacro %}


{#- When a row was written, by the wall clock of the warehouse, as `loaded_at` of the raw tables is: never shown as a date. -#}
{% macro stamp() -%}
    now64(3, 'UTC')
{%- endmacro %}
