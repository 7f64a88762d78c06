"""Many requests, one commit: a thread takes whatever waits, appends it to the stream at once, and tells everybody.

A commit goes to disk and costs milliseconds, whether it has one event or a thousand. While one is under way the next
events gather, so the busier the gateway, the fewer commits an event needs. Where requests come side by side, a commit
begins some milliseconds after the one before it; a client that waits for each answer never waits for that.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from gateway.events import Event
from gateway.metrics import Metrics
from gateway.streams import EventStream, StreamError, StreamFullError

_MOST_AT_ONCE = 5_000  # events in one commit
_PACE = 0.008  # seconds from one commit to the next, while requests come side by side
_log = logging.getLogger("mailhouse.gateway")


class Appender:
    """Appends events for all requests. Safe to share between threads; `start` before, `stop` after.

    Args:
        stream: where to.
        limit: events that may wait in the stream. What the gateway has already promised elsewhere (webhooks that a
            provider will not repeat, clicks) may go beyond it by a half.
    """

    def __init__(self, stream: EventStream, metrics: Metrics, *, limit: int) -> None:
        self._stream, self._metrics, self._limit = stream, metrics, limit
        self._waiting: list[tuple[Sequence[bytes], bool, Any]] = []
        self._number = 0  # events in _waiting
        self._change = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="appender", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Append what waits, then end."""
        with self._change:
            self._is_stopping = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    async def append(self, events: Sequence[Event], *, is_promised: bool = False) -> None:
        """Add events to the stream; durable when it returns.

        Raises:
            StreamFullError: too many events wait.
            StreamError: they could not be stored.
        """
        future = asyncio.get_running_loop().create_future()
        self._put([event.encode() for event in events], is_promised, future)
        await future

    def append_now(self, events: Sequence[Event], *, is_promised: bool = True) -> None:
        """The same for a thread that is no event loop's."""
        future: Future[None] = Future()
        self._put([event.encode() for event in events], is_promised, future)
        future.result()

    def _put(self, payloads: Sequence[bytes], is_promised: bool, future: Any) -> None:
        with self._change:
            if self._is_stopping:
                raise StreamError("The gateway is shutting down.", fix="Send it again in a moment.")
            if not is_promised and self._number + len(payloads) > self._limit:
                raise StreamFullError("Too many events wait.", fix="Send it again later.")
            self._waiting.append((payloads, is_promised, future))
            self._number += len(payloads)
            self._change.notify()

    def _run(self) -> None:
        begun, is_busy = 0.0, False
        while True:
            if is_busy and not self._is_stopping and (left := begun + _PACE - time.monotonic()) > 0:
                time.sleep(left)
            with self._change:
                while not self._waiting and not self._is_stopping:
                    self._change.wait()
                if not self._waiting:
                    return
                taken, number = 0, 0
                for payloads, _, _ in self._waiting:
                    if taken and number + len(payloads) > _MOST_AT_ONCE:
                        break
                    taken, number = taken + 1, number + len(payloads)
                group, self._waiting = self._waiting[:taken], self._waiting[taken:]
                self._number -= number
            begun, is_busy = time.monotonic(), len(group) > 1
            self._append(group)

    def _append(self, group: list[tuple[Sequence[bytes], bool, Any]]) -> None:
        answers: list[tuple[Any, StreamError | None]] = []
        try:
            depth = self._stream.depth()
            chosen: list[bytes] = []
            for payloads, is_promised, future in group:
                room = self._limit * 3 // 2 if is_promised else self._limit
                if depth + len(chosen) + len(payloads) > room:
                    full = StreamFullError("Too many events wait.", fix="Send it again later.")
                    answers.append((future, full))
                else:
                    chosen += payloads
                    answers.append((future, None))
            if chosen:
                started = time.perf_counter()
                self._stream.append(chosen)
                self._metrics.append_seconds.observe(time.perf_counter() - started)
                self._metrics.appended.inc(len(chosen))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            if not isinstance(error, StreamError):
                _log.exception("the stream failed")
                error = StreamError("The event stream failed.")
            else:
                _log.error("events could not be stored: %s", error.message)
            self._metrics.failures.labels("append").inc()
            answers = [(future, error) for _, _, future in group]
        _tell(answers)


def _tell(answers: Sequence[tuple[Any, StreamError | None]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[None], StreamError | None]]] = {}
    for future, error in answers:
        if isinstance(future, Future):
            _set(future, error)
        else:
            by_loop.setdefault(future.get_loop(), []).append((future, error))
    for loop, futures in by_loop.items():
        try:
            # one wake-up of the loop, however many requests
            loop.call_soon_threadsafe(_set_all, futures)
        except RuntimeError:
            continue  # the loop is closed: nobody waits any more


def _set_all(futures: Sequence[tuple[asyncio.Future[None], StreamError | None]]) -> None:
    for future, error in futures:
        if not future.done():
            _set(future, error)


def _set(future: Any, error: StreamError | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
