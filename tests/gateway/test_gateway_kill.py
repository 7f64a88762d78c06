"""kill -9 of the gateway, the warehouse and Redis under load: every acknowledged event is in raw.events, once."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from gateway.keys import make_key
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import RunningServer, free_port
from warehouse.errors import MailhouseError
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

pytestmark = pytest.mark.slow
KEY, HASH = make_key()


class Town:
    """The real processes, each of which can be killed and started again."""

    def __init__(self, home: Path, ledger_url: str = "", *, has_redis: bool = False) -> None:
        self.settings = MailhouseSettings(home=home, warehouse_port=free_port())
        self.home, self.ledger_url, self.port = home, ledger_url, free_port()
        self.redis_port = free_port() if has_redis else 0
        self.redis = self.gateway = None
        self.warehouse: RunningServer | None = None
        self.start_redis()
        self.start_warehouse()
        self.start_gateway()

    def start_warehouse(self) -> None:
        self.warehouse = launcher.start(self.settings)
        with Warehouse.connect(self.settings) as connection:
            migrate(connection)

    def start_redis(self) -> None:
        if not self.redis_port:
            return
        (self.home / "redis").mkdir(exist_ok=True)
        self.redis = subprocess.Popen(
            ["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes",
             "--appendfsync", "always", "--dir", str(self.home / "redis")],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        import redis

        client = redis.Redis(port=self.redis_port)
        until(lambda: _answers(client.ping), 30)

    def start_gateway(self) -> None:
        environment = {
            **os.environ, "MAILHOUSE_HOME": str(self.home),
            "MAILHOUSE_WAREHOUSE_PORT": str(self.settings.warehouse_port),
            "MAILHOUSE_GATEWAY_KEYS": f'{{"web": "{HASH}"}}',
        }  # fmt: skip
        if self.ledger_url:
            environment["MAILHOUSE_LEDGER_URL"] = self.ledger_url
        if self.redis_port:
            environment["MAILHOUSE_GATEWAY_STREAM"] = "redis"
            environment["MAILHOUSE_REDIS_URL"] = f"redis://127.0.0.1:{self.redis_port}/0"
        with (self.home / "gateway.log").open("ab") as log:
            self.gateway = subprocess.Popen(
                [sys.executable, "-m", "gateway", "--port", str(self.port)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        url = f"http://127.0.0.1:{self.port}/healthz"
        until(lambda: _answers(lambda: httpx.get(url).raise_for_status()), 60)

    def kill(self, what: str) -> None:
        if what == "gateway":
            assert self.gateway is not None
            self.gateway.kill()
            self.gateway.wait()
            self.start_gateway()
        elif what == "warehouse":
            assert self.warehouse is not None
            os.kill(self.warehouse.pid, 9)
            until(lambda: self.warehouse is not None and self.warehouse.has_ended, 20)
            self.start_warehouse()
        else:
            assert self.redis is not None
            self.redis.kill()
            self.redis.wait()
            time.sleep(0.2)
            self.start_redis()

    def end(self) -> None:
        for process in (self.gateway, self.redis):
            if process is not None:
                process.terminate()
                process.wait(30)
        if self.warehouse is not None:
            self.warehouse.stop()


def _answers(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except Exception:
        return False
    return True


def until(what: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


class Callers:
    """Clients that post single events and batches, and send again what was not acknowledged."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/events"
        self.acknowledged: set[str] = set()
        self.tried: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()

    def _post(self, number: int) -> None:
        dice = random.Random(number)
        with httpx.Client(headers={"X-API-Key": KEY}, timeout=15) as client:
            for turn in itertools.count():
                if self._stop.is_set():
                    return
                ids = [f"{number}.{turn}.{part}" for part in range(dice.choice([1, 1, 5, 50]))]
                self.tried.update(ids)
                events = [{"type": "page.viewed", "email": "a@b.example", "event_id": one} for one in ids]
                while not self._stop.is_set():
                    try:
                        answer = client.post(self.url, json=events)
                    except httpx.HTTPError:
                        time.sleep(0.1)
                        continue
                    if answer.status_code == 202:
                        self.acknowledged.update(ids)
                        break
                    assert answer.status_code in (429, 503), answer.text
                    time.sleep(0.1)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def history(town: Town, targets: list[str], kills: int) -> None:
    dice = random.Random()
    callers = Callers(town.port)
    try:
        for number in range(kills):
            time.sleep(dice.uniform(0.3, 1.5))
            town.kill(targets[number % len(targets)])
        time.sleep(1)
    finally:
        callers.stop()
    assert len(callers.acknowledged) > 50
    with Warehouse.connect(town.settings) as warehouse:

        def stored() -> int:
            try:
                return int(warehouse.value("select uniqExact(event_id) from raw.events"))
            except MailhouseError:
                return 0

        until(lambda: stored() >= len(callers.acknowledged), 60)
        time.sleep(1)
        rows = warehouse.frame("select event_id, count() as number from raw.events group by event_id")
    found = dict(rows.iter_rows())
    assert callers.acknowledged - found.keys() == set(), "acknowledged and lost"
    assert {one: number for one, number in found.items() if number != 1} == {}, "stored twice"
    assert found.keys() <= callers.tried
    log = (town.home / "gateway.log").read_text()
    assert KEY not in log


def test_gateway_and_warehouse_are_killed(tmp_path: Path) -> None:
    town = Town(tmp_path)
    try:
        history(town, ["gateway", "warehouse"], 8)
        town.end()
        # a clean end leaves nothing to do
        assert town.gateway is not None and town.gateway.returncode in (0, -15)
        assert "Traceback" not in (tmp_path / "gateway.log").read_text()
    finally:
        town.end()


@pytest.mark.service
@pytest.mark.skipif(
    not shutil.which("redis-server"), reason="there is no Redis here: apt-get install redis-server"
)
def test_redis_is_killed_too(tmp_path: Path) -> None:
    town = Town(tmp_path, has_redis=True)
    try:
        history(town, ["redis", "gateway", "redis", "warehouse"], 8)
    finally:
        town.end()


@pytest.mark.service
def test_gateway_is_killed_with_postgresql(tmp_path: Path, new_postgres_ledger: Callable[[], str]) -> None:
    town = Town(tmp_path, new_postgres_ledger())
    try:
        history(town, ["gateway"], 4)
    finally:
        town.end()
