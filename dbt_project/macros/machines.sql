{#- A list of patterns of the rules in force, as a constant. -#}
{% macro machine_patterns(field, event_type) -%}
    (
        select arrayMap(pattern -> lower(pattern), arraySort(groupArray(pattern)))
        from {{ ref('machine_rules') }}
        where
            field = '{{ field }}'
            and event_type in ('', '{{ event_type }}')
            and version <= {{ var('machine_rule_version') }}
    )
{%- endmacro %}


{#- A number of the rules in force: the strictest; null if none is. -#}
{% macro machine_number(field) -%}
    (
        select minOrNull(toFloat64(pattern))
        from {{ ref('machine_rules') }}
        where field = '{{ field }}' and version <= {{ var('machine_rule_version') }}
    )
{%- endmacro %}


{#- Whether an event of raw.events tells by itself that a machine did it. -#}
{% macro is_machine_by_itself() -%}
    multiIf(
        lower(coalesce(properties.is_machine::Nullable(String), '')) in ('true', '1'), true,
        type not in ('opened', 'clicked', 'unsubscribed') or user_agent = '', false,
        {%- for event_type in ['opened', 'clicked', 'unsubscribed'] %}
        type = '{{ event_type }}', (
            multiSearchAny(lower(user_agent), {{ machine_patterns('user_agent', event_type) }})
            or has({{ machine_patterns('user_agent_is', event_type) }}, lower(user_agent))
        ),
        {%- endfor %}
        false
    )
{%- endmacro %}
