{{
    config(
        materialized='view'
    )
}}

with

recommendations as (

    select * from {{ source('raw', 'recommendations') }}
    {% if var('recommendation_model') -%}
    where model = '{{ var("recommendation_model") }}'
    {%- endif %}

),

newest as (

    select argMax(tuple(model, model_version), tuple(as_of, loaded_at, model_version)) as version
    from recommendations

),

products as (

    select * from {{ ref('products') }}

),

current as (

    select *
    from recommendations
    where tuple(model, model_version) in (select version from newest)
    -- a version that was written twice counts once
    limit 1 by contact_id, rank

)

select
    ---------- ids
    current.contact_id as contact_id,
    current.rank as rank,
    current.product_id as product_id,

    ---------- text
    products.name as product_name,
    products.image_url as image_url,
    products.url as url,
    current.model as model,
    current.model_version as model_version,
    current.reason as reason,

    ---------- numerics
    products.price as price,
    current.score as score
from current
inner join products on products.product_id = current.product_id
