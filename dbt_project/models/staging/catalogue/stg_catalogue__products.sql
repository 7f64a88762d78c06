with

products as (

    select * from {{ source('raw', 'products') }}

),

latest as (

    -- the newest version of each product, of whichever catalogue was updated last
    select * from products
    order by updated_at desc, loaded_at desc
    limit 1 by product_id

)

select
    ---------- ids
    product_id,

    ---------- text
    nullIf(trim(name), '') as name,
    nullIf(trim(category), '') as category,
    nullIf(image_url, '') as image_url,
    nullIf(url, '') as url,

    ---------- numerics
    price,

    ---------- booleans
    is_available,

    ---------- timestamps
    updated_at
from latest
