with

experiments as (

    select * from {{ source('raw', 'campaigns') }}
    where kind = 'experiment'

),

latest as (

    -- what the files said last is in force
    select * from experiments
    order by loaded_at desc, version desc
    limit 1 by name

)

select
    ---------- text
    name as experiment,
    version,
    coalesce(spec.owner_kind.:String, '') as owner_kind,
    coalesce(spec.owner.:String, '') as owner,
    coalesce(spec.control.:String, '') as control,
    coalesce(spec.metric.:String, '') as metric,

    ---------- numerics
    coalesce(spec.window_seconds.:Int64, 0)::UInt32 as window_seconds,

    ---------- timestamps
    loaded_at
from latest
