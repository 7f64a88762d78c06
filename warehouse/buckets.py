"""Token buckets: so many a second, and so many at once after a pause; in this process, on this machine, or in Redis.

Tokens drip in at a rate and up to a burst. Over any time `t` a bucket gives at most `burst + rate * t`, whoever asks.
"""

from __future__ import annotations

import fcntl
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from warehouse.errors import MailhouseError, SettingsError


class LimitError(MailhouseError):
    """The place where shared limits are kept does not answer."""


@dataclass(frozen=True, slots=True)
class Demand:
    """So many tokens of one bucket: at most `rate` a second over any time, plus `burst` that were saved up."""

    bucket: str
    rate: float
    burst: float
    tokens: float


class Buckets(Protocol):
    """Where buckets are kept."""

    def reserve(self, demands: Sequence[Demand]) -> float:
        """Take all the tokens now and return the seconds to wait before using them.

        Buckets go below zero for it, so whoever comes next waits behind: order is kept, and no one starves. Negative
        tokens are given back.
        """
        ...


class LocalBuckets:
    """Buckets of this process.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def reserve(self, demands: Sequence[Demand]) -> float:
        """See `Buckets`."""
        wait = 0.0
        with self._lock:
            now = self._clock()
            for demand in demands:
                level, at = self._levels.get(demand.bucket, (float(demand.burst), now))
                level = min(demand.burst, level + (now - at) * demand.rate) - demand.tokens
                self._levels[demand.bucket] = level, now
                wait = max(wait, -level / demand.rate)
        return wait


class FileBuckets:
    """Buckets that all processes of this machine share: a file each, of 16 bytes, under a lock.

    A process that dies gives its lock back, and nothing else: what it took is gone. A bucket whose file
    holds something else is taken for empty.

    Args:
        folder: where the files are; made if it is missing.
        clock: seconds that are the same in all processes of the machine and never go back but when it starts.
    """

    _STATE = struct.Struct("<dd")  # level, and when it was that

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock

    def reserve(self, demands: Sequence[Demand]) -> float:
        """See `Buckets`; demands are taken one after the other, which order makes no difference to.

        Raises:
            LimitError: a file cannot be written; nothing may go then, because the others' share is not known.
        """
        return max((self._take(demand) for demand in demands), default=0.0)

    def _take(self, demand: Demand) -> float:
        path = self._folder / f"{quote(demand.bucket, safe='')}.bucket"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                # after the lock: however long we waited for it counts
                now = self._clock()
                level = self._level(os.pread(handle, 64, 0), demand, now) - demand.tokens
                os.pwrite(handle, self._STATE.pack(level, now), 0)
            finally:
                os.close(handle)
        except OSError as error:
            raise LimitError(
                f"{path}, which keeps a shared rate limit, cannot be written: {error.strerror}.",
                fix="Make the home folder (MAILHOUSE_HOME) writable.",
            ) from None
        return max(0.0, -level / demand.rate)

    def _level(self, content: bytes, demand: Demand, now: float) -> float:
        if not content:
            return float(demand.burst)
        if len(content) != self._STATE.size:
            return 0.0
        level, at = self._STATE.unpack(content)
        if not (math.isfinite(level) and math.isfinite(at)):
            return 0.0
        # a machine that was started anew counts from 0
        return min(float(demand.burst), level + max(0.0, now - at) * demand.rate)


# Redis' own clock, so that senders' clocks may differ. A bucket that would be full again is forgotten.
_TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local wait = 0
for i, key in ipairs(KEYS) do
    local rate, burst, tokens = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
    local stored = redis.call('HMGET', key, 'level', 'at')
    local level = tonumber(stored[1]) or burst
    local at = tonumber(stored[2]) or now
    level = math.min(burst, level + math.max(0, now - at) * rate) - tokens
    redis.call('HSET', key, 'level', string.format('%.17g', level), 'at', string.format('%.17g', now))
    redis.call('PEXPIRE', key, math.ceil((burst - level) / rate * 1000) + 1000)
    wait = math.max(wait, -level / rate)
end
return string.format('%.17g', wait)
"""


class RedisBuckets:
    """Buckets that all who reach one server share; one script call takes the tokens of all demands.

    Args:
        url: `redis://user:password@host:port/database`; `rediss://` for TLS.

    Raises:
        SettingsError: there is no such URL, or the package `redis` is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError:
            raise SettingsError(
                "MAILHOUSE_REDIS_URL is set, but the package redis is not installed.",
                fix="Install mailhouse[redis], or unset MAILHOUSE_REDIS_URL.",
            ) from None
        try:
            self._redis = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        except ValueError:
            raise SettingsError(
                "MAILHOUSE_REDIS_URL is no URL of a Redis server.",
                fix="Write it like redis://127.0.0.1:6379/0.",
            ) from None
        self._take = self._redis.register_script(_TAKE)
        self._error = redis.RedisError

    def reserve(self, demands: Sequence[Demand]) -> float:
        """See `Buckets`.

        Raises:
            LimitError: Redis does not answer; nothing may go then, because the others' share is not known.
        """
        if not demands:
            return 0.0
        # braces: in a Redis cluster all buckets must live on one node, for one script to see them
        keys = [f"{{mailhouse}}:limit:{demand.bucket}" for demand in demands]
        values = [value for demand in demands for value in (demand.rate, demand.burst, demand.tokens)]
        try:
            return float(self._take(keys=keys, args=values))  # pyright: ignore[reportArgumentType]
        except self._error as error:
            raise LimitError(
                f"Redis, which keeps the shared rate limits, failed: {type(error).__name__}.",
                fix="Check that the server of MAILHOUSE_REDIS_URL runs; or unset it, and limits hold in each process.",
            ) from error
