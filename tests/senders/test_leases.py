"""Leases: one holder at a time, the dead are followed, the late commit nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sending import sender_settings

from senders.leases import LeaseTakenError, hold
from senders.ledger import Ledger
from senders.tables import leases

HOLDER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from sending import sender_settings
from senders.leases import hold
from senders.ledger import Ledger
settings = sender_settings(Path(sys.argv[1]), ledger_url=sys.argv[3] or None)
with Ledger.open(settings) as ledger, hold(ledger, "j") as lease:
    tick = lease.next_tick()
    lease.commit(tick)
    print(tick, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """Empty for SQLite in the home folder."""
    return "" if request.param == "sqlite" else request.getfixturevalue("new_postgres_ledger")()


def test_one_holds_it_and_whoever_follows_knows_what_was_committed(tmp_path: Path, ledger_url: str) -> None:
    with Ledger.open(sender_settings(tmp_path, ledger_url=ledger_url or None)) as ledger:
        with hold(ledger, "j") as lease:
            assert lease.committed() == 0
            first = lease.next_tick()
            lease.commit(first)
            with pytest.raises(LeaseTakenError, match="at work on j"), hold(ledger, "j"):
                pass
            with hold(ledger, "other") as other:
                assert other.committed() == 0
        with hold(ledger, "j") as lease:
            assert lease.committed() == first < lease.next_tick()


def test_who_lost_the_lease_commits_nothing(tmp_path: Path, ledger_url: str) -> None:
    with (
        Ledger.open(sender_settings(tmp_path, ledger_url=ledger_url or None)) as ledger,
        hold(ledger, "j") as lease,
    ):
        with ledger._writing() as connection:
            connection.execute(leases.update().values(token=leases.c.token + 1))
        with pytest.raises(LeaseTakenError, match="taken over"):
            lease.commit(lease.next_tick())
        with ledger._reading() as connection:
            assert connection.execute(sa.select(leases.c.committed)).scalar_one() == 0


@pytest.mark.slow
def test_a_living_process_keeps_it_and_a_killed_one_leaves_it(tmp_path: Path, ledger_url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), str(Path(__file__).parent), ledger_url],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    tick = int(process.stdout.readline())
    with Ledger.open(sender_settings(tmp_path, ledger_url=ledger_url or None)) as ledger:
        with pytest.raises(LeaseTakenError), hold(ledger, "j"):
            pass
        process.kill()
        process.communicate()
        with hold(ledger, "j") as lease:
            assert lease.committed() == tick < lease.next_tick()
