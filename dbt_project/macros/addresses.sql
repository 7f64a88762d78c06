{#-
    Telephone numbers and device tokens: addresses of the channels `sms` and `push`. campaigns/permissions.py has the
    same pattern of a number.
-#}

{#- Whether a text is a number as E.164 writes it: +447700900123. -#}
{% macro is_e164(number) -%}
    match(coalesce({{ number }}, ''), '^\\+[1-9][0-9]{6,14}$')
{%- endmacro %}


{#-
    A telephone number as E.164 writes it (ITU-T E.164, 15 digits at most), null where that would be a guess.

    It must name its country: by + or by the international prefix 00, with a country code that is assigned, and in the North
    American plan ten digits of which neither area code nor exchange begins with 0 or 1. Of `+44 (0)20 ...` the trunk prefix in
    brackets goes; in Italy it is a part of the number. A number without a country (`020 7946 0018`,
    `(415) 555-0123`), or with letters or an extension, is null.
-#}
{% macro e164(text) -%}
    {{ e164_of('[' ~ text ~ ']') }}[1]
{%- endmacro %}


{#- The same for a list of texts, in its order. Each step has its own name: a number is worked out once, not where it stands. -#}
{% macro e164_of(texts) -%}
    arrayMap(
        number -> if(match(number, '^\\+(?:{{ calling_codes() }})$') and length(number) between 8 and 16, number, null),
        arrayMap(
            plain -> replaceRegexpAll(
                replaceRegexpOne(plain, '^(\\+(?:[124-9]\\d{0,2}|3[0-8]\\d?))\\(0\\)', '\\1'), '[()]', ''
            ),
            arrayMap(
                text -> replaceRegexpOne(
                    replaceRegexpAll(coalesce(text, ''), '[\\s\\x{00a0}\\x{2010}-\\x{2015}./-]+', ''), '^(\\+|00)', '+'
                ),
                {{ texts }}
            )
        )
    )
{%- endmacro %}


{#- Country codes that ITU has assigned, with the rest of a number, as a part of a regular expression. -#}
{% macro calling_codes() -%}
    1[2-9]\\d{2}[2-9]\\d{6}|7\\d{10}|(?:2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58])\\d{5,13}
    {%- for codes in [
        '21[1-368]', '22\\\\d', '23\\\\d', '24\\\\d', '25[0-8]', '26\\\\d', '29[0179]', '35\\\\d', '37[0-8]', '38[0-35-79]', '42[013]',
        '50\\\\d', '59\\\\d', '67[02-9]', '68[0-35-9]', '69[0-2]', '80[08]', '85[02356]', '87[08]', '88[01368]', '96[0-8]',
        '97[0-79]', '99[2-68]',
    ] -%}
    |{{ codes }}\\d{4,12}
    {%- endfor -%}
{%- endmacro %}
