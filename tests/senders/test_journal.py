"""Journals: what they say of a dead sender, and when they say nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from senders import journal as module
from senders.journal import Journal, Journals, delete, left_behind
from senders.message import Status

ROWS = 5
WRITER = """
import os, sys
from pathlib import Path
from senders.journal import Journals
made = Journals(Path(sys.argv[1]), "ledger", 5).create()
made.belongs_to(os.getpid())
for number, first in ((1, 10), (2, 20), (3, 10)):
    slot = made.begin(number, 7, range(first, first + 5))
    marks = made.marks(slot, list("abcde"))
    if number == 1:
        marks.all_handed_over()
    marks.handed_over("b")
    marks.handed_over("c")
    marks.accepted("c")
    marks.handed_over("d")
    marks.refused("d")
os.kill(os.getpid(), 9)
"""


def written(folder: Path) -> None:
    """A journal of a process that was killed."""
    done = subprocess.run([sys.executable, "-c", WRITER, str(folder)], check=False)
    assert done.returncode == -9


def test_a_dead_sender_has_said_what_it_did(tmp_path: Path) -> None:
    written(tmp_path)
    notes, files = left_behind(tmp_path, "ledger")
    # the newest window of a row counts: in the first, all of these were on their way
    assert {key: delivery.status for key, delivery in notes.items() if key[1] < 20} == {
        (7, 10): Status.FAILED, (7, 12): Status.SENT, (7, 13): Status.FAILED, (7, 14): Status.FAILED,
    }  # fmt: skip
    assert (7, 21) not in notes and notes[7, 22].status == Status.SENT
    assert left_behind(tmp_path, "another ledger") == ({}, [])
    delete(files)
    assert left_behind(tmp_path, "ledger") == ({}, [])


def test_notes_do_not_outlive_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.setattr(module, "host", lambda: "the same machine, started anew")
    assert left_behind(tmp_path, "ledger") == ({}, [])


def test_the_living_are_left_alone(tmp_path: Path) -> None:
    made = Journals(tmp_path, "ledger", ROWS).create()
    assert made is not None
    made.belongs_to(os.getpid())
    made.begin(1, 7, [1, 2])
    assert left_behind(tmp_path, "ledger") == ({}, [])
    made.forget()
    assert not list(tmp_path.iterdir())


def test_a_sender_that_does_not_end_is_waited_for_and_then_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    (path,) = tmp_path.iterdir()
    with subprocess.Popen(["sleep", "60"]) as living:
        journal = Journal(path, ROWS)
        started = module.process_started_at(living.pid).encode()
        module._HEADER.pack_into(
            journal._memory, 0, module._MAGIC, module.host().encode(), 1 << 30, b"", living.pid, started
        )
        monkeypatch.setattr(module, "_PATIENCE", 0.1)
        assert left_behind(tmp_path, "ledger") == ({}, [])
        living.kill()
    assert left_behind(tmp_path, "ledger")[1] == [path]


def test_damaged_files_say_nothing(tmp_path: Path) -> None:
    written(tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert left_behind(tmp_path, "ledger") == ({}, [])
    path.write_bytes(b"x" + content[1:])
    assert left_behind(tmp_path, "ledger") == ({}, [])


def test_where_none_can_be_made_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "journals").write_text("in the way")
    assert Journals(tmp_path / "journals", "ledger", ROWS).create() is None
    assert "a crash leaves whole windows in doubt" in caplog.text


@given(rows=st.integers(1, 2000))
def test_a_file_knows_how_many_rows_it_holds(rows: int) -> None:
    slot = module._slot_size(rows)
    assert (slot - module._SLOT.size) // 9 == rows


def test_what_was_reserved_and_never_given_out_goes_again(tmp_path: Path) -> None:
    script = WRITER.partition("for number")[0] + (
        "made.begin(1, 7, [10, 11]); made.withdraw(made.begin(2, 7, [20])); made.begin(3, 7, [30]); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    notes, _ = left_behind(tmp_path, "ledger")
    assert {key: delivery.status for key, delivery in notes.items()} == dict.fromkeys(
        [(7, 10), (7, 11), (7, 30)], Status.FAILED
    )
