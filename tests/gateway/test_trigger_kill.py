"""kill -9 of a gateway's consumer at random instants: no trigger sends twice, none is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from trigger_world import SEND, START, build, drop, people, received, sender_settings, write_content

from gateway.triggers import TriggerHandler
from senders.ledger import Ledger
from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings

CHILD = Path(__file__).parent / "trigger_world.py"
TOTAL = 120


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_nine_sends_each_once(
    warehouse: Warehouse, warehouse_server: MailhouseSettings, tmp_path: Path
) -> None:
    build(warehouse)
    people(warehouse, TOTAL)
    write_content(tmp_path / "content", cart="event: cart.updated\nwhen: event.value > 50\n" + SEND)
    settings = sender_settings(warehouse_server, tmp_path)
    with Ledger.open(settings):
        pass
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    command = [sys.executable, str(CHILD), str(tmp_path), str(warehouse_server.warehouse_port), str(TOTAL)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.02, 0.5))
        was_alive = process.poll() is None
        process.kill()
        process.wait()
        process.stdout.close()
        kills += was_alive
        if kills >= 6 or not was_alive:
            break
    assert kills >= 2, f"too few to be interrupted, seed {seed}"
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    now = START + timedelta(hours=3)
    with (
        Ledger.open(settings) as ledger,
        TriggerHandler(settings, ledger, warehouse, is_inline=True, clock=lambda: now) as handler,
    ):
        handler.tick(now)
        handler.tick(now)
        counts = ledger.counts("trigger", "cart", "e0")
        assert counts.total() == 1
        assert handler.firings.counts(START)["cart"] == {"fired": TOTAL}, f"seed {seed}"
    # the maildir can be asked what it has, so that nothing stays unknown
    assert received(settings) == {f"p{n}@example.com": 1 for n in range(1, TOTAL + 1)}, f"seed {seed}"
    drop(warehouse)
