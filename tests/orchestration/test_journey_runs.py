"""A journey through Dagster on real customers: the sensor finds who is due, the run moves and sends, once."""

from __future__ import annotations

import shutil
from base64 import b64decode
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from location import QUIET, Location

from campaigns.journey_requests import REQUEST_COLUMNS, request_moves
from orchestration.defs.journeys.assets import JOURNEYS, TICKS
from orchestration.defs.journeys.sensors import JOURNEY_TAG, journeys_due
from orchestration.lib.journey_runs import pause, resume
from warehouse.client import Warehouse
from warehouse.settings import PREFIX, PROJECT_ROOT

JOURNEY = """journey: hello
entry: {segment: at_risk, requests: true, where: orders_count > 0}
goal: {event: order.placed, where: event.total > 1000000 and country != 'Nowhere'}
exit: [{event: unsubscribed}, {where: revenue < 0}]
quiet_hours: {after: "23:58", before: "23:59"}
steps:
  - id: greet
    send: {template: thank_champions, category: marketing, subject: Hello}
  - id: looked
    wait_for: {event: clicked, message: greet, within: 3d}
"""


def evaluate(instance: dg.DagsterInstance) -> tuple[list[dg.RunRequest], str]:
    """One tick of the sensor: the runs that it asks for, or why there are none."""
    with dg.build_sensor_context(instance=instance) as context:
        answer = journeys_due(context)
    if isinstance(answer, dg.SkipReason):
        return [], answer.skip_message or ""
    assert isinstance(answer, dg.SensorResult)
    return list(answer.run_requests or []), ""


def clear(warehouse: Warehouse) -> None:
    """Leave no trace for tests that count campaigns and messages."""
    for table in ("campaigns", "messages"):
        warehouse.execute(
            f"alter table raw.{table} delete where kind = 'journey' settings mutations_sync = 1"
        )
    names = warehouse.frame(
        "select name from system.tables where database = 'campaigns' and name like 'journey%'"
    )
    for name in names["name"]:
        warehouse.execute(f"drop table campaigns.{name}")


@pytest.mark.slow
def test_a_journey_is_launched_when_somebody_wants_in_and_sends_once(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    content = tmp_path / "content"
    shutil.copytree(PROJECT_ROOT / "content" / "templates", content / "templates")
    (content / "journeys").mkdir()
    (content / "journeys" / "hello.yaml").write_text(JOURNEY)
    monkeypatch.setenv(PREFIX + "CONTENT_DIR", str(content))
    # a ledger and a maildir of its own: other tests count what is in the location's
    monkeypatch.setenv(PREFIX + "HOME", str(tmp_path / "home"))
    request.addfinalizer(lambda: clear(location.warehouse))
    monkeypatch.setenv(PREFIX + "DEFAULT_CAP_MESSAGES", "0")
    settings, warehouse = location.settings, location.warehouse
    contacts = warehouse.frame(
        "select contact_id from marts.contact_profiles where has_marketing_consent and not is_suppressed"
        " order by contact_id limit 5"
    )["contact_id"].to_list()
    with dg.DagsterInstance.ephemeral() as instance:
        asked, _ = evaluate(instance)
        assert [one.partition_key for one in asked] == ["hello"]
        assert asked[0].tags[JOURNEY_TAG] == "hello"
        job = location.definitions.resolve_job_def("tick_journey")

        def run() -> dict[str, object]:
            instance.add_dynamic_partitions(str(JOURNEYS.name), ["hello"])
            result = job.execute_in_process(run_config=QUIET, instance=instance, partition_key="hello")
            event = result.asset_materializations_for_node("journey_ticks")[0]
            return {name: value.value for name, value in event.metadata.items()}

        assert run()["moves"] == 0
        assert evaluate(instance) == ([], "Nobody is due in 1 journeys.")
        rows = [(f"r{one}", "hello", one, "enter", "test", settings.now()) for one in contacts]
        assert request_moves(warehouse, pl.DataFrame(rows, schema=REQUEST_COLUMNS, orient="row")) == 5
        pause(settings, "hello")
        assert evaluate(instance)[1] == "hello is paused"
        resume(settings, "hello")
        assert len(evaluate(instance)[0]) == 1
        metadata = run()
        assert (metadata["entered"], metadata["sent"], metadata["under_way"]) == (5, 5, 5)
        picture = str(metadata["diagram"]).partition("base64,")[2].rstrip(")")
        assert "5 here" in b64decode(picture).decode()
        assert run()["moves"] == 0
        assert not evaluate(instance)[0]
        assert instance.get_latest_materialization_event(TICKS) is not None
