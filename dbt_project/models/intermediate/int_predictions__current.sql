{{
    config(
        materialized='view'
    )
}}

with

predictions as (

    select * from {{ source('raw', 'predictions') }}

),

verdicts as (

    -- evaluation says with the metric `promoted`, 1 or 0, whether a version may be used; the last word counts
    select
        model,
        model_version,
        argMax(value, loaded_at) > 0 as is_promoted
    from {{ source('raw', 'model_evaluations') }}
    where metric = 'promoted'
    group by model, model_version

),

candidates as (

    -- a model that nobody ever passed a verdict on is used as it is
    select
        model,
        model_version,
        max(as_of) as newest_as_of,
        max(loaded_at) as newest_loaded_at
    from predictions
    where
        tuple(model, model_version) in (select tuple(model, model_version) from verdicts where is_promoted)
        or model not in (select model from verdicts)
    group by model, model_version

),

newest as (

    select
        model,
        argMax(tuple(model_version, newest_as_of), tuple(newest_as_of, newest_loaded_at)) as newest
    from candidates
    group by model

)

select
    ---------- ids
    contact_id,

    ---------- text
    model,
    model_version,

    ---------- numerics
    score,

    ---------- semi-structured
    properties,

    ---------- timestamps
    as_of
from predictions
-- a version that scores anew every day replaces its scores: those of the newest day count
where tuple(model, model_version, as_of) in (select tuple(model, newest.1, newest.2) from newest)
-- and what was written twice counts once
limit 1 by model, contact_id
