"""Bad input gets one message that names the place and the fix, and exit code 2."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest

from mailhouse.cli import main
from warehouse.embedded.launcher import free_port
from warehouse.settings import PROJECT_ROOT


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the content folder that the command works on, in a home of its own, without a warehouse."""
    shutil.copytree(PROJECT_ROOT / "content", tmp_path / "content")
    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(tmp_path / "content"))
    monkeypatch.setenv("MAILHOUSE_HOME", str(tmp_path / "home"))
    return tmp_path / "content"


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The error of a command that must end with code 2, on one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mailhouse", *args])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("Error") and "Traceback" not in error
    return error


def test_a_misspelt_setting_is_named_with_the_nearest(
    content: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILHOUSE_SMPT_URL", "smtp://127.0.0.1")
    error = fails(capsys, "doctor")
    assert "MAILHOUSE_SMPT_URL" in error and "MAILHOUSE_SMTP_URL" in error


def test_the_demo_wants_no_warehouse_of_yours(
    content: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_URL", "http://127.0.0.1:1")
    assert "Unset MAILHOUSE_WAREHOUSE_URL" in fails(capsys, "demo")


def test_no_demo_yet(content: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "mailhouse demo" in fails(capsys, "--demo", "doctor")


def test_a_warehouse_that_is_down(
    content: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_URL", "http://someone:secret-word@127.0.0.1:1")
    error = fails(capsys, "send", "--campaign", "win_back")
    assert "does not answer at http://127.0.0.1:1" in error and "secret-word" not in error


def test_a_taken_port(
    content: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        monkeypatch.setenv("MAILHOUSE_DAGSTER_PORT", str(port))
        error = fails(capsys, "up")
    assert f"Port {port}" in error and "MAILHOUSE_DAGSTER_PORT" in error


def test_an_unknown_campaign_is_answered_with_the_nearest(
    content: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_PORT", str(free_port()))
    assert "win_back" in fails(capsys, "send", "--campaign", "win_bak")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("segment: at_risk", "segment: at_rsk", "at_risk"),
        ("audience:", "audiense:", "audience"),
        ("template: win_back", "template: win_bac", "win_back"),
        ('cron: "0 9 * * mon"', 'cron: "99 9 * * mon"', "five fields"),
    ],
)
def test_a_mistake_in_a_campaign_names_file_line_and_remedy(
    content: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    expected: str,
) -> None:
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_PORT", str(free_port()))
    path = content / "campaigns" / "win_back.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    error = fails(capsys, "send", "--campaign", "win_back")
    assert "win_back.yaml:" in error and expected in error
