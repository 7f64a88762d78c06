"""A campaign in parts: every part a step, everybody once, whatever part is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import dagster as dg
import pytest
from location import Location
from test_loop import mail

from orchestration.defs.campaigns.assets import AUDIENCES, CAMPAIGNS, SENDS
from orchestration.defs.campaigns.parts import EXECUTORS, find_executor
from orchestration.defs.campaigns.sensors import campaigns_due
from orchestration.lib.campaign_runs import CHECKS
from senders.ledger import Ledger
from warehouse.errors import SettingsError

CAMPAIGN = "thank_champions"


@pytest.fixture
def in_parts(location: Location, monkeypatch: pytest.MonkeyPatch) -> Location:
    monkeypatch.setenv("MAILHOUSE_SEND_PARTS", "3")
    location.instance.add_dynamic_partitions(CAMPAIGNS.name, [CAMPAIGN])
    return location


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_is_a_step_and_everybody_gets_it_once(in_parts: Location, location_home: Path) -> None:
    before = Counter(message["To"] for message in mail(location_home))
    result = in_parts.run("send_campaign_in_parts", CAMPAIGN)
    steps = [event.step_key for event in result.all_events if event.is_step_success]
    assert sorted(steps) == ["finish", *(f"send_part[part_{number}]" for number in (1, 2, 3)), "settle"]
    got = Counter(message["To"] for message in mail(location_home)) - before
    with Ledger.open(in_parts.settings) as ledger:
        counts = ledger.counts("campaign", CAMPAIGN, "2011-06-27T08:00:00Z")
    assert sum(got.values()) == counts["sent"] > 50
    assert set(got.values()) == {1}

    recorded = {event.asset_key: event for event in result.get_asset_materialization_events()}
    assert {AUDIENCES, SENDS} <= set(recorded)
    assert recorded[SENDS].partition == CAMPAIGN
    assert recorded[SENDS].materialization.metadata["parts"].value == 3
    assert {one.check_name for one in result.get_asset_check_evaluations()} == set(CHECKS)

    in_parts.run("send_campaign_in_parts", CAMPAIGN)
    assert Counter(message["To"] for message in mail(location_home)) - before == got


def test_a_failed_check_sends_no_part(
    in_parts: Location, location_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILHOUSE_POSTAL_ADDRESS", "")
    before = len(mail(location_home))
    result = in_parts.run("send_campaign_in_parts", CAMPAIGN, must_succeed=False)
    assert not result.success
    assert not [event for event in result.all_events if (event.step_key or "").startswith("send_part")]
    assert len(mail(location_home)) == before


def test_the_sensor_launches_parts_where_the_settings_ask_for_them(in_parts: Location) -> None:
    sensor = in_parts.definitions.resolve_sensor_def("campaigns_due")
    # an instance that has launched nothing yet, and in which all is built
    with dg.DagsterInstance.ephemeral() as instance:
        for path in (("segments", "champions"), ("marts", "contact_profiles"), ("raw", "recommendations")):
            instance.report_runless_asset_event(dg.AssetMaterialization(path))
        with dg.build_sensor_context(instance=instance) as context:
            answer = campaigns_due(context)
    assert isinstance(answer, dg.SensorResult)
    assert {request.job_name for request in answer.run_requests or []} == {"send_campaign_in_parts"}
    assert {"send_campaign", "send_campaign_in_parts"} <= {target.job_name for target in sensor.targets}


@pytest.mark.parametrize("name", sorted(EXECUTORS))
def test_executors_are_found_or_say_what_to_install(name: str) -> None:
    try:
        assert isinstance(find_executor(name), dg.ExecutorDefinition)
    except SettingsError as error:
        assert EXECUTORS[name][2] != "dagster"
        assert EXECUTORS[name][2] in error.fix


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(SettingsError, match="no executor") as caught:
        find_executor("threads")
    assert "multiprocess" in caught.value.fix
