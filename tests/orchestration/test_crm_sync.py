"""The sync in Dagster: what starts it, and what the sensor takes for news."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from crm.news import news
from crm.sync import PUSH_ROWS
from crm.sync_store import WarehouseStore
from orchestration.defs.crm import assets
from orchestration.defs.crm.assets import crm, crm_news, cron_of
from warehouse.client import Warehouse
from warehouse.loads import load_events
from warehouse.settings import MailhouseSettings

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.mark.parametrize(
    ("seconds", "cron"),
    [(300, "*/5 * * * *"), (60, "*/1 * * * *"), (3600, "0 */1 * * *"), (86_400, "0 */23 * * *")],
)
def test_the_rhythm_is_whole_minutes_or_hours(seconds: int, cron: str) -> None:
    assert cron_of(seconds) == cron


def test_it_has_a_rhythm_where_a_crm_is_set_up_and_asked_for_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(tmp_path))
    monkeypatch.delenv("MAILHOUSE_HUBSPOT_TOKEN", raising=False)

    def started() -> tuple[list[str], list[str]]:
        found = crm()
        assert isinstance(found, dg.Definitions)
        return [one.name for one in found.schedules or ()], [one.name for one in found.sensors or ()]  # pyright: ignore

    assert started() == ([], [])
    monkeypatch.setenv("MAILHOUSE_HUBSPOT_TOKEN", "secret")
    assert started() == ([], [])
    (tmp_path / "crm.yaml").write_text("fields: {city: newest}\n")
    assert started() == (["sync_crms_regularly"], ["crm_news"])
    # a mistake stops nothing but the sync
    (tmp_path / "crm.yaml").write_text("fields: {ctiy: newest}\n")
    assert started() == ([], [])


@pytest.fixture
def told(warehouse: Warehouse) -> Callable[..., None]:
    """Events as webhooks bring them: an id, a type, whose, the value, and when it happened."""

    def tell(*events: tuple[str, str, str, str, int]) -> None:
        rows = [
            {
                "event_id": event_id, "type": type_, "source": "hubspot", "external_id": external_id,
                "occurred_at": NOW + timedelta(seconds=seconds),
                "properties": f'{{"value":"{value}"}}' if value else "{}",
            }
            for event_id, type_, external_id, value, seconds in events
        ]  # fmt: skip
        frame = pl.DataFrame(rows).with_columns(pl.col("occurred_at").cast(pl.Datetime("ms", "UTC")))
        load_events(warehouse, frame)

    return tell


@pytest.mark.slow
def test_what_we_wrote_is_no_news(
    warehouse: Warehouse,
    settings: MailhouseSettings,
    told: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = NOW - timedelta(hours=1)
    store = WarehouseStore(warehouse, settings)  # pyright: ignore[reportArgumentType]
    written = {
        "push_id": "p", "object": "contact", "source": "hubspot", "external_id": "1", "contact_id": 1, "key": "1",
        "names": ["city"], "texts": ["Bath"], "is_new": False, "known_at": NOW, "status": "written", "reason": "",
        "record_at": NOW, "run_id": "", "recorded_at": NOW,
    }  # fmt: skip
    store.add_pushes(pl.DataFrame([written], schema=dict(PUSH_ROWS)))
    told(
        ("a", "contact.updated", "1", "Bath", 3),
        ("b", "contact.updated", "1", "", 1),
        ("c", "opened", "1", "", 0),
    )
    kinds, through = news(warehouse, ["hubspot"], start)
    assert (kinds, through > start) == (set(), True)
    assert news(warehouse, ["salesforce"], start) == (set(), start)
    # another value, another time, another record, another kind
    told(("d", "contact.updated", "1", "York", 3))
    assert news(warehouse, ["hubspot"], through)[0] == {"contact"}
    told(("e", "contact.deleted", "1", "", 60), ("f", "deal.closed", "9", "won", 0))
    assert news(warehouse, ["hubspot"], start)[0] == {"contact", "deal"}

    monkeypatch.setattr(assets, "configured", lambda _: [type("HubSpot", (), {"name": "hubspot"})])
    monkeypatch.setattr(assets, "open_warehouse", lambda _: warehouse)
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance, cursor=start.isoformat())
        first = crm_news(context)
        assert isinstance(first, dg.SensorResult)
        assert first.run_requests is not None
        assert first.run_requests[0].run_config["ops"]["crm_sync"]["config"]["kinds"] == ["contact", "deal"]
        # the same seen twice asks for the same run; seen once, for none
        again = crm_news(context)
        assert isinstance(again, dg.SensorResult)
        assert again.run_requests is not None
        assert again.run_requests[0].run_key == first.run_requests[0].run_key
        later = crm_news(dg.build_sensor_context(instance=instance, cursor=first.cursor))
        assert isinstance(later, dg.SkipReason)
