"""`mailhouse crm`: setup, dry run, sync, status and decisions, against a HubSpot of our own."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from mailhouse.cli import app
from mailhouse.console import console
from warehouse.client import Warehouse
from warehouse.errors import MailhouseError
from warehouse.loads import load_crm_records
from warehouse.settings import MailhouseSettings

sys.path.append(str(Path(__file__).parent.parent / "crm"))

START = datetime(2026, 1, 1, tzinfo=UTC)
RULES = """
fields: {first_name: newest, push_token: newest}
push: {hubspot: {engagement: [engagement_score]}}
"""


@pytest.mark.slow
def test_a_person_sees_what_would_happen_lets_it_and_asks_why(
    warehouse: Warehouse, warehouse_server: MailhouseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubspot_fake import TOKEN, FakeHubSpot, serve
    from sync_world import identify, make_models, make_profiles

    make_models(warehouse)
    make_profiles(warehouse, "select 1::Int64 as contact_id, 7::Float64 as engagement_score")
    (tmp_path / "crm.yaml").write_text(RULES)
    fake = FakeHubSpot(clock=lambda: datetime.now(UTC))
    fake.put("contacts", 1, START, email="p1@example.com", firstname="Ann")
    record = {
        "source": "shop", "object": "contact", "external_id": "s1", "updated_at": START + timedelta(days=1),
        "properties": json.dumps({"email": "p1@example.com", "first_name": "Anna"}),
    }  # fmt: skip
    load_crm_records(
        warehouse, pl.DataFrame([record]).with_columns(pl.col("updated_at").cast(pl.Datetime("ms", "UTC")))
    )
    runner = CliRunner()

    def say(*words: str) -> str:
        result = runner.invoke(app, ["crm", *words])
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.output

    with serve(fake) as served, monkeypatch.context() as patch:
        patch.setattr(console, "width", 200)
        for name, value in {
            "HOME": warehouse_server.home, "CONTENT_DIR": tmp_path, "WAREHOUSE_PORT": warehouse_server.warehouse_port,
            "HUBSPOT_TOKEN": TOKEN, "HUBSPOT_BASE_URL": served.url,
        }.items():  # fmt: skip
            patch.setenv(f"MAILHOUSE_{name}", str(value))
        assert "made mailhouse_engagement_score" in say("setup")
        told = say("setup")
        assert "nothing to make" in told
        assert "hubspot: push_token is not written there, which has no place for it." in told
        assert "wait until the models have been built" in say("sync")
        identify(warehouse)
        told = say("sync", "--dry-run")
        assert "Anna" in told
        assert "mailhouse_engagement_score" in told
        assert "2 fields and 0 tasks would be written." in told
        assert fake.records["contacts"][1].properties["firstname"] == "Ann"
        assert "2 written" in say("sync")
        assert fake.records["contacts"][1].properties["firstname"] == "Anna"
        assert "hubspot" in say("status")
        told = say("status")
        assert "Last sync" in told
        assert "hubspot: push_token is not written there" in told
        (tmp_path / "crm.yaml").write_text(
            RULES.replace("{engagement", "{fields: [first_name, push_token], engagement")
        )
        result = runner.invoke(app, ["crm", "sync"])
        assert isinstance(result.exception, MailhouseError)
        assert "crm.yaml:3: hubspot has no place for push_token." in result.exception.message
        (tmp_path / "crm.yaml").write_text(RULES)
        why = say("decisions", "--contact", "1")
        assert "first_name = 'Anna', of shop s1" in why
        assert "lost: 'Ann', of hubspot 1" in why
        assert "Nothing was decided about contact 2" in say("decisions", "--contact", "2")


@pytest.mark.slow
def test_a_person_reads_a_crm_again_and_finds_who_is_gone(
    warehouse: Warehouse, warehouse_server: MailhouseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubspot_fake import TOKEN, FakeHubSpot, serve

    fake = FakeHubSpot()
    for number in range(1, 8):
        fake.put("contacts", number, START, email=f"p{number}@example.com")
    fake.put("deals", 1, START, dealname="Lamps")
    runner = CliRunner()

    def say(*words: str) -> str:
        result = runner.invoke(app, ["crm", "pull", *words])
        assert result.exit_code == 0, result.output + repr(result.exception)
        return " ".join(result.output.split())

    def fails(*words: str) -> str:
        result = runner.invoke(app, ["crm", "pull", *words])
        assert result.exit_code != 0
        assert isinstance(result.exception, MailhouseError)
        return f"{result.exception.message} {result.exception.fix}"

    def gone() -> list[str]:
        rows = warehouse.frame(
            "select external_id from raw.crm_records where object = 'contact'"
            " group by external_id having argMax(is_deleted, updated_at) order by external_id"
        )
        return rows["external_id"].to_list()

    with serve(fake) as served, monkeypatch.context() as patch:
        patch.setattr(console, "width", 200)
        patch.delenv("MAILHOUSE_HUBSPOT_TOKEN", raising=False)
        for name, value in {
            "HOME": warehouse_server.home, "WAREHOUSE_PORT": warehouse_server.warehouse_port,
            "HUBSPOT_BASE_URL": served.url, "HUBSPOT_CALLS_PER_10_SECONDS": 10_000,
            "HUBSPOT_SEARCHES_PER_SECOND": 1_000,
        }.items():  # fmt: skip
            patch.setenv(f"MAILHOUSE_{name}", str(value))
        assert "No CRM is set up" in fails()
        patch.setenv("MAILHOUSE_HUBSPOT_TOKEN", TOKEN)
        told = say()
        assert "hubspot contacts: 14 read, 7 new or changed" in told
        assert "hubspot deals: 2 read, 1 new or changed" in told
        for number in (3, 5):
            fake.erase("contacts", number)
        told = say("hubspot", "--kind", "contact")
        assert "0 new or changed" in told
        assert "deals" not in told
        assert gone() == []
        assert "1 read, 0 new or changed, 1 calls" in say("hubspot", "--id", "1")
        assert "1 new or changed" in say("hubspot", "--id", "3")
        assert gone() == ["3"]
        assert "1 did not come, of which 1 are gone" in say("hubspot", "--kind", "contact", "--full")
        assert gone() == ["3", "5"]
        assert "0 new or changed, 0 did not come" in say("hubspot", "--kind", "contact", "--full")
        assert "Name one of: hubspot." in fails("salesforce")
        assert "Name one of: contact, company" in fails("hubspot", "--kind", "person")
        assert "leave --full out" in fails("--id", "1")
        patch.setenv("MAILHOUSE_CRM_SKIPPED", "hubspot_tasks")
        assert "hubspot has no tasks that are read" in fails("hubspot", "--kind", "task")
        fake.failures.append((403, {}, b"{}"))
        told = fails("--kind", "contact", "--full")
        assert "hubspot contacts: HubSpot's token does not allow" in told
        assert "a run with --full that comes to its end" in told
