with

days as (

    -- models learn from Mondays, and score on the day that it is
    select toDate({{ now() }}, 'UTC') - number as as_of
    from numbers({{ 7 * var('feature_weeks') }} + 1)

)

select
    ---------- timestamps
    as_of::Date as as_of
from days
where
    toDayOfWeek(as_of) = 1
    or as_of = toDate({{ now() }}, 'UTC')
