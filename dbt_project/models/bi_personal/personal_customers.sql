{{
    config(
        alias='customers'
    )
}}

{{ customers_view(is_masked=false) }}
