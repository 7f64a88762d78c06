"""Several limits at once, in one process and shared by Redis; warm-up ladders; the circuit breaker."""

from __future__ import annotations

import threading
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sending import audience, plan, send_all, sender_settings, write_content

from senders.ledger import Ledger
from senders.limits import (
    CircuitBreaker,
    DailyAllowance,
    DomainRate,
    LimitsSpec,
    Rate,
    Throttle,
    WarmUp,
)
from senders.message import Delivery, Message, Status
from senders.pipeline import send
from senders.providers.base import Capabilities, Provider, ProviderUnavailableError
from senders.retries import is_retry_due
from senders.settings import SenderSettings
from warehouse.buckets import Demand, LimitError, LocalBuckets, RedisBuckets
from warehouse.errors import InputError, SettingsError

NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), max_size=4)),
        min_size=1, max_size=40,
    )
)  # fmt: skip
def test_no_bucket_gives_more_than_its_rate_and_burst(
    takes: list[tuple[float, list[tuple[str, int]]]],
) -> None:
    rates = {"a": (1.0, 10), "b": (7.5, 3), "c": (100.0, 1)}
    now = 0.0
    buckets = LocalBuckets(clock=lambda: now)
    released: list[tuple[float, str, int]] = []
    for pause, wanted in takes:
        now += pause
        at = now + buckets.reserve([Demand(name, *rates[name], tokens) for name, tokens in wanted])
        released += [(at, name, tokens) for name, tokens in wanted]
    for name, (rate, burst) in rates.items():
        for at, _, _ in released:
            gone = sum(tokens for other, bucket, tokens in released if bucket == name and other <= at)
            assert gone <= burst + rate * at + 1e-6 * len(released)


def test_demands_of_a_window() -> None:
    spec = LimitsSpec(
        providers={"smtp": Rate(per_second=50)},
        campaigns={"offer": Rate(per_second=5, burst=20)},
        domains={
            "google": DomainRate(per_second=2, domains=["gmail.com", "googlemail.com"]),
            "others": DomainRate(per_second=1, domains=["*"]),
        },
    )
    throttle = Throttle(spec, "smtp", "offer", LocalBuckets(), rate=1000)
    emails = ["a@gmail.com", "b@GoogleMail.com", "c@x.example", "d@y.example", "e@y.example"]
    assert {(one.bucket, one.rate, one.burst, one.tokens) for one in throttle.demands(emails)} == {
        ("provider:smtp", 50, 50, 5), ("campaign:offer", 5, 20, 5), ("domain:google", 2, 2, 2),
        ("domain:*:x.example", 1, 1, 1), ("domain:*:y.example", 1, 1, 2),
    }  # fmt: skip
    assert throttle.per_second == 5
    assert Throttle(spec, "other", "news", LocalBuckets(), rate=9).per_second == 9
    assert Throttle(LimitsSpec(), "other", "news", LocalBuckets()).demands(emails) == []


def test_a_take_that_is_stopped_gives_back() -> None:
    spec = LimitsSpec(providers={"smtp": Rate(per_second=1, burst=5)})
    buckets = LocalBuckets()
    throttle = Throttle(spec, "smtp", "offer", buckets)
    stop = threading.Event()
    assert throttle.take(["a@x.example"] * 5, stop)
    stop.set()
    assert not throttle.take(["a@x.example"] * 500, stop)
    assert buckets.reserve([Demand("provider:smtp", 1, 5, 1)]) <= 1.0


@pytest.mark.service
def test_redis_is_one_bucket_for_all(redis_url: str) -> None:
    stores = [RedisBuckets(redis_url) for _ in range(3)]
    demand = [Demand("shared", 100, 50, 10), Demand("wide", 1000, 1000, 10)]
    began = time.monotonic()
    waits: list[float] = []
    threads = [
        threading.Thread(target=lambda store=store: waits.extend(store.reserve(demand) for _ in range(20)))
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    # 600 tokens, 50 saved up, 100 a second
    assert 5.5 - took - 0.1 <= max(waits) <= 5.5
    assert sum(wait == 0 for wait in waits) >= 5
    before = stores[0].reserve([Demand("shared", 100, 50, 0)])
    stores[1].reserve([Demand("shared", 100, 50, -100)])
    assert stores[2].reserve([Demand("shared", 100, 50, 0)]) <= before - 1.0 + 0.01


@pytest.mark.service
def test_redis_that_is_away_or_misnamed(redis_url: str) -> None:
    with pytest.raises(LimitError, match="Redis"):
        RedisBuckets("redis://:hunter2@127.0.0.1:1/0").reserve([Demand("a", 1, 1, 1)])
    with pytest.raises(SettingsError, match="MAILHOUSE_REDIS_URL"):
        RedisBuckets("http://x")
    settings = SenderSettings(redis_url=redis_url)  # pyright: ignore[reportArgumentType]
    assert Throttle.of(settings, "smtp", "offer").take(["a@x.example"])


def test_limits_file(tmp_path: Path) -> None:
    assert LimitsSpec.load(tmp_path) == LimitsSpec()
    file = tmp_path / "limits.yaml"
    file.write_text(
        "providers:\n  smtp: {per_second: 20, burst: 40}\n"
        "domains:\n  google: {domains: [gmail.com], per_second: 0.5}\n"
        "warm_up:\n  smtp: {starts_on: 2026-06-01, daily: [50, 100], growth: 2}\n"
    )
    spec = LimitsSpec.load(tmp_path)
    assert spec.domains["google"].per_second == 0.5
    assert spec.warm_up["smtp"].starts_on == date(2026, 6, 1)
    file.write_text("providers:\n  smtp: {per_secnd: 20}\n")
    with pytest.raises(InputError, match="per_second"):
        LimitsSpec.load(tmp_path)
    file.write_text(
        "domains:\n  a: {domains: [x.example], per_second: 1}\n  b: {domains: [X.example], per_second: 1}\n"
    )
    with pytest.raises(SettingsError, match="two groups, a and b"):
        LimitsSpec.load(tmp_path)


def test_warm_up_ladder(tmp_path: Path) -> None:
    ladder = WarmUp(starts_on=date(2026, 6, 1), daily=[50, 100], growth=2, ends_after=6)
    days = [date(2026, 5, 31) + timedelta(days=n) for n in range(8)]
    assert [ladder.allowance(day) for day in days] == [0, 50, 100, 200, 400, 800, 1600, None]
    at = datetime(2026, 6, 1, 12, tzinfo=UTC)
    with Ledger.open(SenderSettings(home=tmp_path)) as ledger:
        first, second = DailyAllowance(ledger, "smtp", ladder), DailyAllowance(ledger, "smtp", ladder)
        assert [first.take(30, at), second.take(30, at), first.take(30, at)] == [30, 20, 0]
        second.give_back(10, at)
        assert first.take(30, at) == 10
        assert first.take(500, at + timedelta(days=1)) == 100
        assert DailyAllowance(ledger, "smtp", None).take(500, at) == 500


def test_a_send_stops_at_the_days_limit_and_goes_on_the_next_day(tmp_path: Path) -> None:
    content = write_content(tmp_path / "content")
    today = datetime.now(UTC)
    (content / "limits.yaml").write_text(
        f"warm_up:\n  maildir: {{starts_on: {today.date()}, daily: [30, 40], growth: 1}}\n"
    )
    settings = sender_settings(tmp_path)
    summary = send_all(settings, 100)
    assert (summary.sent, summary.failed) == (30, 70)
    assert send_all(settings, 100).sent == 0
    with Ledger.open(settings) as ledger:
        (waiting,) = ledger.deferred()
        assert (waiting.name, waiting.occurrence, waiting.messages) == ("offer", "2026-06-27T09:00:00Z", 70)
        assert not is_retry_due(waiting, 0, waiting.last_tried_at)
        assert is_retry_due(waiting, 0, waiting.last_tried_at + timedelta(days=1))
    assert send_all(settings.model_copy(update={"clock_offset": 86_400.0}), 100).sent == 40


class ComesBack(Provider):
    """A provider that cannot be reached at first."""

    name = "comes_back"
    capabilities = Capabilities(dispatch_window=10, reaches_people=False)
    calls = 0

    def send(self, batch: list[Message]) -> list[Delivery]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.calls += 1
        if self.calls <= 2:
            raise ProviderUnavailableError("nobody answers")
        return [Delivery(one.message_id, Status.SENT) for one in batch]


def test_what_was_not_handed_over_takes_nothing_of_the_allowance(tmp_path: Path) -> None:
    content = write_content(tmp_path / "content")
    today = datetime.now(UTC).date()
    (content / "limits.yaml").write_text(
        f"warm_up:\n  comes_back: {{starts_on: {today}, daily: [20], growth: 1}}\n"
    )
    settings = sender_settings(tmp_path)
    with Ledger.open(settings) as ledger:
        summary = send(plan(), audience(30), settings=settings, ledger=ledger, provider=ComesBack())
    assert (summary.sent, summary.failed) == (20, 10)


def test_breaker_opens_rests_and_closes() -> None:
    now = 0.0
    breaker = CircuitBreaker(failures=3, rest=10, longest=25, clock=lambda: now)
    breaker.failed()
    breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.wait == 10
    now = 10.0
    assert not breaker.is_open
    breaker.failed()
    assert breaker.wait == 20
    now = 30.0
    breaker.failed()
    assert breaker.wait == 25
    breaker.succeeded()
    assert not breaker.is_open
    breaker.failed(retry_after=7)
    assert breaker.wait == 7


class PutsOff(Provider):
    """A provider that asks everybody to come again in two minutes."""

    name = "puts_off"
    capabilities = Capabilities(dispatch_window=10, reaches_people=False)
    calls = 0

    def send(self, batch: list[Message]) -> list[Delivery]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.calls += 1
        return [
            Delivery(
                one.message_id, Status.FAILED, reply="429 slow down", is_transient=True, retry_after=120.0
            )
            for one in batch
        ]


def test_a_provider_that_puts_everything_off_is_left_alone(tmp_path: Path) -> None:
    write_content(tmp_path / "content")
    settings = sender_settings(tmp_path)
    provider = PutsOff()
    with Ledger.open(settings) as ledger:
        with pytest.raises(ProviderUnavailableError, match="puts everything off: 429 slow down"):
            send(plan(), audience(500), settings=settings, ledger=ledger, provider=provider)
        assert provider.calls <= 3
        counts = ledger.counts("campaign", "offer", "2026-06-27T09:00:00Z")
        # nothing is in doubt: what was tried is put off, the rest waits
        assert set(counts) == {"failed", "claimed"}
        assert counts["claimed"] >= 470


def test_dead_letters_and_their_revival(tmp_path: Path) -> None:
    from test_ledger import begin, claim

    from senders.ledger import TRIES, Deferred, Outcome

    with Ledger.open(SenderSettings(home=tmp_path)) as ledger:
        run = begin(ledger)
        rows = ledger.claim(run, claim([1, 2]), NOW).rows
        ledger.dispatch(run, list(rows.values()), NOW)
        ledger.record(
            run,
            [Outcome(rows[0], Status.FAILED, "deferred", reply="451 later"),
             Outcome(rows[1], Status.REJECTED, "invalid", reply="550 no such user")],
            NOW,
        )  # fmt: skip
        assert [letter["message_id"] for letter in ledger.dead_letters()] == ["m2"]
        for _ in range(TRIES - 1):
            assert ledger.deferred() == [Deferred("campaign", "offer", "o", "", 1, NOW)]
            row = ledger.claim(run, claim([1]), NOW).rows[0]
            ledger.dispatch(run, [row], NOW)
            ledger.record(run, [Outcome(row, Status.FAILED, "deferred", reply="451 later")], NOW)
        # tried too often: no run takes it any more
        assert ledger.deferred() == []
        assert not ledger.claim(run, claim([1]), NOW).rows
        letters = {letter["message_id"]: letter for letter in ledger.dead_letters(name="offer")}
        assert (letters["m1"]["tries"], letters["m1"]["provider_reply"]) == (TRIES, "451 later")
        assert ledger.dead_letters(name="other") == []
        assert ledger.revive(["m1", "m2", "nobody"], NOW) == 2
        assert ledger.dead_letters() == []
        assert sorted(ledger.claim(run, claim([1, 2]), NOW).rows) == [0, 1]
        assert ledger.revive(["m1"], NOW) == 0, "it is claimed"
        changes = ledger.changes_to_export(100)
        assert len({(change["message_id"], change["sequence"]) for change in changes}) == len(changes)
