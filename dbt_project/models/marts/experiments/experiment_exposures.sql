{{
    config(
        materialized='view'
    )
}}

with

experiments as (

    select experiment as known_experiment, owner_kind, owner, window_seconds
    from {{ ref('stg_ledger__experiments') }}

),

messages as (

    select
        experiment,
        contact_id,
        argMin(messages.variant, messages.exposed_at) as variant,
        argMin(messages.kind, messages.exposed_at) as kind,
        argMin(messages.name, messages.exposed_at) as name,
        argMin(messages.occurrence, messages.exposed_at) as occurrence,
        argMin(messages.message_id, messages.exposed_at) as message_id,
        uniqExact(messages.variant) as variants_count,
        min(messages.exposed_at) as first_at,
        min(messages.opened_at) as first_opened_at,
        min(messages.clicked_at) as first_clicked_at,
        min(messages.unsubscribed_at) as first_unsubscribed_at,
        min(messages.complained_at) as first_complained_at,
        min(messages.bounced_at) as first_bounced_at
    from {{ ref('int_experiments__messages') }} as messages
    group by experiment, contact_id

),

moves as (

    select
        experiment as split_experiment,
        contact_id as split_contact_id,
        argMinIf(variant, moved_at, not is_goal) as split_variant,
        uniqExactIf(variant, not is_goal) as split_variants_count,
        minIf(moved_at, not is_goal) as split_at,
        groupArrayIf(moved_at, is_goal) as goals
    from {{ newest(ref('int_experiments__moves')) }}
    group by experiment, contact_id
    having split_variants_count > 0

),

-- messages reach their campaign's goal: of a campaign's messages to one person an event counts for the last before it
goals as (

    select
        campaign as goal_campaign,
        contact_id as goal_contact_id,
        min(reached_at) as goal_reached_at
    from {{ ref('int_goals__reached') }}
    where not is_month and kind = 'campaign' and campaign in (select owner from experiments)
    group by goal_campaign, goal_contact_id

),

campaigns as (

    select
        messages.experiment::String as experiment,
        messages.contact_id as contact_id,
        messages.variant::String as variant,
        messages.kind::String as kind,
        messages.name::String as name,
        messages.occurrence as occurrence,
        messages.message_id as message_id,
        messages.variants_count as variants_count,
        messages.first_at as exposed_at,
        messages.first_opened_at as opened_at,
        messages.first_clicked_at as clicked_at,
        messages.first_unsubscribed_at as unsubscribed_at,
        messages.first_complained_at as complained_at,
        messages.first_bounced_at as bounced_at,
        nullIf(goals.goal_reached_at, toDateTime64(0, 3, 'UTC')) as converted_at
    from messages
    left any join goals on goals.goal_campaign = messages.name::String and goals.goal_contact_id = messages.contact_id
    where messages.experiment not in (select known_experiment from experiments where owner_kind = 'journey')

),

journeys as (

    select
        moves.split_experiment::String as experiment,
        moves.split_contact_id as contact_id,
        moves.split_variant::String as variant,
        'journey' as kind,
        experiments.owner as name,
        '' as occurrence,
        coalesce(messages.message_id, '') as message_id,
        moves.split_variants_count as variants_count,
        moves.split_at as exposed_at,
        nullIf(messages.first_opened_at, toDateTime64(0, 3, 'UTC')) as opened_at,
        nullIf(messages.first_clicked_at, toDateTime64(0, 3, 'UTC')) as clicked_at,
        nullIf(messages.first_unsubscribed_at, toDateTime64(0, 3, 'UTC')) as unsubscribed_at,
        nullIf(messages.first_complained_at, toDateTime64(0, 3, 'UTC')) as complained_at,
        nullIf(messages.first_bounced_at, toDateTime64(0, 3, 'UTC')) as bounced_at,
        if(
            arrayExists(goal -> goal >= moves.split_at, moves.goals),
            arrayMin(arrayFilter(goal -> goal >= moves.split_at, moves.goals)),
            null
        ) as converted_at
    from moves
    inner join experiments on experiments.known_experiment = moves.split_experiment
    left any join messages
        on messages.experiment = moves.split_experiment and messages.contact_id = moves.split_contact_id

),

exposed as (

    select * from campaigns

    union all

    select * from journeys

),

windowed as (

    select
        exposed.*,
        -- a week, if no file says
        if(coalesce(experiments.window_seconds, 0) = 0, 604800, experiments.window_seconds)::UInt32 as window_seconds,
        exposed.exposed_at + toIntervalSecond(window_seconds) as window_ends_at
    from exposed
    left any join experiments on experiments.known_experiment = exposed.experiment

)

select
    ---------- ids
    experiment,
    contact_id,
    message_id,

    ---------- text
    variant,
    kind,
    name,
    occurrence,

    ---------- numerics
    window_seconds,

    ---------- booleans
    (variants_count > 1)::Bool as is_mixed,
    {%- for name in ['opened', 'clicked', 'converted', 'unsubscribed', 'complained', 'bounced'] %}
    coalesce({{ name }}_at >= exposed_at and {{ name }}_at < window_ends_at, false)::Bool as is_{{ name }},
    {%- endfor %}

    ---------- timestamps
    exposed_at::DateTime64(3, 'UTC') as exposed_at
from windowed
