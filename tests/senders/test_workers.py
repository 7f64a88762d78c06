"""Worker processes: each message once, whoever dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sending import audience, plan, recipients, send_all, sender_settings, write_content

from senders.ledger import Ledger
from senders.message import Status
from senders.rendering import TemplateLibrary
from senders.rows import Rows
from senders.settings import SenderSettings
from senders.workers import Processes, Window, WorkerError

CHILD = Path(__file__).parent / "sending.py"
THING = ("campaign", "offer", "2026-06-27T09:00:00Z")


@pytest.fixture
def settings(tmp_path: Path) -> SenderSettings:
    write_content(tmp_path / "content")
    return sender_settings(tmp_path)


def windows(people: int, rows: int) -> list[Window]:
    return [
        Window(
            frame["contact_id"].to_list(),
            [f"00000000-0000-5000-8000-{n:012d}" for n in frame["contact_id"]],
            Rows.of(frame),
        )
        for frame in audience(people, rows=rows)
    ]


def processes(settings: SenderSettings, count: int) -> Processes:
    columns = next(audience(1)).columns
    template = TemplateLibrary.load(settings.content_dir / "templates", columns).template(
        "offer", subject=plan().subject
    )
    return Processes(count, plan(), settings, template, "maildir")


def test_workers_send_each_once(settings: SenderSettings) -> None:
    summary = send_all(settings, 1500, rows=400, workers=2)
    assert summary.sent == 1500
    assert Counter(recipients(settings.maildir)) == Counter(f"person{n}@example.com" for n in range(1, 1501))
    with Ledger.open(settings) as ledger:
        assert ledger.counts(*THING) == {"sent": 1500}
    assert send_all(settings, 1500, workers=2).already_claimed == 1500


def test_what_a_dead_worker_held_is_unknown_and_another_goes_on(settings: SenderSettings) -> None:
    first, second, third = windows(30, 10)
    with processes(settings, 1) as workers:
        assert workers.is_free and not workers.is_busy
        workers.give(first)
        workers.give(second)
        assert not workers.is_free
        (window, answer), *_ = workers.answers(wait=True)
        assert window is first
        assert [one.status for one in answer.deliveries] == [Status.SENT] * 10
        assert answer.subjects[0] == "For Zoë 1"
        (process,) = workers.processes
        os.kill(process.process.pid, signal.SIGSTOP)
        workers.give(third)
        os.kill(process.process.pid, signal.SIGKILL)
        lost = []
        while workers.is_busy:
            lost += workers.answers(wait=True)
        outcomes = {id(window): {one.status for one in answer.deliveries} for window, answer in lost}
        assert outcomes[id(third)] == {Status.UNKNOWN}
        workers.give(third)
        ((window, answer),) = workers.answers(wait=True)
        assert {one.status for one in answer.deliveries} == {Status.SENT}


def test_workers_that_die_again_and_again_end_the_send(settings: SenderSettings) -> None:
    (window,) = windows(1, 1)
    with processes(settings, 1) as workers:
        for _ in range(4):
            (process,) = workers.processes
            process.process.kill()
            workers.give(window)
            assert [one.status for _, one in workers.answers(wait=True) for one in one.deliveries] == [
                Status.UNKNOWN
            ]
        with pytest.raises(WorkerError, match="died"):
            workers.give(window)


@pytest.mark.slow
def test_workers_end_with_their_coordinator(tmp_path: Path, settings: SenderSettings) -> None:
    people = 3000
    chance = random.Random()
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, str(CHILD), str(tmp_path), str(people), "", "2"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        delivered = len(list((settings.maildir / "new").glob("*")))
        while len(list((settings.maildir / "new").glob("*"))) == delivered and process.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.3))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = children.read_text().split() if children.exists() and process.poll() is None else []
        process.kill()
        process.wait()
        process.stdout.close()
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in workers):
            assert time.monotonic() < deadline, "a worker outlives its coordinator"
            time.sleep(0.02)
    assert send_all(settings, people, workers=2).seen == people
    got = Counter(recipients(settings.maildir))
    assert len(got) == people and set(got.values()) == {1}


def _is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
