{#-
    exp(lambda * (moment - epoch)), lambda = ln 2 / half-life: how much a point that is given at `moment` outweighs one
    that was given at the epoch. Sums of weight * growth never age; divided by the growth of now they are the score.
    (Cormode et al. 2009, forward decay.)
-#}
{% macro decay_growth(moment, half_life_days) -%}
    exp2(
        (toUnixTimestamp64Milli({{ moment }}) - toUnixTimestamp64Milli(toDateTime64('{{ var("engagement_epoch") }}', 3, 'UTC')))
        / 86400000. / {{ half_life_days }}
    )
{%- endmacro %}
