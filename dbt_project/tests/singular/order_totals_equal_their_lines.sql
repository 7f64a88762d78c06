{{ config(meta={'dagster': {'ref': {'name': 'orders'}}}) }}

-- Nothing is lost or counted twice between lines and orders, nor between orders and customers.
with

lines as (

    select sumIf(amount, is_sale and contact_id is not null) as revenue from {{ ref('order_items') }}

),

orders as (

    select sumIf(revenue, contact_id is not null) as revenue from {{ ref('orders') }}

),

customers as (

    select sum(revenue) as revenue from {{ ref('rfm') }}

),

cohorts as (

    select sum(revenue) as revenue from {{ ref('retention_cohorts') }}

)

select *
from lines, orders, customers, cohorts
where
    lines.revenue != orders.revenue
    or coalesce(customers.revenue, 0) != orders.revenue
    or coalesce(cohorts.revenue, 0) != orders.revenue
