select
    contact_id,
    happened_at,
    value
from {{ ref('order_revenue') }}
