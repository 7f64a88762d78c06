{{ consent_proofs_view(is_masked=true) }}
