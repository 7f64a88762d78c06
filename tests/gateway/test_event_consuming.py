"""Micro-batches: into raw.events once, to handlers in order, again until they succeed, and none lost when it stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from gateway.consuming import BatchHandler, Consumer
from gateway.events import Event
from gateway.leading import FileLead
from gateway.metrics import Metrics
from gateway.streams import SqliteStream
from warehouse.client import Warehouse
from warehouse.errors import MailhouseError, WarehouseUnavailable
from warehouse.loads import EVENT_COLUMNS


def event(name: str) -> Event:
    now = int(time.time() * 1000)
    return Event(name, "page.viewed", now, now, "web", "a@b.c", properties='{"n": 1}')


class Notes:
    """A handler that writes down what it gets, and fails as often as it is told."""

    def __init__(self, failures: int = 0, error: type[Exception] = MailhouseError) -> None:
        self.failures, self.error = failures, error
        self.batches: list[list[str]] = []
        self.ticks = 0
        self.kept: dict[str, datetime | None] = {}
        self.forgotten = False

    def handle(self, events: pl.DataFrame, now: datetime) -> None:
        assert events.schema == EVENT_COLUMNS
        if self.failures:
            self.failures -= 1
            raise self.error("not now")
        self.batches.append(events["event_id"].to_list())

    def keep(self, loads: pl.DataFrame) -> None:
        self.kept.update(loads.iter_rows())

    def forget(self) -> None:
        self.forgotten = True

    def tick(self, now: datetime) -> None:
        self.ticks += 1


class Bench:
    """A stream, and consumers that follow each other on it."""

    def __init__(self, folder: Path, warehouse: Warehouse) -> None:
        self.folder, self.warehouse = folder, warehouse
        self.stream = SqliteStream(folder / "s.db")
        self.payloads: dict[str, bytes] = {}

    def consume(self, *handlers: BatchHandler) -> tuple[Consumer, Metrics]:
        metrics = Metrics()
        consumer = Consumer(self.stream, self.warehouse, FileLead(self.folder / "lock"), handlers, metrics)
        consumer.start()
        return consumer, metrics

    def append(self, *names: str) -> None:
        self.payloads |= {name: event(name).encode() for name in names}
        self.stream.append([self.payloads[name] for name in names])

    def payload(self, name: str) -> bytes:
        """As it was appended before."""
        return self.payloads[name]

    def stored(self) -> list[str]:
        return self.warehouse.frame("select event_id from raw.events order by event_id")["event_id"].to_list()


@pytest.fixture
def bench(tmp_path: Path, warehouse: Warehouse) -> Bench:
    return Bench(tmp_path, warehouse)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def test_events_are_stored_once_then_handled_then_forgotten(bench: Bench) -> None:
    first, second = Notes(), Notes()
    bench.append("a", "b", "a")
    consumer, metrics = bench.consume(first, second)
    until(lambda: bench.stream.depth() == 0)
    bench.append("b", "c")
    until(lambda: bench.stream.depth() == 0)
    consumer.stop()
    assert bench.stored() == ["a", "b", "c"]
    # an event that comes again is told again: handlers are idempotent
    assert first.batches == second.batches == [["a", "b"], ["b", "c"]]
    assert first.ticks > 0
    text = metrics.text()
    assert b"events_loaded_total 3.0" in text and b"events_duplicate_total 2.0" in text


@pytest.mark.parametrize("error", [MailhouseError, ZeroDivisionError])
def test_a_handler_that_fails_gets_the_batch_again_while_loading_goes_on(
    bench: Bench, error: type[Exception]
) -> None:
    before, failing = Notes(), Notes(failures=2, error=error)
    bench.append("a")
    consumer, metrics = bench.consume(before, failing)
    until(lambda: failing.failures < 2)
    bench.append("b")
    until(lambda: bench.stored() == ["a", "b"])
    until(lambda: bench.stream.depth() == 0)
    consumer.stop()
    # who had it does not get it again
    assert before.batches == failing.batches == [["a"], ["b"]]
    assert b'failures_total{place="handle"} 2.0' in metrics.text()


def test_what_a_handler_never_had_is_there_after_a_restart(bench: Bench) -> None:
    failing = Notes(failures=10**6)
    bench.append("a", "b")
    consumer, _ = bench.consume(failing)
    until(lambda: failing.failures < 10**6 and bench.stored() == ["a", "b"])
    consumer.stop()
    assert bench.stream.depth() == 2
    well = Notes()
    consumer, _ = bench.consume(well)
    until(lambda: bench.stream.depth() == 0)
    consumer.stop()
    assert well.batches == [["a", "b"]]
    assert bench.stored() == ["a", "b"]


def test_a_warehouse_that_is_away_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from warehouse.loads import append_events

    calls = 0

    def load(*args: object, **keywords: object) -> object:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise WarehouseUnavailable("away")
        result = append_events(*args, **keywords)  # pyright: ignore[reportArgumentType]
        if calls == 3:
            # it was stored, and the answer was lost
            raise WarehouseUnavailable("away")
        return result

    monkeypatch.setattr("gateway.consuming.append_events", load)
    bench.append("a", "b")
    notes = Notes()
    consumer, _ = bench.consume(notes)
    until(lambda: bench.stream.depth() == 0)
    consumer.stop()
    assert (bench.stored(), notes.batches) == (["a", "b"], [["a", "b"]])


def test_what_cannot_be_stored_is_in_quarantine_and_handlers_are_told(bench: Bench) -> None:
    bad = event("bad")._replace(properties='{"x": 1, "x": 2}')
    bench.stream.append([event("a").encode(), bad.encode(), b"no event", event("b").encode()])
    notes = Notes()
    consumer, _ = bench.consume(notes)
    until(lambda: bench.stream.depth() == 0)
    consumer.stop()
    # acting comes before loading: the gateway's doors let in nothing that cannot be stored
    assert (bench.stored(), notes.batches) == (["a", "b"], [["a", "bad", "b"]])
    assert {name for name, at in notes.kept.items() if at is None} == {"bad"}
    assert bench.warehouse.value("select count() from raw.quarantined_rows") == 2


def test_kept_is_when_the_warehouse_has_it_first(bench: Bench) -> None:
    notes = Notes()
    bench.append("a")
    consumer, _ = bench.consume(notes)
    until(lambda: bench.stream.depth() == 0)
    first = dict(notes.kept)
    bench.stream.append([bench.payload("a"), event("b").encode()])
    until(lambda: bench.stream.depth() == 0)
    consumer.stop()
    stored = dict(bench.warehouse.frame("select event_id, loaded_at from raw.events").iter_rows())
    assert notes.kept == stored and notes.kept["a"] == first["a"]


def test_two_gateways_take_turns(bench: Bench) -> None:
    first, second = Notes(), Notes()
    one, _ = bench.consume(first)
    until(lambda: first.ticks > 0)
    # another process has its own stream object
    other = Bench(bench.folder, bench.warehouse)
    two, _ = other.consume(second)
    bench.append("a")
    until(lambda: bench.stored() == ["a"] and first.batches == [["a"]])
    assert second.ticks == 0
    one.stop()
    bench.append("b")
    until(lambda: second.batches == [["b"]])
    two.stop()
    assert bench.stored() == ["a", "b"]
