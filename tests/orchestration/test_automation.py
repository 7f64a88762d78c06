"""When models are built: what Dagster would request at which minute, asked of Dagster itself."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from orchestration.lib.automation import LIVE_CRON, REPORTS_CRON, automated, upstream_of

NOON = datetime(2026, 11, 24, 12, 20, 30, tzinfo=UTC)
EVENTS, ORDERS = dg.AssetKey(["raw", "events"]), dg.AssetKey(["intermediate", "orders"])
PROFILES, SEGMENT = dg.AssetKey(["marts", "contact_profiles"]), dg.AssetKey(["segments", "champions"])
REPORT = dg.AssetKey(["marts", "attribution"])


class Clock:
    """A small project of the real conditions: a source, a model, a segment and a report, as time goes on."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        specs = automated(
            [
                dg.AssetSpec(ORDERS, deps=[EVENTS]),
                dg.AssetSpec(SEGMENT, deps=[ORDERS]),
                dg.AssetSpec(PROFILES, deps=[SEGMENT]),
                dg.AssetSpec(REPORT, deps=[ORDERS]),
            ]
        )

        @dg.multi_asset(specs=specs, can_subset=True)
        def models(context: dg.AssetExecutionContext):
            for key in (spec.key for spec in specs if spec.key in context.selected_asset_keys):
                yield dg.MaterializeResult(asset_key=key)

        @dg.asset(key=EVENTS)
        def events() -> None: ...

        self.definitions = dg.Definitions(assets=[models, events])
        self.moment = NOON
        self.cursor = None
        self.look()

    def look(self) -> set[str]:
        """What is requested now; it is built at once."""
        result = dg.evaluate_automation_conditions(
            self.definitions, self.instance, cursor=self.cursor, evaluation_time=self.moment
        )
        self.cursor = result.cursor
        keys = {one.key for one in result.results if result.get_num_requested(one.key)}
        if keys:
            job = self.definitions.resolve_implicit_global_asset_job_def()
            assert job.execute_in_process(
                asset_selection=sorted(keys),
                instance=self.instance,
                tags={"dagster/from_automation_condition": "true"},
            ).success
        return {key.to_user_string() for key in keys}

    def until(self, minute: int) -> set[str]:
        """What is requested from now to a minute of this hour, looked at once a minute."""
        requested: set[str] = set()
        while self.moment.minute != minute:
            self.moment += timedelta(minutes=1)
            requested |= self.look()
        return requested

    def load_events(self) -> None:
        self.instance.report_runless_asset_event(dg.AssetMaterialization(EVENTS))


LIVE = {"intermediate/orders", "segments/champions", "marts/contact_profiles"}


@pytest.fixture
def clock() -> Clock:
    clock = Clock(dg.DagsterInstance.ephemeral())
    clock.load_events()
    # what was never built is built as soon as its minute comes
    assert clock.until(27) == LIVE
    assert clock.until(13) == LIVE | {"marts/attribution"}
    return clock


def test_what_sends_read_follows_within_five_minutes_and_reports_within_the_hour(clock: Clock) -> None:
    clock.until(20)
    clock.load_events()
    assert clock.until(28) == LIVE
    assert clock.until(6) == set()
    assert "marts/attribution" in clock.until(13)


def test_nothing_is_built_that_has_no_reason(clock: Clock) -> None:
    clock.until(20)
    assert clock.until(6) == set()


def test_time_alone_is_a_reason_once_an_hour(clock: Clock) -> None:
    clock.until(20)
    assert clock.until(6) == set()
    assert clock.until(13) >= LIVE


def test_a_source_that_changes_all_the_time_is_built_once_a_tick(clock: Clock) -> None:
    clock.until(20)
    built = 0
    while clock.moment.minute != 40:
        clock.load_events()
        clock.moment += timedelta(minutes=1)
        built += "intermediate/orders" in clock.look()
    assert built == 4


def test_every_model_has_a_condition_and_no_send_has(definitions: dg.Definitions) -> None:
    specs = {spec.key: spec for spec in definitions.resolve_all_asset_specs()}
    groups = {"staging", "features", "marts", "segments", "bi"}
    models = [
        spec
        for key, spec in specs.items()
        if spec.group_name in groups and key != dg.AssetKey(["intermediate", "load_days"])
    ]
    assert [spec.key for spec in models if spec.automation_condition is None] == []
    assert [spec.key for spec in models if spec.freshness_policy is None] == []
    for name in ("campaign_audiences", "campaign_sends"):
        assert specs[dg.AssetKey(name)].automation_condition is None


def test_whatever_a_segment_stands_on_is_live(definitions: dg.Definitions) -> None:
    specs = [spec for spec in definitions.resolve_all_asset_specs() if spec.automation_condition]
    labels = {spec.key: spec.automation_condition.get_label() or "" for spec in specs}
    segments = {key for key in labels if key.path[0] == "segments"}
    assert segments
    upstream = {key for key in upstream_of(segments, specs) if key in labels and key.path[0] != "raw"}
    assert all(LIVE_CRON in labels[key] for key in upstream)
    assert REPORTS_CRON in labels[dg.AssetKey(["marts", "attribution_by_campaign"])]
