{{ customers_view(is_masked=true) }}
