{{
    config(
        alias='consent_proofs'
    )
}}

{{ consent_proofs_view(is_masked=false) }}
