{#-
    What is left of personal data for those who must not see it: enough to tell rows apart, too little to write to anybody.
    Columns that hold personal data are tagged in their YAML (`config: {meta: {pii: email}}`), and those that are
    masked with `masked: true`; tests/dbt_project/test_personal_data.py sees to both.
-#}

{#- a***@example.com -#}
{% macro masked_email(column) -%}
    if(
        position({{ column }}, '@') > 1,
        concat(substringUTF8({{ column }}, 1, 1), '***', substring({{ column }}, position({{ column }}, '@'))),
        ''
    )
{%- endmacro %}


{#- Initials, such as `A. B.`, of what is known of a name. -#}
{% macro masked_name(columns) -%}
    arrayStringConcat(
        arrayMap(
            part -> concat(upperUTF8(substringUTF8(part, 1, 1)), '.'),
            arrayFilter(part -> part != '', [{% for column in columns %}trim(ifNull({{ column }}, '')){{ ', ' if not loop.last }}{% endfor %}])
        ),
        ' '
    )
{%- endmacro %}


{#- +44•••23: the country, more or less, and the last two digits. -#}
{% macro masked_phone(column) -%}
    if(
        length(ifNull({{ column }}, '')) > 7,
        concat(substring(assumeNotNull({{ column }}), 1, 3), '•••', right(assumeNotNull({{ column }}), 2)),
        ''
    )
{%- endmacro %}


{#-
    Customers, one row each.

    is_masked: whether personal data is masked.
-#}
{% macro customers_view(is_masked) -%}
select
    ---------- ids
    contact_id,

    ---------- text
    {% if is_masked -%}
    {{ masked_email('profiles.email') }}::String as email,
    {{ masked_name(['profiles.first_name', 'profiles.last_name']) }}::String as full_name,
    {{ masked_phone('profiles.phone') }}::String as phone,
    {% else -%}
    profiles.email::String as email,
    trim(concat(ifNull(profiles.first_name, ''), ' ', ifNull(profiles.last_name, '')))::String as full_name,
    ifNull(profiles.phone, '')::String as phone,
    {% endif -%}
    ifNull(profiles.country, '')::String as country,
    nullIf(profiles.rfm_segment, '')::Nullable(String) as customer_group,
    profiles.engagement_band::String as engagement_band,

    ---------- numerics
    orders_count,
    revenue,

    ---------- booleans
    (has_marketing_consent and not is_suppressed)::Bool as is_mailable,

    ---------- timestamps
    created_at,
    last_order_at
from {{ ref('contact_profiles') }} as profiles
where not is_deleted
{%- endmacro %}


{#- Changes of consent with what proves them, one row each; see customers_view. -#}
{% macro consent_proofs_view(is_masked) -%}
select
    ---------- ids
    {% if is_masked -%}
    -- sources give their own ids, which may name somebody
    lower(hex(SHA256(changes.consent_id)))::String as consent_id,
    {% else -%}
    changes.consent_id as consent_id,
    {% endif -%}
    contact_id,

    ---------- text
    {% if is_masked -%}
    {{ masked_email('changes.email') }}::String as email,
    ''::String as ip,
    ''::String as user_agent,
    {{ masked_name(['changes.recorded_by']) }}::String as recorded_by,
    {% else -%}
    changes.email as email,
    changes.ip as ip,
    changes.user_agent as user_agent,
    changes.recorded_by as recorded_by,
    {% endif -%}
    channel,
    purpose,
    source,
    basis,
    text_version,
    text_digest,
    page,

    ---------- booleans
    is_granted,

    ---------- timestamps
    requested_at,
    confirmed_at,
    occurred_at
from {{ ref('consent_changes') }} as changes
{%- endmacro %}
