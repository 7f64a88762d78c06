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


{#- The number of the order that an event is about. -#}
{% macro told_order_id() -%}
    coalesce(nullIf(properties.order_id::Nullable(String), ''), event_id)
{%- endmacro %}


{#- The same as the key of `int_orders__combined`, for conditions where events are read. -#}
{% macro told_order_hash() -%}
    sipHash64(source, {{ told_order_id() }})
{%- endmacro %}


{#-
    What events say of orders, a row an event, as `int_orders__combined` compares them. The condition stands where the table
    is read, so that only what it lets through is parsed.
-#}
{% macro told_orders(condition) -%}
    select
        source,
        told_order_id as order_id,
        sipHash64(source, order_id) as order_hash,
        -- a cancellation need not repeat what was ordered: the last placement counts, if there is one
        tuple(not is_cancellation, occurred_at, event_id, recorded_at) as content_rank,
        tuple(
            identity_id,
            currency,
            country,
            arrayMap(
                (line_number, product_id, name, quantity, unit_price, position) -> (
                    coalesce(toUInt32OrNull(line_number), position)::UInt32,
                    coalesce(product_id, ''),
                    coalesce(trim(name), ''),
                    coalesce(toInt64OrNull(quantity), 0)::Int64,
                    coalesce(toDecimal64OrNull(unit_price, 4), 0)::Decimal(18, 4)
                ),
                line_numbers, product_ids, names, quantities, unit_prices, arrayEnumerate(line_numbers)
            )::Array(Tuple(
                line_number UInt32, product_id String, product_name String, quantity Int64, unit_price Decimal(18, 4)
            ))
        ) as content,
        [identity_id] as identity_ids,
        []::Array(UInt32) as months,
        if(is_cancellation, null, occurred_at) as placed_at,
        if(is_cancellation, occurred_at, null) as cancelled_at,
        occurred_at as first_event_at,
        recorded_at
    from (
        -- paths are named where the table is: of `select *` all of the JSON is read
        select
            source,
            {{ told_order_id() }} as told_order_id,
            type = 'order.cancelled' as is_cancellation,
            event_id,
            identity_id,
            occurred_at,
            recorded_at,
            coalesce(properties.currency::Nullable(String), '') as currency,
            coalesce(properties.country::Nullable(String), '') as country,
            -- texts of every item: what a source writes as a number or as a text reads the same
            properties.items[].line_number::Array(Nullable(String)) as line_numbers,
            properties.items[].product_id::Array(Nullable(String)) as product_ids,
            properties.items[].name::Array(Nullable(String)) as names,
            properties.items[].quantity::Array(Nullable(String)) as quantities,
            properties.items[].unit_price::Array(Nullable(String)) as unit_prices
        from {{ ref('int_events__recorded') }}
        where {{ condition }}
    )
{%- endmacro %}
