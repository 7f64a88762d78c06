"""Running the dbt project in this process, in databases of its own, over raw rows that a test puts there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from empty_raw import empty_raw

from orchestration.lib.dbt_runs import PROJECT_DIR, dbt_environment
from warehouse.client import Warehouse
from warehouse.loads import load_consents, load_crm_records, load_events
from warehouse.settings import MailhouseSettings

PREFIX = "dbt_test_"
DATABASES = ("staging", "intermediate", "marts", "features", "segments", "metrics", "bi_personal", "bi")
STORIES = ("+contact_profiles", "+segment_memberships", "+orders", "+events")
NOW = datetime(2011, 6, 27, 9, 30, tzinfo=UTC)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for dbt, which reads nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


def dbt(
    args: Sequence[str],
    target: Path,
    project_dir: Path = PROJECT_DIR,
    manifest: Any = None,
    callbacks: Sequence[Any] = (),
) -> Any:
    """Run a dbt command in this process; dbt's own result."""
    from dbt.cli.main import dbtRunner

    command = [
        *args,
        *("--project-dir", str(project_dir), "--profiles-dir", str(project_dir)),
        *("--target-path", str(target), "--log-path", str(target), "--log-level", "none", "--no-use-colors"),
    ]
    return dbtRunner(manifest=manifest, callbacks=list(callbacks)).invoke(command)


@dataclass
class Models:
    """The project on a warehouse: build it, read it, put raw rows under it."""

    warehouse: Warehouse
    settings: MailhouseSettings
    manifest: Any
    target: Path
    now: datetime = NOW

    def build(
        self, *args: str, command: str = "build", offset: timedelta = timedelta(0), **variables: Any
    ) -> Any:
        """Run dbt at `now` plus an offset, with variables; fails the test with dbt's words if a node fails."""
        clock = (self.now + offset - datetime.now(UTC)).total_seconds()
        settings = self.settings.model_copy(update={"clock_offset": clock})
        given = json.dumps({"database_prefix": PREFIX, "check_contracts": True, **variables})
        with environment(dbt_environment(settings)):
            result = dbt(
                [command, "--vars", given, "--no-write-json", *args], self.target, manifest=self.manifest
            )
        if not result.success:
            nodes = getattr(result.result, "results", None) or []
            bad = [
                f"{one.node.name}: {one.status} {one.message}"
                for one in nodes
                if one.status in ("error", "fail")
            ]
            pytest.fail(f"dbt {command}: {result.exception or ''} " + "\n".join(bad))
        return result.result

    def run(self, offset: timedelta = timedelta(0)) -> None:
        """Build seeds and the models that stories of people and segments read (`STORIES`), no tests."""
        self.build("--exclude-resource-type", "unit_test", "test", "--select", *STORIES, offset=offset)

    def frame(self, sql: str) -> pl.DataFrame:
        """Query; `marts.`, `segments.` and so on mean the databases of the tests."""
        for name in DATABASES:
            sql = sql.replace(f" {name}.", f" {PREFIX}{name}.")
        return self.warehouse.frame(sql)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        return self.frame(sql).rows()

    def value(self, sql: str) -> Any:
        """The one value of a query."""
        return self.frame(sql).item()

    def events(self, *events: dict[str, Any]) -> None:
        """Load events: `at` is a time or a day of 2011 as `06-01`."""
        load_events(
            self.warehouse, pl.DataFrame([_event(event) for event in events], infer_schema_length=None)
        )

    def contact(
        self, external_id: str, email: str, at: str | datetime, source: str = "shop", **properties: Any
    ) -> None:
        """Load one version of a CRM contact."""
        record = {
            "source": source,
            "object": "contact",
            "external_id": external_id,
            "updated_at": moment(at),
            "is_deleted": properties.pop("is_deleted", False),
            "properties": json.dumps({"email": email, **properties}),
        }
        load_crm_records(self.warehouse, pl.DataFrame([record]))

    def consent(self, email: str, at: str, *, is_granted: bool = True, channel: str = "email") -> None:
        """Load one change of consent to marketing on a channel."""
        change = {
            "consent_id": f"{email}-{at}" if channel == "email" else f"{email}-{channel}-{at}",
            "source": "form",
            "email": email,
            "channel": channel,
            "purpose": "marketing",
            "is_granted": is_granted,
            "basis": "opt_in",
            "occurred_at": moment(at),
        }
        load_consents(self.warehouse, pl.DataFrame([change]))

    def clear(self) -> None:
        """Empty raw tables, no models."""
        for name in DATABASES:
            self.warehouse.execute(f"drop database if exists {PREFIX}{name}")
        empty_raw(self.warehouse)


def moment(at: str | datetime) -> datetime:
    """`06-01` or `06-01 12:30` of 2011, UTC."""
    if isinstance(at, datetime):
        return at
    return datetime.fromisoformat(f"2011-{at}").replace(tzinfo=UTC)


def _event(event: dict[str, Any]) -> dict[str, Any]:
    properties = {key: value for key, value in event.items() if key in ("is_machine", "bounce_class", "url")}
    at = moment(event["at"])
    return {
        "event_id": event["id"],
        "type": event["type"],
        "source": event.get("source", "shop"),
        "email": event.get("email", ""),
        "external_id": event.get("external_id", ""),
        "anonymous_id": event.get("anonymous_id", ""),
        "message_id": event.get("message_id", ""),
        "occurred_at": at,
        "received_at": at,
        "properties": json.dumps(event.get("properties", properties)),
    }


def order(
    number: str, at: str | datetime, amount: str = "10.00", quantity: int = 1, **hints: Any
) -> dict[str, Any]:
    """An `order.placed` event of one line."""
    item = {"line_number": 1, "product_id": "P", "name": "Pot", "quantity": quantity, "unit_price": amount}
    properties = {"order_id": number, "currency": "GBP", "country": "France", "items": [item]}
    return {"id": f"shop:order:{number}", "type": "order.placed", "at": at, "properties": properties, **hints}
