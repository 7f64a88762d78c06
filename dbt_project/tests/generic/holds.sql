{#- Every row satisfies the condition; rows for which it is null fail too. -#}
{% test holds(model, condition) %}

select *
from {{ model }}
where not coalesce({{ condition }}, false)

{% endtest %}
