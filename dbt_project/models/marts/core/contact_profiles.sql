{{
    config(
        order_by='contact_id',
        settings={'index_granularity': 256, 'min_compress_block_size': 4096}
    )
}}

{#- Small granules and blocks: the gateway looks up the few people of a micro-batch, ten times a second. -#}

with

profiles as (

    select * from {{ ref('int_contacts__profiled') }}

),

memberships as (

    select
        contact_id,
        arraySort(groupUniqArray(segment::String)) as segments
    from {{ ref('segment_memberships') }}
    where valid_to is null
    group by contact_id

)

select
    profiles.*,
    memberships.segments as segments
from profiles
left join memberships on memberships.contact_id = profiles.contact_id
