"""Out of the stream to whoever acts on events, and into the warehouse.

Acting comes first: the stream is on disk already, so events need not be in the warehouse before they are judged. Four
threads: one reads; one hands what was read to the handlers, all that waits at once; one loads it into `raw.events`
behind them, each event once by its id, in bigger batches, lets the handlers write down what they have to (`keep`),
and only then acknowledges it; one looks now and then who was erased, for whom nobody has to wait then. A handler that
fails is tried again with the same events, while later ones go on into the warehouse. What is not acknowledged when
the process dies is read again: `raw.events` has it once all the same, and handlers are idempotent by event_id.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import polars as pl

from campaigns.resolving import loads_of
from gateway.events import Event, frame_of
from gateway.leading import Lead
from gateway.metrics import Metrics
from gateway.streams import Batch, EventStream
from warehouse.client import Warehouse
from warehouse.erasures import REFRESH_SECONDS, erased_people, without_erased
from warehouse.errors import MailhouseError
from warehouse.loads import append_events, quarantine

MOST_EVENTS = 1_000
"""Events of one micro-batch."""
TICK = 0.1
"""Seconds between ticks of the handlers, at most, while they have nothing to handle."""
MOST_IN_FLIGHT = 20_000
"""Events that were read and are not acknowledged; beyond that they wait in the stream."""

_MOST_LOADED = 10_000  # events of one load
_HEAD_START = 0.5  # seconds that handlers have before events are loaded beside them rather than behind
_PACE = 1.0  # seconds from one load to the next at least, unless a batch is full: each load makes parts of tables, and
# takes a tenth of a second of a core from what is on its way to people
# parts of raw.events of one month -> seconds between loads: merging must keep up
_PACES = ((300, 2.0), (0, _PACE))
_PARTS_EVERY = 5.0
_LOOK_AROUND = 0.1
_GATHER = 0.01
_STANDBY = 0.5
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0
_LOADS = {"event_id": pl.String(), "loaded_at": pl.Datetime("ms", "UTC")}
_log = logging.getLogger("mailhouse.gateway")


class BatchHandler(Protocol):
    """Acts on events."""

    def handle(self, events: pl.DataFrame, now: datetime) -> None:
        """Act on events, which `raw.events` may not have yet. Columns: `warehouse.loads.EVENT_COLUMNS`.

        May be called again with the same events after a crash, or when it raised; must be idempotent by event_id.
        """
        ...

    def keep(self, loads: pl.DataFrame) -> None:
        """Write down what must outlive the process about events that were handled, before they are acknowledged.

        Called by another thread than `handle`. May be called again with the same events; must be idempotent.

        Args:
            loads: `event_id`, and `loaded_at` as `raw.events` has it; null for what it does not get: what is in
                quarantine instead, or is about people who were erased, of which `handle` may have seen nothing.
        """
        ...

    def forget(self) -> None:
        """Another gateway has taken over: it is handed what was handled here and not kept."""
        ...

    def tick(self, now: datetime) -> None:
        """Called at least every `TICK` seconds between batches: what is due by the clock."""
        ...


@dataclass(eq=False)
class _Entry:
    """Events that were read together; they become frames where many entries are dealt with at once.

    Attributes:
        events: each id once.
        strange: entries of the stream that are none, which are in quarantine.
    """

    batch: Batch
    events: Sequence[Event]
    read_at: float
    strange: int
    is_handled: bool = False
    has_failed: bool = False
    loads: pl.DataFrame | None = None


class _Patience:
    """How long to wait after failures."""

    def __init__(self) -> None:
        self._wait, self._until = _FIRST_WAIT, 0.0

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._until

    @property
    def has_failed(self) -> bool:
        return self._until > 0

    def succeeded(self) -> None:
        self._wait, self._until = _FIRST_WAIT, 0.0

    def failed(self) -> None:
        self._until = time.monotonic() + self._wait
        self._wait = min(_LONGEST_WAIT, self._wait * 2)


class Consumer:
    """Consumes a stream in threads of its own.

    Args:
        lead: who consumes, if several gateways run.
        handlers: called one after another, in this order.
        now: the time, through the settings' clock.
    """

    def __init__(
        self,
        stream: EventStream,
        warehouse: Warehouse,
        lead: Lead,
        handlers: Sequence[BatchHandler],
        metrics: Metrics,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._stream, self._warehouse, self._lead = stream, warehouse, lead
        self._handlers, self._metrics, self._now = list(handlers), metrics, now
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (
                ("reader", self._read_all),
                ("handler", self._handle_all),
                ("loader", self._load_all),
                ("watcher", self._watch_erased),
            )
        ]
        # oldest first; an entry leaves the last of them when it is acknowledged
        self._unhandled: deque[_Entry] = deque()
        self._unloaded: deque[_Entry] = deque()
        self._unkept: deque[_Entry] = deque()
        self._in_flight = 0
        self._change = threading.Condition()
        self._is_reading_over = self._is_handling_over = False
        self._leads = False
        self._pace, self._counted_at = _PACE, 0.0

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, seconds: float = 10.0) -> None:
        """Finish the batch under way and hand over what was read; what does not fit into the time is read again."""
        self._stopping.set()
        with self._change:
            self._change.notify_all()
        until = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
        self._lead.give_up()
        self._metrics.is_consuming.set(0)

    @property
    def is_well(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    # reading

    def _read_all(self) -> None:
        wait = _FIRST_WAIT
        try:
            while not self._stopping.is_set():
                try:
                    if not self._lead.take():
                        self._set_leads(False)
                        self._stopping.wait(_STANDBY)
                        continue
                    if not self._leads:
                        self._stream.restart()
                        self._await_running_loads()
                        self._set_leads(True)
                    self._read_next()
                    wait = _FIRST_WAIT
                except Exception as error:  # noqa: BLE001 - whatever it is, events must go on
                    self._note("read", error)
                    self._stopping.wait(wait)
                    wait = min(_LONGEST_WAIT, wait * 2)
        finally:
            with self._change:
                self._is_reading_over = True
                self._change.notify_all()

    def _read_next(self) -> None:
        with self._change:
            if self._in_flight >= MOST_IN_FLIGHT:
                self._change.wait(TICK)
                return
            if self._unhandled:
                # the handler is at work: what comes meanwhile is read together
                self._change.wait(_GATHER)
        batch = self._stream.read(MOST_EVENTS, TICK)
        if batch is None:
            return
        wait = _FIRST_WAIT
        while True:
            try:
                events, strange = self._unique(batch)
                break
            except Exception as error:  # noqa: BLE001 - going on without the batch would lose it
                self._note("read", error)
                if self._stopping.wait(wait):
                    return  # never acknowledged, so it is read again
                wait = min(_LONGEST_WAIT, wait * 2)
        entry = _Entry(batch, events, time.monotonic(), strange)
        with self._change:
            self._unhandled.append(entry)
            self._unloaded.append(entry)
            self._in_flight += len(batch)
            self._change.notify_all()

    def _unique(self, batch: Batch) -> tuple[list[Event], int]:
        """The events of a batch, each id once: the first counts; and how many are none, which are in quarantine."""
        events: dict[str, Event] = {}
        strange: list[bytes] = []
        for payload in batch.payloads:
            try:
                event = Event.decode(payload)
            except (ValueError, TypeError):
                strange.append(payload)
                continue
            events.setdefault(event.event_id, event)
        if strange:
            rows = {
                "file": ["stream"] * len(strange), "line": [0] * len(strange),
                "reason": ["this entry of the stream is no event"] * len(strange),
                "content": [payload.decode("utf-8", "replace") for payload in strange],
            }  # fmt: skip
            quarantine(
                self._warehouse, pl.DataFrame(rows), source="gateway", object="event", run_id="gateway"
            )
            self._metrics.quarantined.inc(len(strange))
            _log.error("%d entries of the stream are no events; see raw.quarantined_rows", len(strange))
        return list(events.values()), len(strange)

    def _watch_erased(self) -> None:
        """See who was erased, while events come, so that nobody who judges or loads them has to wait for it."""
        while not self._stopping.wait(_LOOK_AROUND):
            if self._in_flight and self._leads:
                # whoever needs to know asks again, and fails loudly
                with contextlib.suppress(MailhouseError):
                    erased_people(self._warehouse, max_age=REFRESH_SECONDS / 2)

    # loading

    def _load_all(self) -> None:
        load, keep = _Patience(), _Patience()
        while True:
            with self._change:
                together = self._loadable() if load.is_over else []
                if not together and not (keep.is_over and self._keepable()):
                    is_all = not self._unloaded and not any(entry.is_handled for entry in self._unkept)
                    # what fails is left to the next start
                    if (self._is_reading_over and self._is_handling_over
                            and (is_all or load.has_failed or keep.has_failed)):  # fmt: skip
                        return
                    self._change.wait(0.05 if self._unloaded or self._unkept else TICK)
                    continue
            started = time.monotonic()
            if together:
                try:
                    self._load_entries(together)
                    load.succeeded()
                except Exception as error:  # noqa: BLE001 - going on without the events would lose them
                    self._note("load", error)
                    load.failed()
                    # the answer may have been lost on its way while the rows are still being written
                    self._await_running_loads()
            with self._change:
                ready = self._keepable() if keep.is_over else []
            if ready:
                try:
                    self._keep_entries(ready)
                    keep.succeeded()
                except Exception as error:  # noqa: BLE001 - the same
                    self._note("keep", error)
                    keep.failed()
            if together and sum(len(entry.batch) for entry in together) < MOST_EVENTS:
                self._stopping.wait(max(0.0, started + self._measured_pace() - time.monotonic()))

    def _loadable(self) -> list[_Entry]:
        """What is to be loaded next: what was handled, could not be, or is waiting for it for too long."""
        together: list[_Entry] = []
        number = 0
        now = time.monotonic()
        for entry in self._unloaded:
            is_late = now - entry.read_at > _HEAD_START or self._stopping.is_set()
            if not (entry.is_handled or entry.has_failed or is_late) or (
                together and number + len(entry.batch) > _MOST_LOADED
            ):
                break
            together.append(entry)
            number += len(entry.batch)
        return together

    def _keepable(self) -> list[_Entry]:
        """What is loaded and handled, oldest first."""
        ready: list[_Entry] = []
        for entry in self._unkept:
            if not entry.is_handled:
                break
            ready.append(entry)
        return ready

    def _load_entries(self, entries: Sequence[_Entry]) -> None:
        started = time.monotonic()
        frame = _frame(entries)
        loads = self._load(frame)
        read = sum(len(entry.batch) - entry.strange for entry in entries)
        self._metrics.duplicates.inc(read - frame.height)
        self._metrics.load_seconds.observe(time.monotonic() - started)
        with self._change:
            for entry in entries:
                entry.loads = loads
                if self._unloaded and self._unloaded[0] is entry:
                    self._unloaded.popleft()
                    self._unkept.append(entry)

    def _keep_entries(self, entries: Sequence[_Entry]) -> None:
        frames = list({id(one): one for entry in entries if (one := entry.loads) is not None}.values())
        ids = {event.event_id for entry in entries for event in entry.events}
        loads = pl.concat(frames).unique("event_id", keep="first", maintain_order=True)
        if not ids.issuperset(loads["event_id"].to_list()):
            loads = loads.filter(pl.col("event_id").is_in(pl.Series(list(ids)).implode()))
        if loads.height:
            for handler in self._handlers:
                handler.keep(loads)
        for entry in entries:
            with self._change:
                if not self._unkept or self._unkept[0] is not entry:
                    return  # another gateway has taken over
            self._stream.ack(entry.batch)
            with self._change:
                if self._unkept and self._unkept[0] is entry:
                    self._unkept.popleft()
                    self._in_flight -= len(entry.batch)
                    self._change.notify_all()

    def _load(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Load events; returns `event_id` and `loaded_at`, null for those that `raw.events` does not have."""
        if frame.is_empty():
            return pl.DataFrame(schema=_LOADS)
        # by the warehouse's clock, as whatever others load
        moment = self._warehouse.value("select now64(3, 'UTC')")
        result = append_events(self._warehouse, frame, run_id="gateway", loaded_at=moment)
        self._metrics.loaded.inc(result.loaded)
        self._metrics.duplicates.inc(result.duplicates)
        loads = frame.select("event_id", pl.lit(moment).cast(_LOADS["loaded_at"]).alias("loaded_at"))
        if result.duplicates or result.quarantined:
            # what a mart has taken in is told by when it was loaded first
            before = loads_of(self._warehouse, frame)
            loads = loads.update(before, on="event_id", how="left")
        if not result.quarantined and not result.refused:
            return loads
        if result.quarantined:
            self._metrics.quarantined.inc(result.quarantined)
            _log.warning("%d events are in raw.quarantined_rows", result.quarantined)
        stored = self._warehouse.frame(
            "select event_id from raw.events where event_id in (select event_id from given)",
            external={"given": frame.select("event_id")},
        )
        is_stored = pl.col("event_id").is_in(stored["event_id"].implode())
        return loads.with_columns(pl.when(is_stored).then("loaded_at").alias("loaded_at"))

    def _await_running_loads(self) -> None:
        """Wait while a load of ours, or of a gateway that died, is still being written: it would not be found yet."""
        while not self._stopping.is_set():
            try:
                running = self._warehouse.value(
                    "select count() from system.processes"
                    " where query_kind = 'Insert' and positionCaseInsensitive(query, 'insert into raw.events') > 0"
                )
                if not running:
                    return
            except MailhouseError as error:
                self._note("load", error)
            self._stopping.wait(_FIRST_WAIT)

    def _measured_pace(self) -> float:
        """Seconds between loads: longer where the warehouse does not keep up with merging what they leave."""
        now = time.monotonic()
        if now - self._counted_at > _PARTS_EVERY:
            self._counted_at = now
            try:
                parts = self._warehouse.value(
                    "select max(number) from (select count() as number from system.parts"
                    " where active and database = 'raw' and table = 'events' group by partition)"
                )
                self._pace = next(pace for least, pace in _PACES if (parts or 0) >= least)
            except MailhouseError as error:
                self._note("load", error)
        return self._pace

    def _set_leads(self, leads: bool) -> None:
        if leads != self._leads:
            _log.info("this gateway %s the stream", "consumes" if leads else "does not consume")
        if self._leads and not leads:
            # another reads them again from the stream; what a handler has in hand it may finish
            with self._change:
                for queue in (self._unhandled, self._unloaded, self._unkept):
                    queue.clear()
                self._in_flight = 0
            for handler in self._handlers:
                handler.forget()
        self._leads = leads
        self._metrics.is_consuming.set(int(leads))

    # handling

    def _handle_all(self) -> None:
        try:
            self._handle_each()
        finally:
            with self._change:
                self._is_handling_over = True
                self._change.notify_all()

    def _handle_each(self) -> None:
        wait = _FIRST_WAIT
        current: _Entry | None = None
        together: list[_Entry] = []  # what waits is handled together
        frame = pl.DataFrame()
        done = 0  # handlers that have had it
        not_before = 0.0
        next_tick = 0.0
        while True:
            with self._change:
                while not self._unhandled and not self._is_reading_over and time.monotonic() < next_tick:
                    self._change.wait(max(0.001, next_tick - time.monotonic()))
                first = self._unhandled[0] if self._unhandled else None
                if first is None and self._is_reading_over:
                    return
                if self._is_reading_over and time.monotonic() < not_before:
                    return  # what fails is left to the next start
                if first is not current:
                    current, done, wait, not_before = first, 0, _FIRST_WAIT, 0.0
                    together = self._waiting()
            if first is not None and time.monotonic() >= not_before:
                try:
                    if done == 0:
                        # nobody who was erased is judged or written to, nor loaded, to which `append_events` sees
                        frame = without_erased(self._warehouse, _frame(together))
                    while done < len(self._handlers):
                        if frame.height:
                            self._handlers[done].handle(frame, self._now())
                        done += 1
                    with self._change:
                        for entry in together:
                            entry.is_handled = True
                            if self._unhandled and self._unhandled[0] is entry:
                                self._unhandled.popleft()
                        self._change.notify_all()
                except Exception as error:  # noqa: BLE001 - the batch is tried again
                    self._note("handle", error)
                    with self._change:
                        for entry in together:
                            entry.has_failed = True
                        self._change.notify_all()
                    not_before = time.monotonic() + wait
                    wait = min(_LONGEST_WAIT, wait * 2)
            elif first is not None:
                time.sleep(min(TICK, max(0.001, not_before - time.monotonic())))
            if time.monotonic() >= next_tick:
                self._tick()
                next_tick = time.monotonic() + TICK

    def _waiting(self) -> list[_Entry]:
        """What waits to be handled, oldest first, as much as makes one micro-batch."""
        together: list[_Entry] = []
        for entry in self._unhandled:
            if together and sum(len(one.batch) for one in together) + len(entry.batch) > MOST_EVENTS:
                break
            together.append(entry)
        return together

    def _tick(self) -> None:
        if not self._leads:
            return
        for handler in self._handlers:
            try:
                handler.tick(self._now())
            except Exception as error:  # noqa: BLE001 - the next tick tries again
                self._note("tick", error)

    def _note(self, place: str, error: Exception) -> None:
        self._metrics.failures.labels(place).inc()
        if isinstance(error, MailhouseError):
            _log.error("%s failed and is tried again: %s", place, error.message)
        else:
            _log.error("%s failed and is tried again", place, exc_info=error)


def _frame(entries: Sequence[_Entry]) -> pl.DataFrame:
    """The events of entries, each id once: several reads may have brought the same."""
    events: dict[str, Event] = {}
    for entry in entries:
        for event in entry.events:
            events.setdefault(event.event_id, event)
    return frame_of(list(events.values()))
