"""The loop through Dagster on real customers: load, model, recommend, find what is due, judge, send, once."""

from __future__ import annotations

import email
import email.policy
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import PIPELINE_RUN_STATUS_TO_EVENT_TYPE as RUN_STATUS_TO_EVENT_TYPE
from dagster._core.events import DagsterEvent
from location import NOW, Location

from campaigns.identity import occurrence_key
from orchestration.defs.campaigns.assets import CAMPAIGNS, PAUSED_TAG
from orchestration.defs.campaigns.sensors import CAMPAIGN_TAG, OCCURRENCE_TAG, campaigns_due
from orchestration.lib.campaign_runs import CheckError, deliver, prepare
from senders.ledger import Ledger

OCCURRENCE = "2011-06-27T08:00:00Z"


def evaluate(instance: dg.DagsterInstance) -> tuple[list[dg.RunRequest], str]:
    """One tick of the sensor: the runs that it asks for, or why there are none."""
    with dg.build_sensor_context(instance=instance) as context:
        answer = campaigns_due(context)
    if isinstance(answer, dg.SkipReason):
        return [], answer.skip_message or ""
    assert isinstance(answer, dg.SensorResult)
    return list(answer.run_requests or []), ""


def mail(home: Path) -> list:
    """Every message in the maildir, headers only."""
    return [
        email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        for path in sorted((home / "maildir" / "new").glob("*"))
    ]


def test_loading_again_loads_nothing(location: Location) -> None:
    before = location.warehouse.value("select count() from raw.events")
    location.run("ingest")
    assert location.warehouse.value("select count() from raw.events") == before == 12_468


def test_recommendations_beat_popularity_and_say_so(location: Location) -> None:
    event = location.instance.get_latest_materialization_event(dg.AssetKey(["raw", "recommendations"]))
    assert event is not None and event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    popular = location.warehouse.value(
        "select argMax(value, as_of) from raw.model_evaluations where model = 'popularity' and metric = 'ndcg@10'"
    )
    assert metadata["ndcg_at_10"].value > 1.5 * popular > 0
    model, version = metadata["model"].value, metadata["model_version"].value
    assert metadata["promoted"].value is True
    assert f"### {model}, version {version}" in metadata["model_card"].value
    assert "(data:image/png;base64," in metadata["curve"].value
    assert {record.data["estimator"] for record in metadata["candidates"].records} > {model, "popularity"}
    stored = location.warehouse.frame(
        "select model, model_version, count() as products, uniqExact(contact_id) as contacts,"
        " countIf(startsWith(reason, 'because you bought ')) as because, countIf(reason = 'popular') as popular"
        " from raw.recommendations group by model, model_version"
    )
    assert stored.rows() == [
        (model, version, 10 * metadata["contacts"].value, metadata["contacts"].value, *stored.row(0)[4:])
    ]
    assert stored["because"].item() > stored["products"].item() / 2
    in_place = location.warehouse.frame(
        "select model, model_version, value from raw.model_evaluations where metric = 'recommender_in_place'"
    )
    assert in_place.rows() == [(model, version, 1.0)]


def test_due_campaigns_are_launched_once_and_again_after_a_failure(location: Location) -> None:
    requested = {request.partition_key: request for request in evaluate(location.instance)[0]}
    assert set(requested) == {"win_back", "second_order", "thank_champions"}
    request = requested["win_back"]
    assert request.run_key == f"win_back@{OCCURRENCE}#1"
    assert request.tags[CAMPAIGN_TAG] == "win_back" and request.tags[OCCURRENCE_TAG] == OCCURRENCE

    def record(name: str, status: dg.DagsterRunStatus) -> None:
        tags = {tag: requested[name].tags[tag] for tag in (CAMPAIGN_TAG, OCCURRENCE_TAG)}
        run = location.instance.create_run_for_job(location.definitions.resolve_job_def("ingest"), tags=tags)
        location.instance.report_dagster_event(
            DagsterEvent(RUN_STATUS_TO_EVENT_TYPE[status].value, run.job_name), run.run_id
        )

    record("win_back", dg.DagsterRunStatus.FAILURE)
    record("second_order", dg.DagsterRunStatus.SUCCESS)
    record("thank_champions", dg.DagsterRunStatus.STARTED)
    assert [request.run_key for request in evaluate(location.instance)[0]] == [f"win_back@{OCCURRENCE}#2"]
    record("win_back", dg.DagsterRunStatus.FAILURE)
    record("win_back", dg.DagsterRunStatus.FAILURE)
    requests, why = evaluate(location.instance)
    assert not requests
    assert "launched" in why


def test_a_paused_campaign_is_launched_when_it_is_resumed(location: Location) -> None:
    with Ledger.open(location.settings) as ledger:
        ledger.pause("campaign", "win_back", location.settings.now())
    try:
        with dg.DagsterInstance.ephemeral() as fresh:
            for key in ("raw/recommendations", "marts/contact_profiles", "segments/at_risk"):
                fresh.report_runless_asset_event(dg.AssetMaterialization(key.split("/")))
            _, why = evaluate(fresh)
            assert "win_back is paused" in why
            # one that was stopped by a pause is no attempt that failed
            tags = {CAMPAIGN_TAG: "win_back", OCCURRENCE_TAG: OCCURRENCE, PAUSED_TAG: "true"}
            run = fresh.create_run_for_job(location.definitions.resolve_job_def("ingest"), tags=tags)
            fresh.report_dagster_event(
                DagsterEvent(RUN_STATUS_TO_EVENT_TYPE[dg.DagsterRunStatus.CANCELED].value, run.job_name),
                run.run_id,
            )
            with Ledger.open(location.settings) as ledger:
                ledger.resume("campaign", "win_back")
            assert [request.run_key for request in evaluate(fresh)[0]] == [f"win_back@{OCCURRENCE}#2"]
    finally:
        with Ledger.open(location.settings) as ledger:
            ledger.resume("campaign", "win_back")


def test_a_campaign_waits_until_its_segment_is_built(location: Location) -> None:
    with dg.DagsterInstance.ephemeral() as fresh:
        requests, why = evaluate(fresh)
    assert not requests
    assert "win_back waits for segments/at_risk" in why


def test_materialising_a_partition_sends_it_once(location: Location, location_home: Path) -> None:
    location.instance.add_dynamic_partitions(CAMPAIGNS.name, ["win_back"])
    location.run("send_campaign", "win_back")
    messages = mail(location_home)
    sendable = location.warehouse.value(
        """
        select count() from segments.at_risk
        where contact_id in (select contact_id from marts.consents where is_granted and purpose = 'marketing')
        """
    )
    assert len(messages) == sendable > 300
    assert max(Counter(message["To"] for message in messages).values()) == 1
    assert all(message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click" for message in messages)

    location.run("send_campaign", "win_back")
    assert len(mail(location_home)) == len(messages)
    with Ledger.open(location.settings) as ledger:
        counts = ledger.counts("campaign", "win_back", OCCURRENCE)
    assert counts["sent"] == len(messages)
    # what the ledger knows is in the warehouse, the skipped with their reason
    stored = location.warehouse.frame(
        "select status, reason, uniqExact(message_id) as messages from raw.messages group by status, reason"
    )
    assert {(row["status"], row["reason"]): row["messages"] for row in stored.to_dicts()} == {
        ("sent", ""): counts["sent"],
        ("skipped", "no_consent"): counts["skipped"],
    }


def test_a_failed_check_stops_the_send(
    location: Location, location_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = location.settings.content_dir
    (tmp_path / "campaigns").mkdir()
    (tmp_path / "templates").symlink_to(content / "templates")
    (tmp_path / "campaigns" / "nobody.yaml").write_text(
        "campaign: nobody\n"
        "audience: {segment: champions, where: orders_count < 0}\n"
        "schedule: {at: 2011-06-27T08:00:00Z}\n"
        "send: {template: win_back, category: marketing, subject: Hello}\n"
    )
    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(tmp_path))
    before = len(mail(location_home))
    location.instance.add_dynamic_partitions(CAMPAIGNS.name, ["nobody"])
    result = location.run("send_campaign", "nobody", must_succeed=False)
    assert not result.success
    failed = [one for one in result.get_asset_check_evaluations() if not one.passed]
    assert [one.check_name for one in failed] == ["audience_not_empty"]
    assert len(mail(location_home)) == before
    with pytest.raises(CheckError, match="audience_not_empty"):
        deliver(prepare(location.settings, location.warehouse, "nobody"))


def test_the_occurrence_is_the_newest_that_has_come(location: Location) -> None:
    prepared = prepare(location.settings, location.warehouse, "win_back", is_dry_run=True)
    assert prepared.occurrence <= NOW.replace(hour=9)
    assert occurrence_key(prepared.occurrence) == OCCURRENCE
