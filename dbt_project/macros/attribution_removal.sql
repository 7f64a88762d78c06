{#-
    Inverse of a matrix (array of rows), by elimination in place: one step a state, each of which goes over the matrix once.
    For identity minus a matrix of transition probabilities no pivoting is needed: the diagonal stays the largest.
-#}
{% macro inverse(matrix) -%}
    arrayFold(
        (rows, pivot) -> arrayMap(
            (pivot_row, pivot_value) -> arrayMap(
                (row, factor, i) -> arrayMap(
                    (number, other, j) -> if(i = pivot, other / pivot_value, if(j = pivot, 0., number) - factor * other / pivot_value),
                    row,
                    pivot_row,
                    arrayEnumerate(row)
                ),
                rows,
                arrayMap(row -> row[pivot], rows),
                arrayEnumerate(rows)
            ),
            [arrayMap((number, j) -> if(j = pivot, 1., number), rows[pivot], arrayEnumerate(rows))],
            [rows[pivot][pivot]]
        )[1],
        arrayEnumerate({{ matrix }}),
        {{ matrix }}
    )
{%- endmacro %}


{#-
    What a chain of campaigns would lose without each of them (Anderl et al. 2016, a Markov chain of order 1).

    transitions: name of a CTE or table with the `keys`, from_state, to_state and touches_count; the states '(start)',
        '(conversion)' and '(null)' are given.
    keys: columns that tell chains apart.

    Whoever comes to a state that was removed is lost. With N = (I - Q)^-1, N[i][k] is how often one from i comes to k in
    all, so N[start][k] / N[k][k] is the chance to come there ever, and N[k] times the chances of leaving for the goal that to
    reach it from there. The product of both is what the start loses without k: one inverse gives every effect exactly,
    where most tools remove state after state, or simulate.

    Gives the keys, state, removal_effect (share of conversions lost, 0 to 1) and conversion_probability of the whole chain.
-#}
{% macro removal_effects(transitions, keys) -%}
    {%- set keyed = keys | join(', ') -%}
    select
        {{ keyed }},
        effect.1 as state,
        effect.2 as removal_effect,
        conversion_probability
    from (
        select
            {{ keyed }},
            states,
            {{ inverse('matrix') }} as visits,
            arrayMap(row -> arraySum(arrayMap((times, chance) -> times * chance, row, conversion_chances)), visits) as reaching,
            arrayMap(
                k -> arraySum(arrayMap((chance, row) -> chance * row[k], start_chances, visits)) / visits[k][k],
                arrayEnumerate(states)
            ) as visited,
            arraySum(arrayMap((chance, reach) -> chance * reach, start_chances, reaching)) as conversion_probability,
            arrayJoin(arrayMap(
                (state, visit, reach) -> tuple(
                    state,
                    if(conversion_probability > 0, least(visit * reach / conversion_probability, 1.), 0.)
                ),
                states,
                visited,
                reaching
            )) as effect
        from (
            select
                {{ keyed }},
                any(states) as states,
                arraySort(row -> row.1, groupArrayIf(tuple(from_state, chances, conversion_chance), from_state != '(start)')) as rows,
                arrayMap(
                    (row, i) -> arrayMap((chance, j) -> if(i = j, 1., 0.) - chance, row.2, arrayEnumerate(row.2)),
                    rows,
                    arrayEnumerate(rows)
                ) as matrix,
                arrayMap(row -> row.3, rows) as conversion_chances,
                anyIf(chances, from_state = '(start)') as start_chances
            from (
                select
                    {{ keyed }},
                    from_state,
                    states,
                    -- of states that nobody was seen to leave for good, as the newest may be, a breath is lost: there is an inverse
                    sum(touches_count)
                    + if(from_state != '(start)' and sumIf(touches_count, to_state in ('(conversion)', '(null)')) = 0, 1e-9, 0)
                    as leaving_count,
                    sumIf(touches_count, to_state = '(conversion)') / leaving_count as conversion_chance,
                    groupArrayIf(tuple(to_state, touches_count), touches_count > 0) as steps,
                    arrayMap(
                        state -> arraySum(arrayMap(step -> if(step.1 = state, step.2, 0), steps)) / leaving_count,
                        states
                    ) as chances
                from (
                    select {{ keyed }}, from_state::String as from_state, to_state::String as to_state, touches_count
                    from {{ transitions }}

                    union all

                    -- a state that nobody has left yet leads nowhere
                    select distinct {{ keyed }}, entered.to_state::String as from_state, '' as to_state, 0::UInt64 as touches_count
                    from {{ transitions }} as entered
                    where entered.to_state not in ('(conversion)', '(null)')
                ) as moves
                inner join (
                    select {{ keyed }}, arraySort(groupUniqArray(state)) as states
                    from (
                        select {{ keyed }}, arrayJoin([from_state::String, to_state::String]) as state from {{ transitions }}
                    )
                    where state not in ('(start)', '(conversion)', '(null)')
                    group by {{ keyed }}
                ) as all_states using ({{ keyed }})
                group by {{ keyed }}, from_state, states
            )
            group by {{ keyed }}
        )
    )
{%- endmacro %}


{#- Months whose removal effects must be learned anew: those in whose months of learning a step was counted, lost or settled. -#}
{% macro due_effect_months() %}
    {%- if not is_incremental() -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set query -%}
        select coalesce(learned.month, built.month) as due_month
        from (
            select month, groupBitXor(step_hash) as learned_hash
            from ({{ settled_steps() }})
            group by month
        ) as learned
        full outer join (select * from {{ this }} where is_month) as built on built.month = learned.month
        where
            coalesce(learned.learned_hash, 0) != coalesce(built.learned_hash, 0)
            or coalesce(built.settings, '') != '{{ attribution_settings() }}'
    {%- endset -%}
    {{ return(run_query(query).rows | map(attribute=0) | sort) }}
{% endmacro %}


{#-
    Steps that are settled, once for each month that learns from them: that in which they settled and the next ones, as many
    as `attribution_learning_months`, up to this month.
-#}
{% macro settled_steps() -%}
    select
        arrayJoin(arrayFilter(
            month -> month <= toYYYYMM({{ now() }}),
            {{ months_between('settles_on', 'addMonths(settles_on, ' ~ (var('attribution_learning_months') - 1) ~ ')') }}
        ))::UInt32 as month,
        goal,
        dimension,
        from_state,
        to_state,
        touches_count,
        cityHash64(goal, dimension, from_state, to_state, touches_count, settles_on) as step_hash
    from {{ ref('int_attribution__transitions') }}
    where not is_month and settles_on <= toDate({{ now() }}, 'UTC')
{%- endmacro %}
