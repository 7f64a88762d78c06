{{
    config(
        order_by=['changed_at', 'contact_id']
    )
}}

with

consents as (

    -- by hash: a join by address would make a table of all addresses and ids that are known
    select
        source,
        is_granted,
        occurred_at,
        {{ identity_of('source', 'external_id', 'email') }} as consent_identity_id
    from {{ ref('stg_consents__changes') }}
    where channel = 'email' and purpose = 'marketing'

),

consenting as (

    select
        identities.contact_id as contact_id,
        consents.source as source,
        consents.is_granted as is_granted,
        consents.occurred_at as occurred_at
    from {{ ref('int_contacts__identified') }} as identities
    inner join consents on consents.consent_identity_id = identities.identity_id

),

events as (

    -- a scanner that follows links decides nothing, and a full mailbox is no reason never to write again
    {{ owned_events(
        ['type', 'source', 'occurred_at'],
        "type in ('subscribed', 'unsubscribed', 'complained', 'bounced') and not is_machine"
        ~ " and (type != 'bounced' or bounce_class = 'hard')"
    ) }}

),

changes as (

    select
        contact_id,
        source::String as source,
        if(is_granted, 'joined', 'withdrawn') as change,
        occurred_at as changed_at
    from consenting

    union all

    select
        events.contact_id as contact_id,
        source::String as source,
        multiIf(type = 'subscribed', 'joined', type = 'bounced', 'hard_bounced', type::String) as change,
        occurred_at as changed_at
    from events

),

by_contact as (

    -- of several changes at one moment those that end it come last; after a complaint there is no coming back
    select
        contact_id,
        arraySort(
            step -> tuple(step.1, step.2 != 'joined', step.2, step.3),
            groupUniqArray(tuple(changed_at, change, source))
        ) as all_steps,
        arrayFirstIndex(step -> step.2 = 'complained', all_steps) as complaint_index,
        if(complaint_index > 0, arraySlice(all_steps, 1, complaint_index), all_steps) as steps
    from changes
    group by contact_id

),

turns as (

    -- only what changes something: who has left cannot leave again
    select
        contact_id,
        arrayFilter(
            (step, previous) -> (step.2 = 'joined') != (previous = 'joined'),
            steps,
            arrayPushFront(arrayPopBack(arrayMap(step -> step.2, steps)), 'left')
        ) as turns
    from by_contact

)

select
    ---------- ids
    contact_id::Int64 as contact_id,

    ---------- text
    turn.2.2::LowCardinality(String) as change,
    -- the source through which the person came, of whom it is told when they go
    if(turn.2.2 = 'joined', turn.2.3, turns[turn.1 - 1].3)::LowCardinality(String) as source,

    ---------- timestamps
    turn.2.1 as changed_at
from turns
array join arrayZip(arrayEnumerate(turns), turns) as turn
