"""Streams: in SQLite, PostgreSQL and Redis they keep order, forget what is acknowledged, and give the rest again."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.appending import Appender
from gateway.events import Event
from gateway.leading import FileLead, lead_of
from gateway.metrics import Metrics
from gateway.seen import LedgerSeenStore
from gateway.settings import GatewaySettings
from gateway.streams import (
    Batch,
    EventStream,
    SqliteStream,
    StreamError,
    StreamFullError,
    open_stream,
)
from senders.ledger import Ledger
from warehouse.embedded.launcher import free_port
from warehouse.errors import SettingsError

Opened = Callable[[], EventStream]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("there is no Redis here; `apt-get install -y redis-server` brings it")
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync",
         "always", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    import redis

    client = redis.Redis(port=port)
    for _ in range(200):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(20)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("redis", marks=pytest.mark.service),
        pytest.param("postgresql", marks=pytest.mark.service),
    ]
)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Opens the same stream again and again, as processes that follow each other do."""
    made: list[EventStream] = []
    ledgers: list[Ledger] = []
    settings = GatewaySettings(home=tmp_path)
    if request.param == "redis":
        import redis

        url = request.getfixturevalue("redis_url")
        redis.Redis.from_url(url).flushall()
        settings = settings.model_copy(update={"gateway_stream": "redis", "redis_url": SecretStr(url)})
    elif request.param == "postgresql":
        url = request.getfixturevalue("new_postgres_ledger")()
        settings = settings.model_copy(update={"ledger_url": SecretStr(url)})

    def open_one() -> EventStream:
        ledgers.append(Ledger.open(settings))
        made.append(open_stream(settings, ledgers[-1]))
        return made[-1]

    yield open_one
    for stream in made:
        stream.close()
    for ledger in ledgers:
        ledger.close()


def read_all(stream: EventStream, most: int = 3) -> list[Batch]:
    batches: list[Batch] = []
    while (batch := stream.read(most, 0.05)) is not None:
        batches.append(batch)
    return batches


def texts(batches: Sequence[Batch]) -> list[bytes]:
    return [payload for batch in batches for payload in batch.payloads]


def test_what_is_not_acknowledged_comes_again(opened: Opened) -> None:
    stream = opened()
    payloads = [b"%d" % number for number in range(10)]
    stream.append(payloads[:4])
    stream.append(payloads[4:])
    assert stream.depth() == 10
    batches = read_all(stream)
    assert texts(batches) == payloads
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    stream.ack(batches[0])
    assert stream.read(3, 0.05) is None
    assert stream.depth() == 7
    # a process that dies leaves the rest to the next
    again = opened()
    again.restart()
    batches = read_all(again, 100)
    assert texts(batches) == payloads[3:]
    again.append([b"new"])
    assert texts(read_all(again)) == [b"new"]
    for batch in batches:
        again.ack(batch)
    assert again.read(3, 0.05) is None
    assert again.depth() == 1


def test_a_reader_wakes_when_something_comes(opened: Opened) -> None:
    stream = opened()
    started = time.monotonic()
    later = threading.Timer(0.1, lambda: stream.append([b"x"]))
    later.start()
    batch = stream.read(10, 30.0)
    later.join()
    assert batch is not None and batch.payloads == [b"x"]
    assert time.monotonic() - started < 20


def test_another_process_appends(opened: Opened) -> None:
    reader, writer = opened(), opened()
    reader.restart()
    writer.append([b"a"])
    batch = reader.read(10, 10.0)
    assert batch is not None
    reader.ack(batch)
    assert reader.read(10, 0.05) is None
    assert writer.depth() == 0


def test_several_append_at_once(opened: Opened) -> None:
    streams = [opened() for _ in range(3)]
    threads = [
        threading.Thread(
            target=lambda stream=stream, name=name: [stream.append([b"%d.%d" % (name, n)]) for n in range(20)]
        )
        for name, stream in enumerate(streams)
    ]
    for thread in threads:
        thread.start()
    found: list[bytes] = []
    until = time.monotonic() + 60
    while len(found) < 60 and time.monotonic() < until:
        if (batch := streams[0].read(7, 0.1)) is not None:
            found += batch.payloads
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(b"%d.%d" % (name, n) for name in range(3) for n in range(20))
    for name in range(3):
        own = [one for one in found if one.startswith(b"%d." % name)]
        assert own == sorted(own, key=lambda one: int(one.partition(b".")[2]))


def test_a_redis_that_forgets_is_refused(tmp_path: Path) -> None:
    with Ledger.open(GatewaySettings(home=tmp_path)) as ledger:
        settings = GatewaySettings(home=tmp_path, gateway_stream="redis")
        with pytest.raises(SettingsError, match="MAILHOUSE_REDIS_URL is not set"):
            open_stream(settings, ledger)


@pytest.mark.service
def test_a_redis_without_a_file_is_refused(redis_url: str, tmp_path: Path) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    settings = GatewaySettings(home=tmp_path, gateway_stream="redis", redis_url=SecretStr(redis_url))
    with Ledger.open(settings) as ledger:
        client.config_set("appendonly", "no")
        try:
            with pytest.raises(SettingsError, match="would lose events"):
                open_stream(settings, ledger)
        finally:
            client.config_set("appendonly", "yes")


def test_one_consumes(tmp_path: Path) -> None:
    first, second = FileLead(tmp_path / "l"), FileLead(tmp_path / "l")
    assert first.take() and first.take()
    assert not second.take()
    first.give_up()
    assert second.take()
    second.give_up()


@pytest.mark.service
def test_one_consumes_with_postgresql(new_postgres_ledger: Callable[[], str], tmp_path: Path) -> None:
    settings = GatewaySettings(home=tmp_path, ledger_url=SecretStr(new_postgres_ledger()))
    with Ledger.open(settings) as ledger, Ledger.open(settings) as other:
        first, second = lead_of(settings, ledger), lead_of(settings, other)
        assert first.take() and first.take()
        assert not second.take()
        first.give_up()
        assert second.take()
        assert not first.take()
        second.give_up()


def event(number: int) -> Event:
    return Event(f"e{number}", "page.viewed", 1, 1, email="a@b.c")


def test_the_appender_tells_everybody_and_takes_no_more_than_may_wait(tmp_path: Path) -> None:
    stream = SqliteStream(tmp_path / "s.db")
    appender = Appender(stream, Metrics(), limit=10)
    appender.start()
    threads = [threading.Thread(target=appender.append_now, args=([event(n)],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.depth() == 8
    import asyncio

    async def post() -> list[object]:
        return await asyncio.gather(
            appender.append([event(20), event(21)]), appender.append([event(22)]),
            appender.append([event(23)], is_promised=True), return_exceptions=True,
        )  # fmt: skip

    answers = asyncio.run(post())
    # two more fit, and what was promised goes beyond the limit
    assert [type(answer) for answer in answers] == [type(None), StreamFullError, type(None)]
    appender.stop()
    assert stream.depth() == 11
    with pytest.raises(StreamError, match="shutting down"):
        appender.append_now([event(99)])
    stream.close()


def test_a_disk_that_fails_is_said_to_those_who_wait(tmp_path: Path) -> None:
    stream = SqliteStream(tmp_path / "s.db")
    metrics = Metrics()
    appender = Appender(stream, metrics, limit=10)
    with sqlite3.connect(tmp_path / "s.db") as other:
        other.execute("create trigger no before insert on events begin select raise(abort, 'no room'); end")
    other.close()
    appender.start()
    with pytest.raises(StreamError, match="no room"):
        appender.append_now([event(1)])
    with sqlite3.connect(tmp_path / "s.db") as other:
        other.execute("drop trigger no")
    other.close()
    appender.append_now([event(1)])
    appender.stop()
    assert stream.depth() == 1
    assert b'failures_total{place="append"} 1.0' in metrics.text()
    stream.close()


def test_seen_calls_expire_and_are_shared(tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime(2026, 6, 27, tzinfo=UTC)
    settings = GatewaySettings(home=tmp_path)
    with Ledger.open(settings) as ledger, Ledger.open(settings) as other:
        first, second = LedgerSeenStore(ledger), LedgerSeenStore(other)
        assert not first.has("k", now)
        first.add("k", now + timedelta(hours=1))
        assert second.has("k", now)
        assert not second.has("k", now + timedelta(hours=2))
        second.add("k", now + timedelta(hours=3))
        assert first.has("k", now + timedelta(hours=2))
