"""kill -9 of a syncing process at the worst instants: nothing is lost, doubled, or taken for an edit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hubspot_fake import TOKEN, FakeHubSpot, serve
from sync_world import identify, make_models

from warehouse.client import Warehouse
from warehouse.loads import load_crm_records, load_events
from warehouse.settings import MailhouseSettings

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2026, 1, 1, tzinfo=UTC)
PEOPLE = range(1, 31)
SYNC = """
from crm.settings import CrmSettings
from crm.syncing import set_up_crms, sync_crms
from warehouse.client import Warehouse
settings = CrmSettings.load()
with Warehouse.connect(settings) as warehouse:
    report = sync_crms(settings, warehouse)
assert not report.failures, report.failures
"""
RULES = "fields: {first_name: newest, city: newest}\npush: {hubspot: {tasks: true}}\n"
# which of HubSpot's paths, and whether it is carried out before the process dies that asked for it
KILLS = [
    ("/contacts/search", False), ("/contacts/batch/update", False), ("/contacts/batch/update", True),
    ("/tasks/", False), ("/tasks/batch/", True),
]  # fmt: skip


@pytest.mark.slow
def test_no_update_is_lost_and_nothing_is_doubled(
    warehouse: Warehouse, settings: MailhouseSettings, tmp_path: Path
) -> None:
    make_models(warehouse)
    (tmp_path / "crm.yaml").write_text(RULES)
    fake = FakeHubSpot(clock=lambda: datetime.now(UTC))
    for number in PEOPLE:
        fake.put(
            "contacts", number, START, email=f"p{number}@example.com", firstname="Ann", city=f"Edited {number}"
        )  # fmt: skip
    load_crm_records(
        warehouse,
        pl.DataFrame(
            [
                {
                    "source": "shop", "object": "contact", "external_id": f"s{number}",
                    "updated_at": START + timedelta(days=1 if number <= 20 else -1),
                    "properties": json.dumps({"email": f"p{number}@example.com", "first_name": f"New {number}"}),
                }
                for number in PEOPLE
            ]
        ).with_columns(pl.col("updated_at").cast(pl.Datetime("ms", "UTC"))),
    )  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "MAILHOUSE_HOME": str(tmp_path / "home"),
        "MAILHOUSE_CONTENT_DIR": str(tmp_path), "MAILHOUSE_WAREHOUSE_PORT": str(settings.warehouse_port),
        "MAILHOUSE_HUBSPOT_TOKEN": TOKEN, "MAILHOUSE_CRM_SKIPPED": "hubspot_tasks,hubspot_deals,hubspot_companies",
    }  # fmt: skip
    answer = fake.answer
    dying: list[subprocess.Popen[bytes]] = []
    awaited: list[tuple[str, bool]] = []

    def deadly(method: str, target: str, token: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if awaited and dying and awaited[0][0] in target:
            if awaited.pop(0)[1]:
                answer(method, target, token, body)
            dying.pop().kill()
            return 0, {}, b""
        return answer(method, target, token, body)

    fake.answer = deadly  # pyright: ignore[reportAttributeAccessIssue]

    def sync(kill: tuple[str, bool] | None) -> int:
        awaited[:] = [kill] if kill else []
        process = subprocess.Popen(
            [sys.executable, "-c", SYNC], env=environment, cwd=ROOT, stderr=subprocess.PIPE
        )
        dying[:] = [process]
        said = process.communicate(timeout=120)[1].decode()
        code = process.returncode
        asked = [f"{method} {path}" for method, path, _ in fake.requests]
        assert kill is None or not awaited, f"{kill} was never asked for: {asked[-3:]} {said}"
        return code

    with serve(fake) as served:
        environment["MAILHOUSE_HUBSPOT_BASE_URL"] = served.url
        subprocess.run(
            [sys.executable, "-c", SYNC.partition("with ")[0] + "set_up_crms(settings)"],
            env=environment,
            check=True,
        )
        assert sync(KILLS[0]) == -9
        assert sync(None) == 0
        identify(warehouse)
        load_events(
            warehouse,
            pl.DataFrame(
                {
                    "event_id": [f"crm.task_requested:{number}" for number in (1, 2, 3)],
                    "type": "crm.task_requested",
                    "occurred_at": datetime.now(UTC),
                    "properties": [
                        json.dumps({"contact_id": number, "subject": "Ring"}) for number in (1, 2, 3)
                    ],
                }
            ).with_columns(pl.col("occurred_at").cast(pl.Datetime("ms", "UTC"))),
        )
        for kill in KILLS[1:]:
            assert sync(kill) == -9
            identify(warehouse)
        for _ in range(2):
            assert sync(None) == 0
            identify(warehouse)
        calls = len(fake.requests)
        assert sync(None) == 0
    writes = [path for method, path, _ in fake.requests[calls:] if "/batch/" in path and method == "POST"]
    assert [path for path in writes if not path.endswith("/read")] == []
    shown = {number: one.properties["firstname"] for number, one in fake.records["contacts"].items()}
    assert shown == {number: f"New {number}" if number <= 20 else "Ann" for number in PEOPLE}
    assert len(fake.records["tasks"]) == 3
    decided = warehouse.frame(
        "select contact_id, toString(field) as field, value, toString(source) as source from raw.field_decisions"
    )
    assert decided.height == decided.unique().height == 30
    # what we wrote and read again is nobody's edit
    told = decided.filter(pl.col("contact_id") <= 20)
    assert set(told["source"]) == {"shop"}
