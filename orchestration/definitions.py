"""Mailhouse's one Dagster code location: everything under `defs/`, loaded and merged."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from dagster._utils.warnings import suppress_dagster_warnings


@dg.definitions
@suppress_dagster_warnings
def defs() -> dg.Definitions:
    """All assets, checks, jobs, schedules and sensors.

    The folder's own part of what `dg.load_from_defs_folder` gives. The other part lists the component types of every
    installed package for a UI that writes YAML, and imports all of them for it: two seconds of each run.
    """
    tree = dg.ComponentTree.for_project(Path(__file__).parent)
    return tree.build_defs(Path(__file__).parent / "defs")
