{{
    config(
        order_by=['segment', 'other_segment']
    )
}}

with

profiles as (

    select segments from {{ ref('contact_profiles') }}
    where notEmpty(segments)

),

combinations as (

    -- people are in few combinations of segments, however many people there are
    select
        segments,
        count() as contacts_count
    from profiles
    group by segments

),

members as (

    select
        arrayJoin(segments) as segment,
        segments,
        contacts_count
    from combinations

),

sizes as (

    select
        segment,
        sum(contacts_count) as size
    from members
    group by segment

),

shared as (

    select
        segment,
        other_segment,
        sum(contacts_count) as shared_count
    from (
        select
            segment,
            arrayJoin(segments) as other_segment,
            contacts_count
        from members
    )
    group by segment, other_segment

),

pairs as (

    select
        one.segment as segment,
        other.segment as other_segment,
        one.size as segment_size,
        other.size as other_size
    from sizes as one
    cross join sizes as other
    where one.segment != other.segment

)

select
    ---------- ids
    pairs.segment::LowCardinality(String) as segment,
    pairs.other_segment::LowCardinality(String) as other_segment,

    ---------- numerics
    pairs.segment_size::UInt64 as segment_size,
    pairs.other_size::UInt64 as other_size,
    coalesce(shared.shared_count, 0)::UInt64 as shared_count,
    (shared_count / (segment_size + other_size - shared_count))::Float64 as jaccard,
    (shared_count / segment_size)::Float64 as share_of_segment
from pairs
left join shared on shared.segment = pairs.segment and shared.other_segment = pairs.other_segment
