"""What the gateway counts, in Prometheus' text format at /metrics. Labels never hold what callers wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

#: Why something was refused; the label `kind` of `mailhouse_gateway_refused_total`.
Refusal = Literal[
    "bad_key", "bad_signature", "forged_token", "hostile_body", "invalid", "replay", "rate_limited", "too_large",
    "stream_full", "honeypot",
]  # fmt: skip
_KINDS: tuple[Refusal, ...] = (
    "bad_key", "bad_signature", "forged_token", "hostile_body", "invalid", "replay", "rate_limited", "too_large",
    "stream_full", "honeypot",
)  # fmt: skip
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one gateway process. Safe to share between threads."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        prefix = "mailhouse_gateway_"
        self._requests = Counter(
            f"{prefix}requests", "Requests answered.", ["area", "status"], registry=registry
        )
        self._seconds = Histogram(
            f"{prefix}request_seconds", "Time to answer.", ["area"], buckets=_SECONDS, registry=registry
        )
        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._refused = Counter(f"{prefix}refused", "Things refused, by kind.", ["kind"], registry=registry)
        for kind in _KINDS:
            self._refused.labels(kind)
        self.appended = Counter(
            f"{prefix}events_appended", "Events that the stream took, durably.", registry=registry
        )
        self.loaded = Counter(f"{prefix}events_loaded", "Events new in raw.events.", registry=registry)
        self.duplicates = Counter(f"{prefix}events_duplicate", "Events that came again.", registry=registry)
        self.quarantined = Counter(
            f"{prefix}events_quarantined", "Events in raw.quarantined_rows.", registry=registry
        )
        self.load_seconds = Histogram(
            f"{prefix}load_seconds", "Time to load one micro-batch.", buckets=_SECONDS, registry=registry
        )
        self.append_seconds = Histogram(
            f"{prefix}append_seconds",
            "Time of one commit to the stream.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.message_seconds = Histogram(
            f"{prefix}event_to_message_seconds",
            "From receiving an event to the message of a trigger that waits for nothing.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.failures = Counter(
            f"{prefix}failures", "Failures that are tried again, by place.", ["place"], registry=registry
        )
        self._depth = Gauge(
            f"{prefix}stream_depth", "Events in the stream, not acknowledged yet.", registry=registry
        )
        self.is_consuming = Gauge(
            f"{prefix}is_consuming", "1 if this process consumes the stream; one does.", registry=registry
        )

    def refused(self, kind: Refusal, number: int = 1) -> None:
        """Count what was refused."""
        self._refused.labels(kind).inc(number)

    def answered(self, area: str, status: int, seconds: float) -> None:
        """Count an answer."""
        key = area, status
        if (children := self._answered.get(key)) is None:
            # finding them by their labels costs more than counting
            children = self._requests.labels(area, str(status)), self._seconds.labels(area)
            self._answered[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def watch_depth(self, depth: Callable[[], float]) -> None:
        """Ask for the stream's depth whenever metrics are read."""
        self._depth.set_function(depth)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
