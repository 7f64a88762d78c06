"""kill -9 at random instants, with real processes, a real folder and a real SMTP server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from sending import recipients, send_all, sender_settings, write_content

from senders.ledger import Ledger
from senders.message import Status
from senders.retries import RetryPolicy
from warehouse.embedded.launcher import free_port
from warehouse.errors import MailhouseError

CHILD = Path(__file__).parent / "sending.py"
THING = ("campaign", "offer", "2026-06-27T09:00:00Z")


class Box:
    """A server that keeps who got what."""

    def __init__(self) -> None:
        self.got: Counter[str] = Counter()
        self.ids: set[str] = set()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = (envelope.original_content or b"").partition(b"Message-ID: <")[2].partition(b"@")[0]
        self.got[envelope.rcpt_tos[0]] += 1
        self.ids.add(content.decode())
        return "250 2.0.0 ok"


@pytest.fixture
def box() -> Iterator[tuple[Box, str]]:
    port = free_port()
    taken = Box()
    controller = Controller(taken, hostname="127.0.0.1", port=port)
    controller.start()
    yield taken, f"smtp://127.0.0.1:{port}"
    controller.stop()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """Empty for SQLite in the home folder."""
    return "" if request.param == "sqlite" else request.getfixturevalue("new_postgres_ledger")()


def run_and_kill(home: Path, people: int, url: str, after: float, ledger_url: str = "") -> bool:
    """Start a sender, kill it so many seconds after it began; whether it was still at work."""
    process = subprocess.Popen(
        [sys.executable, str(CHILD), str(home), str(people), url, "0", ledger_url], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(after)
    was_alive = process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    return was_alive


def maildir_history(home: Path, ledger_url: str, people: int, kills: int, longest: float) -> int:
    """Kill a sender so many times, let one finish: each person must have got it exactly once. Returns the kills."""
    write_content(home / "content")
    settings = sender_settings(home, ledger_url=ledger_url or None)
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    killed = sum(
        run_and_kill(home, people, "", chance.uniform(0.02, longest), ledger_url) for _ in range(kills)
    )
    summary = send_all(settings, people)
    got = Counter(recipients(settings.maildir))
    assert set(got) == {f"person{n}@example.com" for n in range(1, people + 1)}, f"seed {seed}"
    assert set(got.values()) == {1}, f"seed {seed}"
    with Ledger.open(settings) as ledger:
        assert ledger.counts(*THING) == {"sent": people}
        changes = ledger.changes_to_export(people * 3)
        assert len({change["message_id"] for change in changes if change["status"] == "sent"}) == people
        assert {f"{change['message_id']}.mailhouse" for change in changes} == {
            file.name for file in (settings.maildir / "new").iterdir()
        }
    assert summary.seen == people
    assert send_all(settings, people).already_claimed == people
    return killed


def smtp_history(
    home: Path, ledger_url: str, box: tuple[Box, str], people: int, kills: int, longest: float
) -> int:
    """The same against a server that cannot be asked: nothing twice, few unknown, none lost. Returns the real kills."""
    taken, url = box
    taken.got.clear()
    taken.ids.clear()
    write_content(home / "content")
    settings = sender_settings(home, provider="smtp", smtp_url=url, ledger_url=ledger_url or None)
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    killed = sum(
        run_and_kill(home, people, url, chance.uniform(0.1, longest), ledger_url) for _ in range(kills)
    )
    send_all(settings, people)
    assert set(taken.got.values()) == {1}, f"seed {seed}"
    with Ledger.open(settings) as ledger:
        counts = ledger.counts(*THING)
        unknown = ledger.unknown_message_ids()
        # at most one message a connection and kill: the others are in the journal
        most = killed * settings.smtp_connections
        assert counts["unknown"] == len(unknown) <= most, f"seed {seed}"
        assert counts["sent"] + counts["unknown"] == people
        # whoever is recorded as sent did get it, and whoever did not get it is unknown, not lost
        assert len(taken.got) >= counts["sent"]
        assert people - len(taken.got) <= len(unknown)
        # the provider's events tell of those that went
        settled = ledger.settle({one: Status.SENT for one in unknown if one in taken.ids}, settings.now())
        assert settled.total() == len(set(unknown) & taken.ids)
        assert ledger.counts(*THING)["sent"] == len(taken.got)
    # and a rerun sends nothing more
    send_all(settings, people)
    assert set(taken.got.values()) == {1}, f"seed {seed}"
    return killed


def test_maildir_each_exactly_once(tmp_path: Path, ledger_url: str) -> None:
    assert maildir_history(tmp_path, ledger_url, 1500, 3, 0.35) >= 2, "too few to be interrupted"


def test_smtp_nothing_twice_and_few_unknown(tmp_path: Path, ledger_url: str, box: tuple[Box, str]) -> None:
    assert smtp_history(tmp_path, ledger_url, box, 1500, 3, 0.6) >= 2, "too few to be interrupted"


@pytest.mark.slow
def test_a_killed_worker_leaves_few_unknown(tmp_path: Path, box: tuple[Box, str]) -> None:
    """kill -9 of worker processes in the midst: the run goes on, nothing goes twice, what went is known."""
    taken, url = box
    people, killed = 1500, 0
    write_content(tmp_path / "content")
    settings = sender_settings(tmp_path, provider="smtp", smtp_url=url)
    process = subprocess.Popen(
        [sys.executable, str(CHILD), str(tmp_path), str(people), url, "2"], stdout=subprocess.DEVNULL
    )
    for share in (0.2, 0.5):
        while len(taken.got) < people * share and process.poll() is None:
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = children.read_text().split() if process.poll() is None else []
        if workers:
            os.kill(int(random.choice(workers)), signal.SIGKILL)
            killed += 1
    assert process.wait(120) == 0
    assert killed, "too quick to be interrupted"
    assert set(taken.got.values()) == {1}
    with Ledger.open(settings) as ledger:
        counts, unknown = ledger.counts(*THING), ledger.unknown_message_ids()
    assert counts["unknown"] <= killed * settings.smtp_connections // 2
    assert counts["sent"] + counts["unknown"] == people
    assert len(taken.ids - set(unknown)) == counts["sent"]
    assert not list((settings.home / "journals").iterdir())


def two_at_once(home: Path, ledger_url: str, people: int) -> None:
    """Two senders of the same thing, one of which is killed: the other one may not send what the first had begun."""
    write_content(home / "content")
    arguments = [sys.executable, str(CHILD), str(home), str(people), "", "0", ledger_url]
    pair = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL) for _ in range(2)]
    time.sleep(random.uniform(0.7, 1.6))
    pair[0].kill()
    pair[0].wait()
    assert pair[1].wait(120) == 0
    settings = sender_settings(home, ledger_url=ledger_url or None)
    send_all(settings, people)
    got = Counter(recipients(settings.maildir))
    assert (len(got), set(got.values())) == (people, {1})


def test_two_senders_at_once_one_killed(tmp_path: Path, ledger_url: str) -> None:
    two_at_once(tmp_path, ledger_url, 1000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills(
    tmp_path: Path, ledger_url: str, box: tuple[Box, str], request: pytest.FixtureRequest
) -> None:
    """Twenty-five senders die on each database, at random instants."""
    for history in range(5):
        fresh = ledger_url and request.getfixturevalue("new_postgres_ledger")()
        maildir_history(tmp_path / f"maildir{history}", fresh, 1200, 3, 0.5)
    for history in range(5):
        fresh = ledger_url and request.getfixturevalue("new_postgres_ledger")()
        smtp_history(tmp_path / f"smtp{history}", fresh, box, 1200, 2, 0.5)


def test_a_full_disk_loses_and_doubles_nothing(tmp_path: Path) -> None:
    people = 300
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        write_content(tmp_path / "content")
        settings = sender_settings(disk, content_dir=tmp_path / "content")
        with pytest.raises(MailhouseError, match=r"full|No space"):
            send_all(settings, people, rows=50, retry=RetryPolicy(attempts=1))
        before = len(recipients(settings.maildir))
        assert 0 < before < people
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        send_all(settings, people)
        assert sorted(recipients(settings.maildir)) == sorted(
            f"person{n}@example.com" for n in range(1, people + 1)
        )
        with Ledger.open(settings) as ledger:
            assert ledger.counts(*THING) == {"sent": people}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
