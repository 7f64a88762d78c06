"""Steps of a run share one process unless a job says otherwise: most take less time than a process takes to start."""

from __future__ import annotations

import dagster as dg

defs = dg.Definitions(executor=dg.in_process_executor)
