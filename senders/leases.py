"""Leases: of several processes one at a time does a thing, and one that was believed dead cannot go on.

A lease is a row of the ledger's database. Whoever takes it gets a token greater than all before (a fencing token);
every commit asks whether the token is still the newest, in the same statement that notes the commit. A holder on this
machine is dead when its process is; one on another when its heartbeat has been missing for the lease's time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import sqlalchemy as sa

from senders.ledger import Ledger, LedgerError
from senders.liveness import own_process, process_started_at
from senders.tables import leases
from warehouse.errors import MailhouseError

_TICKS = 2**24  # numbers that one holder may give
_held: set[tuple[str, str]] = set()
_held_lock = threading.Lock()


class LeaseTakenError(MailhouseError):
    """Another process holds the lease, or has taken it in the meantime."""


class Lease:
    """A lease that is held; made by `hold`."""

    def __init__(self, ledger: Ledger, name: str, token: int, committed: int) -> None:
        self._ledger, self.name, self.token = ledger, name, token
        self._committed = committed
        self._given = 0

    def next_tick(self) -> int:
        """A number greater than all that this and earlier holders have given."""
        self._given += 1
        if self._given >= _TICKS:
            raise LeaseTakenError(f"The lease {self.name} has given all its numbers.", fix="Take it anew.")
        return self.token * _TICKS + self._given

    def committed(self) -> int:
        """The number that was committed last, by whomever; 0 if none was."""
        return self._committed

    def commit(self, tick: int) -> None:
        """Note that what was done under a number counts.

        Raises:
            LeaseTakenError: the lease is another's by now; what was done does not count.
        """
        with self._ledger._writing() as connection:
            done = connection.execute(
                leases.update()
                .where(leases.c.name == self.name, leases.c.token == self.token)
                .values(committed=tick, heartbeat_at=time.time())
            )
        if done.rowcount != 1:
            raise LeaseTakenError(
                f"{self.name} has been taken over by another process.", fix="Let that one finish."
            )
        self._committed = tick

    def heartbeat(self) -> None:
        """Say that the holder lives."""
        with self._ledger._writing() as connection:
            connection.execute(
                leases.update()
                .where(leases.c.name == self.name, leases.c.token == self.token)
                .values(heartbeat_at=time.time())
            )


@contextlib.contextmanager
def hold(ledger: Ledger, name: str) -> Iterator[Lease]:
    """Hold a lease for as long as the block runs.

    Raises:
        LeaseTakenError: somebody else, who lives, holds it.
    """
    key = (ledger._place, name)
    with _held_lock:
        if key in _held:
            raise _taken(name)
        _held.add(key)
    try:
        lease = _take(ledger, name)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(lease, stop, ledger._lease), daemon=True)
        beat.start()
        try:
            yield lease
        finally:
            stop.set()
            beat.join()
            with contextlib.suppress(LedgerError):
                _give_back(ledger, lease)
    finally:
        with _held_lock:
            _held.discard(key)


def _beat(lease: Lease, stop: threading.Event, seconds: float) -> None:
    while not stop.wait(seconds / 4):
        with contextlib.suppress(LedgerError):
            lease.heartbeat()


def _take(ledger: Ledger, name: str) -> Lease:
    machine, process_id, started_at = own_process()
    values = {
        "host": machine, "process_id": process_id, "process_started_at": started_at, "heartbeat_at": time.time(),
    }  # fmt: skip
    with ledger._writing() as connection:
        # there from now on, so that two who come at once wait for each other at the next line
        connection.execute(_MAKE, {"name": name})
        row = connection.execute(_LOCKED, {"name": name}).one()
        is_own = (row.host, row.process_id, row.process_started_at) == (machine, process_id, started_at)
        # a lease of this very process is not held by it any more: `hold` has looked
        if row.host and not is_own and _is_alive(row, machine, ledger._lease):
            raise _taken(name)
        connection.execute(leases.update().where(leases.c.name == name).values(token=row.token + 1, **values))
    return Lease(ledger, name, row.token + 1, row.committed)


def _is_alive(row: sa.Row, machine: str, seconds: float) -> bool:
    if row.host != machine:
        return time.time() - row.heartbeat_at < seconds
    return process_started_at(row.process_id) == row.process_started_at != ""


def _give_back(ledger: Ledger, lease: Lease) -> None:
    with ledger._writing() as connection:
        connection.execute(
            leases.update()
            .where(leases.c.name == lease.name, leases.c.token == lease.token)
            .values(host="", process_id=0, process_started_at="")
        )


def _taken(name: str) -> LeaseTakenError:
    return LeaseTakenError(f"Another process is at work on {name}.", fix="Let it finish, then try again.")


_MAKE = sa.text(
    "insert into leases (name, token, committed, host, process_id, process_started_at, heartbeat_at) "
    "values (:name, 0, 0, '', 0, '', 0) on conflict (name) do nothing"
)
# the update holds the row until the transaction is done, on PostgreSQL too
_LOCKED = sa.text(
    "update leases set token = token where name = :name "
    "returning token, committed, host, process_id, process_started_at, heartbeat_at"
)
