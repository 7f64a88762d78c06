"""Firings on SQLite and PostgreSQL: written once, taken by one run, let through by the cooldown once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sending import sender_settings

from senders import ledger as ledger_module
from senders.firings import Firing, Firings
from senders.ledger import Ledger

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = {"cart": timedelta(days=1)}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """Empty for SQLite in the home folder."""
    return "" if request.param == "sqlite" else request.getfixturevalue("new_postgres_ledger")()


def firing(event: str, contact: int = 1, due: float = 0.0) -> Firing:
    return Firing(
        "cart", "v", contact, event, {"type": "cart.updated", "text": "a\0b"}, NOW + timedelta(seconds=due)
    )


def test_life_of_a_firing(tmp_path: Path, ledger_url: str) -> None:
    settings = sender_settings(tmp_path, ledger_url=ledger_url or None)
    with Ledger.open(settings) as ledger:
        firings = Firings(ledger)
        run = ledger.begin_run("trigger", "", "", NOW)
        both = [firing("a"), firing("b"), firing("c", due=60)]
        named = {one.firing_id: one for one in both}
        named = {one.firing_id: one for one in both}
        begun = firings.add(run, named, NOW, taken={both[0].firing_id, both[1].firing_id})
        assert [one.event_id for one in begun] == ["a", "b"]
        assert firings.add(run, named, NOW, taken={both[0].firing_id}) == []
        assert not firings.has_due(NOW) and firings.take(run, NOW, 10, names=["cart"]) == []
        blocked = firings.reserve(run, begun, DAY, NOW)
        assert blocked == {begun[1].row_id: NOW}
        # what came to nothing after all holds back no other
        firings.finish(run, {begun[0].row_id: "frequency_cap"}, NOW, unfired=[begun[0].row_id])
        assert firings.reserve(run, [begun[1]], DAY, NOW) == {}
        firings.postpone(run, {begun[1].row_id: NOW + timedelta(seconds=30)}, NOW, "put_off", is_try=True)
        later = NOW + timedelta(seconds=60)
        assert firings.has_due(later) and firings.take(run, later, 10, names=["other"]) == []
        assert firings.take(run, later, 10, names=["cart"], paused=["cart"]) == []
        taken = firings.take(run, later, 10, names=["cart"])
        assert [(one.event_id, one.tries) for one in taken] == [("b", 1), ("c", 0)]
        assert taken[0].fired_at == NOW and taken[0].event["text"] in ("a\0b", "a\ufffdb")
        # the run dies: another takes over, and the cooldown that let it through is not judged again
        ledger_module._ACTIVE[ledger._place].discard(run.run_id)
        other = ledger.begin_run("trigger", "", "", later)
        assert firings.recover(later) == 2 and firings.recover(later) == 0
        taken = firings.take(other, later, 10, names=["cart"])
        assert firings.reserve(other, taken, DAY, later) == {taken[1].row_id: NOW}
        firings.finish(
            other, {taken[0].row_id: "fired", taken[1].row_id: "cooldown"}, later, unfired=[taken[1].row_id]
        )
        assert firings.counts(NOW) == {"cart": {"fired": 1, "frequency_cap": 1, "cooldown": 1}}
        assert [one.reason for one in firings.of_contact("cart", 1)] == ["cooldown", "fired", "frequency_cap"]
        assert firings.clear(later + timedelta(days=36), DAY) == 3
