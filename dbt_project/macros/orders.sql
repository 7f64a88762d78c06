{#-
    Some orders of `int_orders__combined` as they stand. `final` would put together all rows of all orders, items and all,
    whatever the condition; here the keys of a few are found first, and of each the newest row is read.

    columns: what is read. condition: on a row, whichever it is, of an order; an order that it holds for may have another row
    by now, so whoever asks must ask again of the rows that come back.
-#}
{% macro newest_orders(columns, condition) -%}
    select {{ columns | join(', ') }}
    from {{ ref('int_orders__combined') }}
    where (order_hash, recorded_at) in (
        select order_hash, max(recorded_at)
        from {{ ref('int_orders__combined') }}
        where order_hash in (select order_hash from {{ ref('int_orders__combined') }} where {{ condition }})
        group by order_hash
    )
    limit 1 by order_hash
{%- endmacro %}
