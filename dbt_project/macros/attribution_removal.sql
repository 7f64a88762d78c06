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
                    states,
                    row.1 as from_state,
                    row.2 as steps,
                    -- of states that nobody was seen to leave for good, as the newest may be, a breath is lost: there is an inverse
                    arraySum(arrayMap(step -> step.2, steps))
                    + if(
                        from_state != '(start)'
                        and arraySum(arrayMap(step -> if(step.1 in ('(conversion)', '(null)'), step.2, 0), steps)) = 0,
                        1e-9,
                        0
                    ) as leaving_count,
                    arraySum(arrayMap(step -> if(step.1 = '(conversion)', step.2, 0), steps)) / leaving_count as conversion_chance,
                    arrayMap(
                        state -> arraySum(arrayMap(step -> if(step.1 = state, step.2, 0), steps)) / leaving_count,
                        states
                    ) as chances
                from (
                    select
                        {{ keyed }},
                        groupArray(tuple(from_state, steps)) as left_rows,
                        arrayMap(row -> row.1, left_rows) as left_states,
                        arraySlice(left_rows[1].2, 1, 0) as no_steps,
                        arraySort(arrayDistinct(arrayFilter(
                            state -> state not in ('(start)', '(conversion)', '(null)'),
                            arrayConcat(left_states, groupArrayArray(arrayMap(step -> step.1, steps)))
                        ))) as states,
                        -- a state that nobody has left yet leads nowhere
                        arrayConcat(
                            left_rows,
                            arrayMap(
                                state -> tuple(state, no_steps),
                                arrayFilter(state -> not has(left_states, state), states)
                            )
                        ) as all_rows
                    from (
                        -- the transitions are named once: each name of a CTE is a copy of it
                        select
                            {{ keyed }},
                            from_state::String as from_state,
                            groupArray(tuple(to_state::String, touches_count)) as steps
                        from {{ transitions }}
                        group by {{ keyed }}, from_state
                    )
                    group by {{ keyed }}
                )
                array join all_rows as row
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
