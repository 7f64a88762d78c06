"""BI as code: dashboards for Apache Superset over the `bi` schema."""
