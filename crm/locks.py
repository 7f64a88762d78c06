"""One load of a source at a time, on one machine.

Loads first look what is stored and then insert; two at once would both see nothing.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from warehouse.errors import MailhouseError

logger = logging.getLogger(__name__)


@contextmanager
def one_at_a_time(home: Path, source: str) -> Iterator[None]:
    """Wait until no other process loads this source, and keep others waiting meanwhile.

    The operating system gives the lock back when its holder dies, however it dies.

    Raises:
        MailhouseError: the lock's file cannot be written.
    """
    path = home / "locks" / f"source_{source}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("ab")
    except OSError as error:
        raise MailhouseError(
            f"{path} cannot be written: {error.strerror}.",
            fix="Make the home folder (MAILHOUSE_HOME) writable.",
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another process loads %s; waiting for it.", source)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
