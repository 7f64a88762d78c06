"""The event stream in Redis Streams: one entry an event, one consumer group, entries deleted once they are dealt with.

Redis acknowledges what it has only in memory unless it is told otherwise. A stream that forgets is refused: it must
keep an append-only file, and either write it through with every commit (`appendfsync always`) or be of a version (7.2)
that can be asked to do so (`WAITAOF`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.settings import GatewaySettings
from gateway.streams import Batch, StreamError
from warehouse.errors import SettingsError

# braces: all keys of ours live on one node of a cluster
KEY = "{mailhouse}:events"
GROUP = "mailhouse"
_CONSUMER = "gateway"
_SYNC_MILLISECONDS = 5_000
_TIMEOUT = 15  # seconds for an answer
_LONGEST_WAIT = 10.0  # of those, spent waiting for events


class RedisStream:
    """See `gateway.streams.EventStream`.

    Args:
        client: of redis-py; answers in bytes.
        has_to_wait: whether each append asks the server to write its file through.
    """

    def __init__(self, client: Any, *, has_to_wait: bool) -> None:
        import redis

        self._redis, self._has_to_wait = client, has_to_wait
        self._error: type[Exception] = redis.RedisError
        self._no_group: type[Exception] = redis.ResponseError
        # read by us and not acknowledged: `restart` and recovery must not give them twice
        self._held: set[bytes] = set()
        self._held_lock = threading.Lock()
        self._claim_from: bytes | None = b"0-0"
        self._has_group = False

    @classmethod
    def open(cls, settings: GatewaySettings) -> RedisStream:
        """The stream on the server of MAILHOUSE_REDIS_URL.

        Raises:
            SettingsError: there is no such setting or package, or the server keeps nothing on disk.
            StreamError: it does not answer.
        """
        if settings.redis_url is None:
            raise SettingsError(
                "MAILHOUSE_GATEWAY_STREAM is redis, but MAILHOUSE_REDIS_URL is not set.",
                fix="Set MAILHOUSE_REDIS_URL like redis://127.0.0.1:6379/0, or unset MAILHOUSE_GATEWAY_STREAM.",
            )
        try:
            import redis
        except ImportError:
            raise SettingsError(
                "MAILHOUSE_GATEWAY_STREAM is redis, but the package redis is not installed.",
                fix="Install mailhouse[redis], or unset MAILHOUSE_GATEWAY_STREAM.",
            ) from None
        try:
            client = redis.Redis.from_url(
                settings.redis_url.get_secret_value(), socket_timeout=_TIMEOUT, socket_connect_timeout=5
            )
        except ValueError:
            raise SettingsError(
                "MAILHOUSE_REDIS_URL is no URL of a Redis server.",
                fix="Write it like redis://127.0.0.1:6379/0.",
            ) from None
        stream = cls(client, has_to_wait=False)
        with stream._errors():
            facts: Any = client.info()
            is_kept = bool(facts.get("aof_enabled"))
            how: Any = {}
            with contextlib.suppress(redis.ResponseError):
                # some hosted servers forbid CONFIG
                how = client.config_get("appendfsync")
        version = tuple(int(part) for part in str(facts["redis_version"]).split(".")[:2])
        can_wait = version >= (7, 2)
        if not is_kept or not (can_wait or how.get("appendfsync") == "always"):
            what = "writes its file through once a second only" if is_kept else "keeps no append-only file"
            raise SettingsError(
                f"The Redis of MAILHOUSE_REDIS_URL would lose events that we acknowledge: it {what}.",
                fix="Start it with --appendonly yes --appendfsync always, or keep the stream in the ledger "
                "(MAILHOUSE_GATEWAY_STREAM=ledger).",
            )
        stream._has_to_wait = how.get("appendfsync") != "always"
        return stream

    def append(self, payloads: Sequence[bytes]) -> None:
        """See `EventStream`."""
        with self._errors():
            pipeline = self._redis.pipeline(transaction=False)
            for payload in payloads:
                pipeline.xadd(KEY, {b"e": payload})
            if self._has_to_wait:
                pipeline.execute_command("WAITAOF", 1, 0, _SYNC_MILLISECONDS)
            answers = pipeline.execute()
        if self._has_to_wait and not answers[-1][0]:
            raise StreamError("Redis did not write its file through in time.", fix="Look at its disk.")

    def read(self, most: int, wait: float) -> Batch | None:
        """See `EventStream`."""
        if not self._has_group:
            self._make_group()
        if self._claim_from is not None and (batch := self._claimed(most)) is not None:
            return batch
        try:
            with self._errors():
                answer = self._redis.xreadgroup(
                    GROUP,
                    _CONSUMER,
                    {KEY: ">"},
                    count=most,
                    block=max(1, int(min(wait, _LONGEST_WAIT) * 1000)),
                )
        except StreamError:
            # entries may have been given to us in an answer that was lost
            self._claim_from = b"0-0"
            self._has_group = False
            raise
        return self._batch(answer[0][1]) if answer else None

    def ack(self, batch: Batch) -> None:
        """See `EventStream`."""
        with self._errors():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.xack(KEY, GROUP, *batch.positions)
            pipeline.xdel(KEY, *batch.positions)
            pipeline.execute()
        with self._held_lock:
            self._held.difference_update(batch.positions)

    def restart(self) -> None:
        """See `EventStream`."""
        with self._held_lock:
            self._held.clear()
        self._claim_from = b"0-0"

    def depth(self) -> int:
        """See `EventStream`."""
        with self._errors():
            return int(self._redis.xlen(KEY))

    def close(self) -> None:
        """See `EventStream`."""
        self._redis.close()

    def _make_group(self) -> None:
        try:
            with self._errors():
                try:
                    self._redis.xgroup_create(KEY, GROUP, id="0", mkstream=True)
                except self._no_group as error:
                    if "BUSYGROUP" not in str(error):
                        raise
        except StreamError:
            self._claim_from = b"0-0"
            raise
        self._has_group = True

    def _claimed(self, most: int) -> Batch | None:
        """Entries that a reader took and never acknowledged, ours or a dead one's; None when there are no more."""
        while self._claim_from is not None:
            with self._errors():
                # we are the only reader now: nobody else is at work on them
                following, entries, *_ = self._redis.xautoclaim(
                    KEY, GROUP, _CONSUMER, min_idle_time=0, start_id=self._claim_from, count=most
                )
            self._claim_from = None if following == b"0-0" else following
            with self._held_lock:
                entries = [entry for entry in entries if entry[0] not in self._held]
            if entries:
                return self._batch(entries)
        return None

    def _batch(self, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> Batch:
        positions = [entry[0] for entry in entries]
        with self._held_lock:
            self._held.update(positions)
        return Batch(positions, [entry[1][b"e"] for entry in entries])

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise StreamError(
                f"Redis, which keeps the event stream, failed: {type(error).__name__}.",
                fix="Check that the server of MAILHOUSE_REDIS_URL runs.",
            ) from error
