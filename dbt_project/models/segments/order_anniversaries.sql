with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}
    where not is_deleted and first_order_at is not null

),

anniversaries as (

    -- the week may reach into another year, so both years' days are looked at
    select
        contact_id,
        toDate(first_order_at, 'UTC') as first_day,
        toDate({{ now() }}, 'UTC') as week_start,
        week_start + 6 as week_end,
        addYears(first_day, toYear(week_start) - toYear(first_day)) as this_year,
        addYears(first_day, toYear(week_end) - toYear(first_day)) as next_year
    from profiles

)

select contact_id
from anniversaries
where
    (this_year between week_start and week_end and this_year > first_day)
    or (next_year between week_start and week_end and next_year > first_day)
