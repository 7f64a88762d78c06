"""`mailhouse` as a person gives it on the command line, in this process."""

from __future__ import annotations

import io
import sys

import pytest

from mailhouse.cli import main


def mailhouse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str, answer: str = ""
) -> tuple[int, str]:
    """Exit code, and all that it said on one line.

    Args:
        answer: what is typed when it asks.
    """
    monkeypatch.setattr(sys, "argv", ["mailhouse", *args])
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())
