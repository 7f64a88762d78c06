"""Mailhouse's one Dagster code location: everything under `defs/`, loaded and merged."""

from __future__ import annotations

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """All assets, checks, jobs, schedules and sensors."""
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
