"""Out of the stream into the warehouse, and then to whoever acts on events.

Two threads. One reads micro-batches and loads them into `raw.events`, each event once by its id. The other hands what
is loaded to the handlers, all that waits at once, and acknowledges it when all handlers returned. A handler that
fails is tried again with the same batch, while later batches go on into the warehouse. What is not acknowledged when
the process dies is read again: `raw.events` has it once all the same, and handlers are idempotent by event_id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

import polars as pl

from gateway.events import Event, frame_of
from gateway.leading import Lead
from gateway.metrics import Metrics
from gateway.streams import Batch, EventStream
from warehouse.client import Warehouse
from warehouse.errors import MailhouseError
from warehouse.loads import append_events, quarantine

MOST_EVENTS = 1_000
"""Events of one micro-batch."""
TICK = 0.1
"""Seconds between ticks of the handlers, at most, while they have nothing to handle."""

_PACE = 0.02  # seconds from one load to the next at least, unless a batch is full: each load makes a part
# parts of raw.events of one month -> seconds between loads: merging must keep up
_PACES = ((300, 1.0), (150, 0.25), (0, _PACE))
_PARTS_EVERY = 5.0
_STANDBY = 0.5
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0
_log = logging.getLogger("mailhouse.gateway")


class BatchHandler(Protocol):
    """Acts on events."""

    def handle(self, events: pl.DataFrame, now: datetime) -> None:
        """Act on events that `raw.events` has. Columns: `warehouse.loads.EVENT_COLUMNS`.

        May be called again with the same events after a crash, or when it raised; must be idempotent by event_id.
        """
        ...

    def tick(self, now: datetime) -> None:
        """Called at least every `TICK` seconds between batches: what is due by the clock."""
        ...


class Consumer:
    """Consumes a stream in two threads.

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
        self._loader = threading.Thread(target=self._load_all, name="loader", daemon=True)
        self._handler = threading.Thread(target=self._handle_all, name="handler", daemon=True)
        self._loaded: deque[tuple[Batch, pl.DataFrame]] = deque()
        self._change = threading.Condition()
        self._is_loading_over = False
        self._leads = False
        self._pace, self._counted_at = _PACE, 0.0

    def start(self) -> None:
        """Begin."""
        self._loader.start()
        self._handler.start()

    def stop(self, *, seconds: float = 10.0) -> None:
        """Finish the batch under way and hand over what is loaded; what does not fit into the time is read again."""
        self._stopping.set()
        until = time.monotonic() + seconds
        for thread in (self._loader, self._handler):
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
        self._lead.give_up()
        self._metrics.is_consuming.set(0)

    @property
    def is_well(self) -> bool:
        """Whether both threads run."""
        return self._loader.is_alive() and self._handler.is_alive()

    # loading

    def _load_all(self) -> None:
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
                    self._load_next()
                    wait = _FIRST_WAIT
                except Exception as error:  # noqa: BLE001 - whatever it is, events must go on
                    self._note("load", error)
                    self._stopping.wait(wait)
                    wait = min(_LONGEST_WAIT, wait * 2)
        finally:
            with self._change:
                self._is_loading_over = True
                self._change.notify_all()

    def _load_next(self) -> None:
        batch = self._stream.read(MOST_EVENTS, TICK)
        if batch is None:
            return
        started = time.monotonic()
        wait = _FIRST_WAIT
        while True:
            try:
                frame = self._load(self._unique(batch))
                break
            except Exception as error:  # noqa: BLE001 - going on without the batch would lose it
                self._note("load", error)
                if self._stopping.wait(wait):
                    return  # never acknowledged, so it is read again
                wait = min(_LONGEST_WAIT, wait * 2)
                # the answer may have been lost on its way while the rows are still being written
                self._await_running_loads()
        self._metrics.load_seconds.observe(time.monotonic() - started)
        with self._change:
            self._loaded.append((batch, frame))
            self._change.notify_all()
        if len(batch) < MOST_EVENTS:
            self._stopping.wait(max(0.0, started + self._measured_pace() - time.monotonic()))

    def _unique(self, batch: Batch) -> pl.DataFrame:
        """The events of a batch, each id once: the first counts. What is no event of ours goes into quarantine."""
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
        return frame_of(list(events.values()))

    def _load(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Load events; returns those that `raw.events` has."""
        result = append_events(self._warehouse, frame, run_id="gateway")
        self._metrics.loaded.inc(result.loaded)
        self._metrics.duplicates.inc(result.duplicates)
        if not result.quarantined:
            return frame
        self._metrics.quarantined.inc(result.quarantined)
        _log.warning("%d events are in raw.quarantined_rows", result.quarantined)
        stored = self._warehouse.frame(
            "select event_id from raw.events where event_id in (select event_id from given)",
            external={"given": frame.select("event_id")},
        )
        return frame.join(stored.unique(), on="event_id", how="semi", maintain_order="left")

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
                self._loaded.clear()
        self._leads = leads
        self._metrics.is_consuming.set(int(leads))

    # handling

    def _handle_all(self) -> None:
        wait = _FIRST_WAIT
        current = None
        together: list[tuple[Batch, pl.DataFrame]] = []  # what is loaded is handled together
        frame = pl.DataFrame()
        done = 0  # handlers that have had it
        not_before = 0.0
        next_tick = 0.0
        while True:
            with self._change:
                while not self._loaded and not self._is_loading_over and time.monotonic() < next_tick:
                    self._change.wait(max(0.001, next_tick - time.monotonic()))
                first = self._loaded[0] if self._loaded else None
                if first is None and self._is_loading_over:
                    return
                if self._is_loading_over and time.monotonic() < not_before:
                    return  # what fails is left to the next start
                if first is not current:
                    current, done, wait, not_before = first, 0, _FIRST_WAIT, 0.0
                    together = self._waiting()
            if first is not None and time.monotonic() >= not_before:
                if done == 0:
                    # several reads may have brought the same event
                    frame = pl.concat(one for _, one in together).unique(
                        "event_id", keep="first", maintain_order=True
                    )
                try:
                    while done < len(self._handlers):
                        if frame.height:
                            self._handlers[done].handle(frame, self._now())
                        done += 1
                    for entry in together:
                        self._stream.ack(entry[0])
                        with self._change:
                            if self._loaded and self._loaded[0] is entry:
                                self._loaded.popleft()
                except Exception as error:  # noqa: BLE001 - the batch is tried again
                    self._note("handle", error)
                    not_before = time.monotonic() + wait
                    wait = min(_LONGEST_WAIT, wait * 2)
            elif first is not None:
                time.sleep(min(TICK, max(0.001, not_before - time.monotonic())))
            if time.monotonic() >= next_tick:
                self._tick()
                next_tick = time.monotonic() + TICK

    def _waiting(self) -> list[tuple[Batch, pl.DataFrame]]:
        """What is loaded, oldest first, as much as makes one micro-batch."""
        together: list[tuple[Batch, pl.DataFrame]] = []
        for entry in self._loaded:
            if together and sum(len(batch) for batch, _ in together) + len(entry[0]) > MOST_EVENTS:
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
