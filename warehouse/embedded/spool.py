"""Where an INSERT's data waits until it is whole: in memory while it is small, else in a nameless file on the disk."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from warehouse.embedded.errors import NOT_ENOUGH_SPACE, ServerError

_IN_MEMORY = 8 << 20  # bytes


class DataFile:
    """Bytes that the engine can read by a path, gone when closed and when the process dies.

    Args:
        folder: takes what is too large for memory; on the data's own disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._size = 0
        self._is_on_disk = sys.platform != "linux"
        self._file: IO[bytes] = self._on_disk() if self._is_on_disk else _in_memory()

    @property
    def path(self) -> str:
        """Where the engine finds it; everything written so far is there."""
        self._file.flush()
        return f"/proc/self/fd/{self._file.fileno()}" if sys.platform == "linux" else self._file.name

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            ServerError: the disk is full.
        """
        self._size += len(data)
        try:
            if not self._is_on_disk and self._size > _IN_MEMORY:
                self._move_to_disk()
            self._file.write(data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                raise ServerError(
                    NOT_ENOUGH_SPACE, "Cannot keep the request body: not enough space"
                ) from None
            raise

    def _on_disk(self) -> IO[bytes]:
        if sys.platform == "linux":
            return tempfile.TemporaryFile(dir=self._folder)
        return tempfile.NamedTemporaryFile(dir=self._folder)

    def _move_to_disk(self) -> None:
        small, self._file = self._file, self._on_disk()
        self._is_on_disk = True
        small.seek(0)
        while block := small.read(1 << 20):
            self._file.write(block)
        small.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _in_memory() -> IO[bytes]:
    return os.fdopen(os.memfd_create("insert"), "w+b")
