{{
    config(
        materialized='view'
    )
}}

with

predictions as (

    select * from {{ ref('int_predictions__current') }}

),

hours as (

    select
        contact_id as reader_id,
        best_hour::Nullable(UInt8) as best_hour,
        timezone::Nullable(String) as best_hour_timezone
    from {{ ref('best_hours') }}

),

wide as (

    select
        contact_id,
        anyIf(score::Nullable(Float64), model = 'churn') as churn_probability,
        anyIf(score::Nullable(Float64), model = 'purchase') as purchase_probability,
        anyIf(score::Nullable(Float64), model = 'lifetime_value') as lifetime_value,
        anyIf(properties.expected_orders::Nullable(Float64), model = 'lifetime_value') as expected_orders,
        anyIf(properties.expected_order_value::Nullable(Float64), model = 'lifetime_value') as expected_order_value,
        anyIf(properties.alive_probability::Nullable(Float64), model = 'lifetime_value') as alive_probability,
        anyIf(
            (toDate32(predictions.as_of, 'UTC') + toIntervalDay(toInt32(score)))::Nullable(Date32), model = 'next_order'
        ) as next_order_on,
        max(predictions.as_of) as as_of
    from predictions
    group by contact_id

)

select
    ---------- ids
    wide.contact_id::Int64 as contact_id,

    ---------- text
    hours.best_hour_timezone::Nullable(String) as best_hour_timezone,

    ---------- numerics
    wide.churn_probability::Nullable(Float64) as churn_probability,
    wide.purchase_probability::Nullable(Float64) as purchase_probability,
    wide.lifetime_value::Nullable(Decimal(18, 2)) as lifetime_value,
    wide.expected_orders::Nullable(Float64) as expected_orders,
    wide.expected_order_value::Nullable(Decimal(18, 2)) as expected_order_value,
    wide.alive_probability::Nullable(Float64) as alive_probability,
    hours.best_hour::Nullable(UInt8) as best_hour,

    ---------- timestamps
    wide.next_order_on::Nullable(Date32) as next_order_on,
    wide.as_of::DateTime64(3, 'UTC') as as_of
from wide
left any join hours on hours.reader_id = wide.contact_id
