{#- Steps of a funnel are numbered from 1 without a gap, each of a type of its own, and its lines agree on the time. -#}
{% test funnels_are_whole(model) %}

select funnel
from {{ model }}
group by funnel
having arraySort(groupArray(step)) != range(1, count() + 1) or uniqExact(within_days) > 1 or uniqExact(event_type) < count()

{% endtest %}
