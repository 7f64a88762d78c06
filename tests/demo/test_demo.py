"""`mailhouse demo` as a newcomer runs it, twice: the second time sends nothing."""

from __future__ import annotations

import email
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MAILHOUSE = Path(sys.executable).parent / "mailhouse"


def mailhouse(home: Path, *args: str) -> str:
    """What the command prints; fails the test unless it exits 0."""
    ended = subprocess.run(
        [str(MAILHOUSE), *args],
        env={**os.environ, "MAILHOUSE_HOME": str(home), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def recipients(home: Path) -> Counter[tuple[str, str]]:
    """Campaign and address of every message delivered."""
    return Counter(
        (message["List-Id"], message["Delivered-To"])
        for message in (
            email.message_from_bytes(path.read_bytes()) for path in (home / "demo/mailboxes/new").iterdir()
        )
    )


def test_the_demo_runs_and_running_it_again_sends_nothing(tmp_path: Path) -> None:
    first = mailhouse(tmp_path, "demo")
    for fact in ("12,468", "2,974", "67,225", "4,350", "168,662, 8,589, 2,931", "£3,888,971.74"):
        assert fact in first
    delivered = recipients(tmp_path)
    assert len(delivered) > 1_000 and set(delivered.values()) == {1}
    page = (tmp_path / "demo/output/report.html").read_text()
    assert "simulated" in page and "win back" in page
    assert "likely to buy: " in page and "lifetime value" in page

    mailhouse(tmp_path, "demo")
    assert recipients(tmp_path) == delivered

    message_id = first.partition("--demo why ")[2].split()[0]
    assert "It was sent" in mailhouse(tmp_path, "--demo", "why", message_id)
    assert "Nothing was changed" in mailhouse(
        tmp_path, "--demo", "send", "--campaign", "win_back", "--dry-run"
    )
