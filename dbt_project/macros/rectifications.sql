{#- A field's value as corrections compare it: sources trim, write emails small and phone numbers with blanks as they like. -#}
{% macro compared(field, value) -%}
    multiIf(
        {{ field }} = 'email',
        {{ normalised_email(value) }},
        {{ field }} in ('phone', 'mobile_phone'),
        replaceRegexpAll({{ value }}, '[\\s\\x{00a0}().\\-/]', ''),
        trim({{ value }})
    )
{%- endmacro %}


{#- Branches of a `multiIf`: by the name of the field what a version says. -#}
{% macro told_fields(fields) -%}
    {%- for name in fields -%}
    rectifications.field = '{{ name }}', ifNull(versions.properties.{{ name }}::Nullable(String), ''),
    {%- endfor -%}
{%- endmacro %}


{#- A property of a record; of a version that was put right, as it reads since (`stg_crm__rectified`). -#}
{% macro told_or_right(name) -%}
    if(mapContains(put_right, '{{ name }}'), put_right['{{ name }}'], properties.{{ name }}::Nullable(String))
{%- endmacro %}
