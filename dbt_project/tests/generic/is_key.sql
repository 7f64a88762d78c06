{#- The columns together are the key: never null, no two rows alike. -#}
{% test is_key(model, columns) %}

select
    {{ columns | join(', ') }},
    count() as rows_count
from {{ model }}
group by {{ columns | join(', ') }}
having
    count() > 1
    {%- for column in columns %}
    or isNull({{ column }})
    {%- endfor %}

{% endtest %}
