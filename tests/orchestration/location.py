"""The code location with all that it works on, for tests that run its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
import pytest

from senders.settings import SenderSettings
from warehouse.client import Warehouse

NOW = datetime(2011, 6, 27, 8, 30, tzinfo=UTC)
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Location:
    """Dagster's definitions, an instance, and the warehouse that they work on."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    warehouse: Warehouse

    @property
    def settings(self) -> SenderSettings:
        """The settings in force."""
        return SenderSettings.load()

    def run(self, job: str, partition: str | None = None, *, must_succeed: bool = True):
        """Run a job in this process."""
        result = self.definitions.resolve_job_def(job).execute_in_process(
            run_config=QUIET, instance=self.instance, partition_key=partition, raise_on_error=False
        )
        if must_succeed and not result.success:
            failures = [event for event in result.all_events if event.is_step_failure]
            pytest.fail(f"{job}: {[event.step_failure_data.error for event in failures]}")
        return result
