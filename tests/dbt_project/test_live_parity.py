"""Live state finds the contacts that dbt gives, before and after it is built, and marts say what they have taken in."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pytest
from models import PREFIX, Models, order

from campaigns.live import Live, Needs, judged_rows
from warehouse.loads import EVENT_COLUMNS


@pytest.fixture
def history(models: Models) -> Iterator[Models]:
    """Empty raw tables, no models."""
    models.clear()
    models.warehouse.execute("drop database if exists live")
    yield models
    models.warehouse.execute("drop database if exists live")


def stored(models: Models) -> pl.DataFrame:
    """All events of the raw table as the gateway would keep them."""
    columns = ", ".join(
        "toJSONString(properties) as properties" if name == "properties" else name for name in EVENT_COLUMNS
    )
    frame = models.warehouse.frame(f"select {columns} from raw.events order by event_id")
    return frame.select(pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items())


@pytest.mark.slow
def test_contacts_and_orders_as_dbt_gives_them(history: Models) -> None:
    history.contact("1", "Ann@Example.com ", "01-01")
    history.contact("2", "", "01-01")
    history.events(
        order("100", "01-05", external_id="1"),
        {"id": "seen", "type": "page.viewed", "at": "01-06", "email": "visitor@example.com"},
        {
            "id": "both",
            "type": "page.viewed",
            "at": "01-06",
            "email": "other@example.com",
            "external_id": "1",
        },
        {"id": "bare", "type": "page.viewed", "at": "01-06", "external_id": "2"},
        {"id": "lost", "type": "page.viewed", "at": "01-06", "external_id": "77"},
        {"id": "nobody", "type": "page.viewed", "at": "01-06"},
    )
    live = Live(history.warehouse, prefix=PREFIX)
    live.prepare()
    before = dict(live.store(stored(history)).select("event_id", "contact_id").iter_rows())
    history.run()
    told = dict(history.rows("select event_id, ifNull(contact_id, 0) from marts.events order by event_id"))
    assert before == told
    live._looked_at = -1e9
    assert dict(live.store(stored(history)).select("event_id", "contact_id").iter_rows()) == told
    # an order since the mart was built counts, those in it count once
    history.events(order("101", "01-07", external_id="1"))
    events = live.store(stored(history))
    rows = judged_rows(events.filter(pl.col("contact_id") == told["both"]).tail(1), history.now)
    needs = Needs(columns=frozenset({"orders_count", "revenue", "last_order_at", "days_since_last_order"}))
    [state] = live.judge(rows, {}, needs).to_dicts()
    [past] = live.judge(rows, {}, needs, is_history=True).to_dicts()
    assert state["orders_count"] == past["orders_count"] == 2
    history.run()
    live._looked_at = -1e9
    [built] = history.frame(
        f"select orders_count, revenue, last_order_at, days_since_last_order from marts.contact_profiles"
        f" where contact_id = {told['both']}"
    ).to_dicts()
    assert {name: state[name] for name in built} == built == {name: past[name] for name in built}
    [again] = live.judge(rows, {}, needs).to_dicts()
    assert again["orders_count"] == 2
