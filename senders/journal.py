"""What became of messages between two commits of the ledger, so that a crash leaves few of them in doubt.

The ledger learns of a window of messages before it goes and after it went. Before that, the coordinator notes in a
small file which messages come next, and in between whoever sends notes each of them there: about to be handed over,
accepted. So a message of which the ledger says that it may be on its way has a note in any case. Such notes cost next
to nothing and outlive the process, but not the machine: they count only as long as the same system runs. Whoever finds
them later knows of each message that was never handed over, and of each that was accepted; only those that were on
their way are `unknown`.

A file belongs to one process that sends. Its owner, the coordinator, writes which rows of the ledger a window holds;
the process writes one byte a row.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import secrets
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from senders.liveness import host, own_process, process_started_at
from senders.message import Delivery, Status

_log = logging.getLogger("mailhouse.journal")
_MAGIC = b"mailhouse journal 1\n"
_HEADER = struct.Struct("<20s200sQ40sQ40s")  # magic, host, owner and its start, sender and its start
_SLOT = struct.Struct("<QQQ")  # number of the window, 0 for none; rows; run
_SLOTS = 4  # more windows than one process holds, so that none is overwritten before it is in the ledger
_UNTOUCHED, _HANDED_OVER, _ACCEPTED = range(3)
#: Seconds that a process which was told to end may still take.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Journals:
    """Where the journals of one ledger lie.

    Attributes:
        ledger: what tells it from others whose journals lie in the same folder.
        rows: messages in one window at most.
    """

    folder: Path
    ledger: str
    rows: int

    def create(self) -> Journal | None:
        """A journal for another process; None, with a warning, where none can be made."""
        return Journal.create(self.folder, self.ledger, self.rows)


class Marks:
    """The notes of one window, for whoever hands its messages over."""

    def __init__(self, memory: mmap.mmap, at: int, message_ids: Sequence[str]) -> None:
        self._memory = memory
        self._places = {message_id: at + place for place, message_id in enumerate(message_ids)}

    def handed_over(self, message_id: str) -> None:
        """Called before anything leaves that could make the provider accept the message."""
        self._memory[self._places[message_id]] = _HANDED_OVER

    def accepted(self, message_id: str) -> None:
        """The provider has accepted the message."""
        self._memory[self._places[message_id]] = _ACCEPTED

    def refused(self, message_id: str) -> None:
        """The provider has certainly not accepted it after all."""
        self._memory[self._places[message_id]] = _UNTOUCHED

    def all_handed_over(self) -> None:
        """For providers that say nothing of each message."""
        for place in self._places.values():
            self._memory[place] = _HANDED_OVER


class Journal:
    """The file of one process that sends.

    Args:
        path: a file made by `create`.
        rows: messages in one window at most, as `create` was told.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self._rows = path, rows
        self._next = 0
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)

    @classmethod
    def create(cls, folder: Path, ledger: str, rows: int) -> Journal | None:
        """A new file in a folder; None, with a warning, where none can be made.

        Args:
            ledger: what tells the ledger from others whose journals lie in the same folder.
        """
        path = folder / f"{_label(ledger)}-{os.getpid()}-{secrets.token_hex(4)}.journal"
        size = _HEADER.size + _SLOTS * _slot_size(rows)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # all of it now: a full disk must not stop us half way, when we write into memory
                os.write(descriptor, bytes(size))
            finally:
                os.close(descriptor)
            return cls(path, rows)
        except OSError as error:
            _log.warning(
                "No journal in %s (%s): a crash leaves whole windows in doubt.", folder, error.strerror
            )
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None

    def belongs_to(self, process_id: int) -> None:
        """Say who sends; nothing counts before."""
        machine, owner, started_at = own_process()
        _HEADER.pack_into(
            self._memory, 0, _MAGIC, machine.encode()[:200], owner, started_at.encode()[:40],
            process_id, process_started_at(process_id).encode()[:40],
        )  # fmt: skip

    def begin(self, number: int, run_id: int, row_ids: Sequence[int]) -> int:
        """Note which rows a window holds, before the ledger says that it goes.

        Args:
            number: of the window, counted up from 1 over all journals of one owner.
            run_id: whose claims the rows are.

        Returns:
            The slot that it has.
        """
        if len(row_ids) > self._rows:
            raise ValueError(f"{len(row_ids)} rows in a window of {self._rows}")
        slot = self._next
        self._next = (slot + 1) % _SLOTS
        at = self._slot(slot)
        memory = self._memory
        # whoever is killed in here leaves a slot that says nothing
        _SLOT.pack_into(memory, at, 0, 0, 0)
        ids = at + _SLOT.size
        memory[ids : ids + 8 * len(row_ids)] = struct.pack(f"<{len(row_ids)}q", *row_ids)
        states = self._states(slot)
        memory[states : states + self._rows] = bytes(self._rows)
        _SLOT.pack_into(memory, at, number, len(row_ids), run_id)
        return slot

    def withdraw(self, slot: int) -> None:
        """The window begun last is not given out: its slot is free."""
        _SLOT.pack_into(self._memory, self._slot(slot), 0, 0, 0)
        self._next = slot

    def marks(self, slot: int, message_ids: Sequence[str]) -> Marks:
        """The notes of a window, message by message."""
        return Marks(self._memory, self._states(slot), message_ids)

    def found(self, slot: int, message_ids: Sequence[str], how: str) -> list[Delivery]:
        """What is known of a window whose sender has died.

        Args:
            how: it ended, for people.
        """
        begin = self._states(slot)
        states = self._memory[begin : begin + len(message_ids)]
        return [
            _delivery(message_id, state, how) for message_id, state in zip(message_ids, states, strict=True)
        ]

    def forget(self) -> None:
        """All is in the ledger."""
        self._memory.close()
        self.path.unlink(missing_ok=True)

    def read(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Run and row of the ledger -> number of the window and state, the newest of each row."""
        known: dict[tuple[int, int], tuple[int, int]] = {}
        for slot in range(_SLOTS):
            at = self._slot(slot)
            number, count, run_id = _SLOT.unpack_from(self._memory, at)
            if not number or count > self._rows:
                continue
            ids = struct.unpack_from(f"<{count}q", self._memory, at + _SLOT.size)
            begin = self._states(slot)
            for row_id, state in zip(ids, self._memory[begin : begin + count], strict=True):
                key = (run_id, row_id)
                known[key] = max(known.get(key, (0, 0)), (number, state))
        return known

    def _slot(self, slot: int) -> int:
        return _HEADER.size + slot * _slot_size(self._rows)

    def _states(self, slot: int) -> int:
        return self._slot(slot) + _SLOT.size + 8 * self._rows


def left_behind(folder: Path, ledger: str) -> tuple[dict[tuple[int, int], Delivery], list[Path]]:
    """What dead senders of this machine noted, by run and row of the ledger, and the files that say so.

    `sent`: accepted. `failed`: certainly not handed over. Rows that were on their way are left out. The files may go
    once the ledger knows.
    """
    known: dict[tuple[int, int], tuple[int, int]] = {}
    files: list[Path] = []
    for path in sorted(folder.glob(f"{_label(ledger)}-*.journal")):
        notes = _notes_of(path)
        if notes is None:
            continue
        files.append(path)
        for key, note in notes.items():
            known[key] = max(known.get(key, (0, 0)), note)
    how = "the sending process was killed"
    return {
        key: _delivery("", state, how) for key, (_, state) in known.items() if state != _HANDED_OVER
    }, files


def delete(files: Iterable[Path]) -> None:
    """Delete journals that have served."""
    for path in files:
        path.unlink(missing_ok=True)


def _notes_of(path: Path) -> dict[tuple[int, int], tuple[int, int]] | None:
    """What a file says; None if it says nothing, or those who write it may live."""
    try:
        size = path.stat().st_size
        rows = ((size - _HEADER.size) // _SLOTS - _SLOT.size) // 9
        if rows < 1 or size != _HEADER.size + _SLOTS * _slot_size(rows):
            return None
        journal = Journal(path, rows)
    except (OSError, ValueError):
        return None
    with contextlib.closing(journal._memory):
        magic, machine, owner, owner_start, sender, sender_start = _HEADER.unpack_from(journal._memory, 0)
        # a system that was started anew may have lost what was in memory only
        if magic != _MAGIC or machine.rstrip(b"\0").decode() != host():
            return None
        if _lives(owner, owner_start):
            return None
        deadline = time.monotonic() + _PATIENCE
        while _lives(sender, sender_start):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        return journal.read()


def _lives(process_id: int, started_at: bytes) -> bool:
    return process_started_at(process_id) == started_at.rstrip(b"\0").decode() != ""


def _delivery(message_id: str, state: int, how: str) -> Delivery:
    if state == _ACCEPTED:
        return Delivery(
            message_id, Status.SENT, provider_message_id=message_id, reply=f"accepted; then {how}"
        )
    if state == _UNTOUCHED:
        return Delivery(
            message_id, Status.FAILED, "deferred", reply=f"not handed over: {how}", is_transient=True
        )
    return Delivery(message_id, Status.UNKNOWN, reply=how)


def _slot_size(rows: int) -> int:
    # a multiple of eight
    return _SLOT.size + 8 * rows + (rows + 7) // 8 * 8


def _label(ledger: str) -> str:
    return hashlib.sha256(ledger.encode()).hexdigest()[:12]
