"""Estimators and statistics: polars frame in, polars frame out, no I/O."""
