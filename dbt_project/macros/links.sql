{#- Names of parameters that say where a click came from, not where it leads: exact, or as far as the star. -#}
{% macro tracking_parameters() %}
    {{ return([
        'utm_*', 'gclid', 'gclsrc', 'dclid', 'gbraid', 'wbraid', 'fbclid', 'msclkid', 'ttclid', 'twclid', 'yclid',
        'igshid', 'li_fat_id', 'epik', 'mc_cid', 'mc_eid', 'mkt_tok', '_hsenc', '_hsmi', 'hsctatracking', '__hssc',
        '__hstc', '__hsfp', '_ke', 'vero_id', 'vero_conv', 'oly_anon_id', 'oly_enc_id', 'ck_subscriber_id', 'wickedid',
        'rb_clickid', 's_cid', 'sc_cid', '_ga', '_gl', '_openstat', 'trk_contact', 'trk_msg', 'trk_module', 'trk_sid',
        'sfmc_*', 'et_rid', 'pk_campaign', 'pk_kwd', 'piwik_campaign', 'mtm_*', 'matomo_*', 'message_id', 'contact_id',
    ]) }}
{% endmacro %}


{#-
    The link that a clicked address stands for, so that all who clicked it count together: without tracking parameters
    and fragment, the other parameters in order of their names; scheme and host in lower case, without a port that goes
    without saying; and without the signed tokens of our own unsubscribe and preference pages, which are another one for
    each message. What is no web address stays as it is.
-#}
{% macro link_of(url) -%}
    {%- set names = [] -%}
    {%- for name in tracking_parameters() -%}
        {%- do names.append(name[:-1] ~ '.*' if name.endswith('*') else name) -%}
    {%- endfor -%}
    if(
        match({{ url }}, '(?i)^\\s*https?://'),
        concat(
            {#- scheme and host -#}
            replaceRegexpOne(
                replaceRegexpOne(
                    lower(extract(trim({{ url }}), '^([^/]+//[^/?#]*)')),
                    '^(http://.*):80$', '\\1'
                ),
                '^(https://.*):443$', '\\1'
            ),
            {#- path -#}
            replaceRegexpOne(
                if(
                    extract(trim({{ url }}), '^[^/]+//[^/?#]*([^?#]*)') = '',
                    '/',
                    extract(trim({{ url }}), '^[^/]+//[^/?#]*([^?#]*)')
                ),
                '/(unsubscribe|preferences)/[A-Za-z0-9_.~-]{16,}/?$', '/\\1'
            ),
            {#- parameters -#}
            replaceRegexpOne(
                concat(
                    '?',
                    arrayStringConcat(
                        arraySort(
                            arrayFilter(
                                parameter -> parameter != ''
                                    and not match(parameter, '(?i)^({{ names | join("|") }})(=|$)'),
                                splitByChar('&', extract(trim({{ url }}), '^[^?#]*\\?([^#]*)'))
                            )
                        ),
                        '&'
                    )
                ),
                '^\\?$', ''
            )
        ),
        trim({{ url }})
    )
{%- endmacro %}
