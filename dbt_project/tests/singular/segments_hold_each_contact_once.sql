{{ config(meta={'dagster': {'ref': {'name': 'segment_memberships'}}}) }}

-- In Dagster it hangs on what comes after all of them: predictions are made from `contacts`, and some segments from predictions.
-- A segment holds a contact once, and only contacts that exist: all segments of the folder in one test.
select
    segment,
    contact_id,
    count() as rows_count
from (
    {{ segment_members() }}
)
group by segment, contact_id
having count() > 1 or contact_id not in (select contact_id from {{ ref('contacts') }})
