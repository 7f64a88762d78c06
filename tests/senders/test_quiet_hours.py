"""Quiet hours: who is in them waits for their end, or is left out, as the campaign says."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from sending import audience, plan, recipients, sender_settings, write_content

from campaigns.specs import WaitingQuietHours
from senders.ledger import Ledger
from senders.pipeline import SendSummary, send
from senders.providers import get_provider
from senders.retries import is_retry_due
from senders.settings import SenderSettings

THING = ("campaign", "offer", "2026-06-27T09:00:00Z")
HOURS = WaitingQuietHours(after="21:00", before="08:00")
EVENING = datetime(2026, 6, 27, 21, 30, tzinfo=UTC)


def send_to(settings: SenderSettings, *, quiet: int, waits: bool) -> SendSummary:
    """Send to ten people, so many of whom sleep."""
    frames = [
        frame.with_columns(
            pl.when(pl.col("contact_id") <= quiet)
            .then(pl.lit("quiet_hours"))
            .otherwise("skip_reason")
            .alias("skip_reason")
        )
        for frame in audience(10)
    ]
    with Ledger.open(settings) as ledger, get_provider(settings) as provider:
        return send(
            dataclasses.replace(plan(), waits_for_quiet=waits),
            frames,
            settings=settings,
            ledger=ledger,
            provider=provider,
        )


def test_who_sleeps_gets_it_when_the_night_is_over(tmp_path: Path) -> None:
    write_content(tmp_path / "content")
    settings = sender_settings(tmp_path)
    first = send_to(settings, quiet=4, waits=True)
    assert (first.sent, first.waiting, first.seen) == (6, 4, 10)
    with Ledger.open(settings) as ledger:
        (deferred,) = ledger.deferred()
        assert (deferred.waits_for, deferred.messages) == ("quiet_hours", 4)
        assert not ledger.dead_letters()
    # half of them still sleep, and wait on; nobody gets it twice
    second = send_to(settings, quiet=2, waits=True)
    assert (second.sent, second.waiting, second.already_claimed) == (2, 2, 6)
    third = send_to(settings, quiet=0, waits=True)
    assert (third.sent, third.waiting, third.already_claimed) == (2, 0, 8)
    assert sorted(recipients(settings.maildir)) == sorted(f"person{n}@example.com" for n in range(1, 11))
    with Ledger.open(settings) as ledger:
        assert not ledger.deferred()


def test_or_not_at_all(tmp_path: Path) -> None:
    write_content(tmp_path / "content")
    settings = sender_settings(tmp_path)
    assert send_to(settings, quiet=4, waits=False).skipped == {"quiet_hours": 4}
    assert send_to(settings, quiet=0, waits=False).sent == 0
    with Ledger.open(settings) as ledger:
        assert ledger.counts(*THING) == {"sent": 6, "skipped": 4}


def test_a_run_is_launched_when_it_is_morning_somewhere(tmp_path: Path) -> None:
    write_content(tmp_path / "content")
    settings = sender_settings(tmp_path)
    send_to(settings, quiet=4, waits=True)
    with Ledger.open(settings) as ledger:
        (deferred,) = ledger.deferred()
    deferred = dataclasses.replace(deferred, last_tried_at=EVENING)
    # 8:00 comes to some zone at every full hour, and to India's at half past
    assert not is_retry_due(deferred, 0, EVENING + timedelta(minutes=10), quiet_hours=HOURS)
    assert is_retry_due(deferred, 0, EVENING + timedelta(minutes=30), quiet_hours=HOURS)
    assert is_retry_due(deferred, 0, EVENING + timedelta(seconds=1), quiet_hours=None)
