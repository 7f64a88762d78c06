"""How fast: a token bucket. Tokens drip in at a rate and up to a burst; a message takes one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class RateLimit(Protocol):
    """Anything that says how long to wait; shared between processes where an implementation can."""

    def take(self, tokens: int, stop: threading.Event | None = None) -> bool:
        """Wait until so many may go; False if `stop` was set before that."""
        ...


class TokenBucket:
    """At most `rate` a second over any time, plus `burst` that were saved up; within one process.

    Args:
        rate: tokens a second, above 0.
        burst: tokens that can be saved up; at least 1.
        clock: seconds, monotonic.
    """

    def __init__(self, rate: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("rate must be above 0 and burst at least 1")
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()
        self._lock = threading.Lock()

    def reserve(self, tokens: int) -> float:
        """Take the tokens now and return the seconds to wait before using them.

        The bucket goes below zero for it, so whoever comes next waits behind: order is kept, and no one starves.
        """
        with self._lock:
            now = self._clock()
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
            self._tokens -= tokens
            return max(0.0, -self._tokens / self.rate)

    def take(self, tokens: int, stop: threading.Event | None = None) -> bool:
        """Wait until so many may go; False if `stop` was set before that, the tokens given back."""
        wait = self.reserve(tokens)
        if wait and stop is not None:
            if stop.wait(wait):
                with self._lock:
                    self._tokens += tokens
                return False
        elif wait:
            time.sleep(wait)
        return True


class Unlimited:
    """No limit."""

    def take(self, tokens: int, stop: threading.Event | None = None) -> bool:
        """Never wait."""
        del tokens
        return stop is None or not stop.is_set()


def rate_limit(rate: float, burst: int = 0) -> RateLimit:
    """The limit of a rate a second; 0 means none. Without a burst, one second's worth."""
    return TokenBucket(rate, burst or max(1, int(rate))) if rate > 0 else Unlimited()
