"""Messages that a provider put off: the sensor launches runs for them, the command lists and revives dead ones."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from mailhouse.cli import app
from orchestration.defs.campaigns.sensors import RETRY_TAG, schedule_retry
from senders.ledger import PLAN_COLUMNS, Claim, Ledger, Outcome
from senders.message import Status
from senders.settings import SenderSettings

CAMPAIGN = """\
campaign: offer
audience: {segment: champions}
schedule: {at: 2026-06-27T09:00:00Z}
send: {template: offer, subject: Hello, category: marketing}
"""
OCCURRENCE = "2026-06-27T09:00:00Z"
NOW = datetime(2026, 6, 27, 9, 5, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "content" / "campaigns").mkdir(parents=True)
    (tmp_path / "content" / "campaigns" / "offer.yaml").write_text(CAMPAIGN)
    monkeypatch.setenv("MAILHOUSE_HOME", str(tmp_path))
    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(tmp_path / "content"))
    plan = {**dict.fromkeys(PLAN_COLUMNS, ""), "kind": "campaign", "name": "offer", "occurrence": OCCURRENCE}
    with Ledger.open(SenderSettings.load()) as ledger:
        run = ledger.begin_run("campaign", "offer", OCCURRENCE, NOW)
        emails = ["a@x.example", "b@x.example", "c@x.example"]
        rows = ledger.claim(
            run, Claim(plan, ["1", "2", "3"], [1, 2, 3], emails, [""] * 3, ["{}"] * 3), NOW
        ).rows
        ledger.dispatch(run, list(rows.values()), NOW)
        ledger.record(
            run,
            [
                Outcome(rows[0], Status.FAILED, "deferred", reply="451 later"),
                Outcome(rows[1], Status.REJECTED, "invalid", reply="550 5.1.1 no [such] user"),
                Outcome(rows[2], Status.SENT),
            ],
            NOW,
        )
        ledger.end_run(run, "finished", NOW)
    return tmp_path


def set_time(monkeypatch: pytest.MonkeyPatch, minutes: float) -> None:
    offset = NOW.timestamp() - datetime.now(UTC).timestamp() + minutes * 60
    monkeypatch.setenv("MAILHOUSE_CLOCK_OFFSET", str(offset))


def tick(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    with dg.build_sensor_context(instance=instance) as context:
        answer = schedule_retry(context)
    return list(answer.run_requests or []) if isinstance(answer, dg.SensorResult) else []


def test_retries_come_later_and_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        set_time(monkeypatch, 5)
        assert tick(instance) == []
        set_time(monkeypatch, 11)
        (request,) = tick(instance)
        assert (request.partition_key, request.run_key) == ("offer", f"offer@{OCCURRENCE}!1")
        run = instance.create_run_for_job(dg.job(name="send_campaign")(lambda: None), tags=dict(request.tags))
        # nothing is launched beside a run that is at work
        assert tick(instance) == []
        instance.report_run_failed(run)
        assert tick(instance) == []
        set_time(monkeypatch, 21)
        (request,) = tick(instance)
        assert request.tags[RETRY_TAG] == "2"


def test_dead_letters_on_the_command_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_time(monkeypatch, 5)
    runner = CliRunner()
    shown = runner.invoke(app, ["deadletters"])
    assert shown.exit_code == 0, shown.output
    assert "b@x.example" in shown.output
    assert "rejected (invalid): 550 5.1.1 no [such] user" in shown.output
    assert "a@x.example" not in shown.output
    assert "no dead letters" in runner.invoke(app, ["deadletters", "-c", "other"]).output
    assert "1 will be tried once more" in runner.invoke(app, ["deadletters", "--retry"]).output
    assert "no dead letters" in runner.invoke(app, ["deadletters"]).output
