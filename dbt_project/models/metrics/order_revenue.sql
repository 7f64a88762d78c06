select
    assumeNotNull(contact_id) as contact_id,
    ordered_at as happened_at,
    toFloat64(revenue) as value
from {{ ref('orders') }}
where is_sale and contact_id is not null
