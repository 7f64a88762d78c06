"""An experiment through Dagster on real customers and real models: sent, answered, analysed, shown.

The last of the code location's files: it lets a day pass, with answers that other tests do not expect.
"""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest
from location import Location
from typer.testing import CliRunner

from mailhouse.experiments import app
from orchestration.defs.campaigns.assets import CAMPAIGNS
from orchestration.defs.experiments.assets import EXPERIMENTS, GUARDRAILS, RATIO, RESULTS
from warehouse.settings import PREFIX

pytestmark = pytest.mark.slow


def test_the_shipped_experiment_is_sent_analysed_and_shown(
    location: Location, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    location.instance.add_dynamic_partitions(CAMPAIGNS.name, ["win_back"])
    location.run("send_campaign", "win_back")
    warehouse = location.warehouse
    sent = dict(
        warehouse.frame(
            """
            select toString(variant), uniqExact(message_id) from raw.messages
            where name = 'win_back' and status = 'sent' group by 1
            """
        ).iter_rows()
    )
    assert set(sent) == {"for_you", "missed"} and min(sent.values()) > 100
    subjects = warehouse.frame(
        "select distinct toString(variant) as variant, position(subject, 'missed you') > 0 as is_warm from raw.messages"
        " where name = 'win_back' and status = 'sent'"
    )
    assert {tuple(row) for row in subjects.iter_rows()} == {("for_you", 0), ("missed", 1)}
    # a third of those who were missed click, a twentieth of the others, and a machine clicks everything
    warehouse.execute(
        """
        insert into raw.events (event_id, type, source, message_id, email, occurred_at, received_at, properties)
        select 'click-' || message_id, 'clicked', 'test', message_id, any(email),
            max(changed_at) + toIntervalHour(1) as at, at, '{"is_machine": false, "url": "https://shop.example/"}'
        from raw.messages where name = 'win_back' and status = 'sent'
            and sipHash64(message_id) % if(variant = 'missed', 3, 20) = 0
        group by message_id
        union all
        select 'scan-' || message_id, 'clicked', 'test', message_id, any(email), max(changed_at) as at, at,
            '{"is_machine": true, "url": "https://shop.example/"}'
        from raw.messages where name = 'win_back' and status = 'sent' group by message_id
        """
    )
    offset = location.settings.clock_offset + timedelta(hours=25).total_seconds()
    monkeypatch.setenv(PREFIX + "CLOCK_OFFSET", repr(offset))
    location.run("ingest")
    location.run("build_live_models")
    location.instance.add_dynamic_partitions(EXPERIMENTS.name, ["win_back"])
    location.run("analyse_experiment", "win_back")
    event = location.instance.get_latest_materialization_event(RESULTS)
    assert event is not None and event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert "missed wins: clicks" in str(metadata["verdict"].value)
    assert metadata["contacts"].value == sum(sent.values()) and metadata["lift_missed"].value > 1
    page = (location.settings.home / "experiments/win_back.html").read_text()
    assert "missed wins" in page and str(metadata["report"].value).endswith("experiments/win_back.html")
    keys = [dg.AssetCheckKey(RESULTS, name) for name in (RATIO, GUARDRAILS)]
    found = location.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    assert all(found[key].status.value == "SUCCEEDED" for key in keys)
    for args, said in (
        (("list",), "missed wins"),
        (("show", "win_back"), "missed wins: clicks"),
        (("report", "win_back"), "experiments/win_back.html"),
        (("size", "win_back"), "contacts are needed to find a change of 50.0% of clicks"),
    ):
        answer = CliRunner().invoke(app, list(args), catch_exceptions=False, env={"COLUMNS": "200"})
        assert answer.exit_code == 0 and said in " ".join(capsys.readouterr().out.split()) + answer.output
