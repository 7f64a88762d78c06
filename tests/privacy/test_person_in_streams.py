"""Events of a person on their way into the warehouse, in each kind of stream."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.settings import GatewaySettings
from gateway.streams import open_stream
from privacy import streams
from privacy.person import Person
from senders.ledger import Ledger
from warehouse.embedded.launcher import free_port

PERSON = Person(emails={"ann@example.com"})


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no Redis here; `apt-get install -y redis-server` brings it")
    import redis

    port = free_port()
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always"],
        cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(200):
        try:
            redis.Redis(port=port).ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait(30)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=[pytest.mark.service, pytest.mark.slow]),
        pytest.param("redis", marks=[pytest.mark.service, pytest.mark.slow]),
    ]
)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> GatewaySettings:
    if request.param == "postgresql":
        url = SecretStr(request.getfixturevalue("new_postgres_ledger")())
        return GatewaySettings(home=tmp_path, ledger_url=url)
    if request.param == "redis":
        url = SecretStr(request.getfixturevalue("redis_url"))
        return GatewaySettings(home=tmp_path, gateway_stream="redis", redis_url=url)
    return GatewaySettings(home=tmp_path)


def test_events_of_the_person_go_and_others_stay_in_their_order(settings: GatewaySettings):
    payloads = [
        b'{"email": "Ann@example.com", "n": %d}' % n if n % 3 == 0 else b"other %d" % n for n in range(9)
    ]
    with Ledger.open(settings) as ledger:
        stream = open_stream(settings, ledger)
        stream.append(payloads)
        # read, and not dealt with yet
        assert stream.read(2, 0.5) is not None
        assert sum(streams.counts(settings, ledger, PERSON).values()) == 3
        assert len(list(streams.waiting(settings, ledger, PERSON))) == 3
        assert sum(streams.erase(settings, ledger, PERSON).values()) == 3
        assert streams.counts(settings, ledger, PERSON) == {}
        stream.restart()
        found: list[bytes] = []
        while (batch := stream.read(100, 0.3)) is not None:
            found += batch.payloads
        assert found == [one for one in payloads if one.startswith(b"other")]
        stream.close()
