{{
    config(
        order_by='product_id'
    )
}}

with

catalogue as (

    select * from {{ ref('stg_catalogue__products') }}

),

months as (

    {{ month_sums_of(ref('int_products__sold')) }}

),

buyers as (

    select
        arrayJoin(product_hashes) as product_hash,
        count() as buyers_count
    from {{ newest(ref('int_contacts__ordered')) }}
    where orders_count > 0
    group by product_hash

),

sold as (

    select
        product_id,
        max(months.ranked_name).5 as name,
        max(months.ranked_price).4 as price,
        min(months.first_sold_at) as first_sold_at,
        max(months.last_sold_at) as last_sold_at,
        any(coalesce(buyers.buyers_count, 0)) as buyers_count,
        sum(months.sold_count) as sold_count,
        sum(months.revenue) as revenue,
        sum(months.sales_count) > 0 as has_sold
    from months
    left any join buyers on buyers.product_hash = sipHash64(months.product_id)
    group by product_id

),

joined as (

    select
        assumeNotNull(coalesce(catalogue.product_id, sold.product_id)) as product_id,
        assumeNotNull(coalesce(catalogue.name, nullIf(sold.name, ''), product_id)) as name,
        catalogue.category as category,
        catalogue.image_url as image_url,
        catalogue.url as url,
        coalesce(catalogue.price, if(sold.has_sold, round(sold.price, 2)::Decimal(18, 2), null)) as price,
        coalesce(sold.buyers_count, 0) as buyers_count,
        coalesce(sold.sold_count, 0) as sold_count,
        coalesce(sold.revenue, 0) as revenue,
        upper(product_id) in (
            {%- for id in var('service_product_ids') %}'{{ id | upper }}'{{ ', ' if not loop.last }}{% endfor -%}
        ) as is_service,
        catalogue.is_available as catalogue_is_available,
        coalesce(sold.has_sold, false) as has_sold,
        if(has_sold, sold.first_sold_at, null) as first_sold_at,
        if(has_sold, sold.last_sold_at, null) as last_sold_at
    from sold
    full outer join catalogue on catalogue.product_id = sold.product_id

)

select
    ---------- ids
    product_id,

    ---------- text
    name,
    category,
    image_url,
    url,

    ---------- numerics
    price::Nullable(Decimal(18, 2)) as price,
    buyers_count::UInt64 as buyers_count,
    sold_count::Int64 as sold_count,
    revenue::Decimal(18, 2) as revenue,

    ---------- booleans
    is_service::Bool as is_service,
    (
        not is_service
        and coalesce(
            catalogue_is_available,
            last_sold_at >= {{ now() }} - toIntervalDay({{ var('product_available_days') }}),
            false
        )
    )::Bool as is_available,

    ---------- timestamps
    first_sold_at,
    last_sold_at
from joined
