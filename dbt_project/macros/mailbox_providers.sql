{#-
    Who keeps the mailbox of an address, by the seed `mailbox_providers`: 'gmail', 'outlook' ..., 'other' for a domain
    that is not in it, '' for no address. Takes any expression of type String.

    The seed travels as two constant arrays, so a row costs one look-up in a hash table and no join; a model's unit test
    has to list `ref('mailbox_providers')` among what it is given. Both arrays are sorted alike: the order of the
    seed's rows does not matter.
-#}
{% macro mailbox_provider_of(email) -%}
    transform(
        {{ domain_of(email) }},
        (
            select arrayConcat([''], tupleElement(arraySort(groupArray(tuple(domain, mailbox_provider))), 1))
            from {{ ref('mailbox_providers') }}
        ),
        (
            select arrayConcat([''], tupleElement(arraySort(groupArray(tuple(domain, mailbox_provider))), 2))
            from {{ ref('mailbox_providers') }}
        ),
        'other'
    )
{%- endmacro %}


{#- What stands after the last @ of an address, in lower case; '' if there is no @. -#}
{% macro domain_of(email) -%}
    lower(trim(if(position({{ email }}, '@') > 0, arrayElement(splitByChar('@', {{ email }}), -1), '')))
{%- endmacro %}
