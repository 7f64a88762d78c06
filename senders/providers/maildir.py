"""Mail into a maildir folder: for the demo, for tests, and for looking at what would be sent.

The file's name derives from the message id, so delivering a message again replaces it by itself, and after a crash the
folder tells whether a message got there. Files are written under `tmp/`, flushed to disk, then renamed into `new/`: a
reader never sees half a message (https://cr.yp.to/proto/maildir.html).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from senders.message import Delivery, Message, Status
from senders.providers.base import Capabilities, Provider, ProviderUnavailableError
from senders.settings import SenderSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
_HOST = "mailhouse"
_FLUSHES = 8


class MaildirProvider(Provider):
    """Deliver into `folder`; the folder is made on the first delivery."""

    name = "maildir"
    capabilities = Capabilities(
        dispatch_window=1000, can_attach=True, can_invite=True, can_look_up=True, reaches_people=False
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> MaildirProvider:
        """The provider of the settings."""
        return cls(settings.maildir)

    def send(self, batch: Sequence[Message]) -> list[Delivery]:
        """Write every message; all are on disk when this returns."""
        if not batch:
            return []
        try:
            for part in ("tmp", "new", "cur"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProviderUnavailableError(
                f"The maildir {self.folder} cannot be made: {error.strerror}.",
                fix="Make its folder writable.",
            ) from error
        # a flush waits for the disk: several at once cost hardly more than one
        with ThreadPoolExecutor(_FLUSHES, thread_name_prefix="maildir") as pool:
            answers = list(pool.map(self._deliver, batch))
        if not any(answer.status == Status.SENT for answer in answers):
            raise ProviderUnavailableError(
                f"The maildir {self.folder} cannot be written: {answers[0].reply}.",
                fix="Free some space or make the folder writable, and send again; it goes on where it stopped.",
            )
        self._sync()
        return answers

    def _deliver(self, message: Message) -> Delivery:
        name = file_name(message.message_id)
        temporary = self.folder / "tmp" / name
        try:
            with temporary.open("wb", buffering=0) as file:
                file.write(message.raw)
                os.fsync(file.fileno())
            temporary.rename(self.folder / "new" / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            return Delivery(
                message.message_id,
                Status.FAILED,
                "deferred",
                reply=f"{error.strerror}",
                is_transient=True,
            )
        return Delivery(
            message.message_id, Status.SENT, provider_message_id=name, reply=f"stored as new/{name}"
        )

    def _sync(self) -> None:
        descriptor = os.open(self.folder / "new", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lookup(self, message_ids: Sequence[str]) -> Mapping[str, Delivery]:
        """Tell for every message: it is in the folder (`sent`), or it never got there (`failed`)."""
        found: dict[str, Delivery] = {}
        read = self._read_names() if message_ids else set()
        for message_id in message_ids:
            name = file_name(message_id)
            if name in read:
                found[message_id] = Delivery(
                    message_id, Status.SENT, provider_message_id=name, reply=f"found as {name}"
                )
            else:
                found[message_id] = Delivery(message_id, Status.FAILED, "deferred", reply="not in the folder")
        return found

    def _read_names(self) -> set[str]:
        """Names of all messages delivered; a mail reader moves them to `cur/` and appends flags after a colon."""
        return {
            entry.name.partition(":")[0]
            for part in ("new", "cur")
            if (self.folder / part).is_dir()
            for entry in os.scandir(self.folder / part)
        }


def file_name(message_id: str) -> str:
    """The file of a message, without folder and flags.

    Raises:
        ValueError: the id could not be a file name; derived ids always can.
    """
    if not _NAME.fullmatch(message_id):
        raise ValueError(f"{message_id!r} is no message id")
    return f"{message_id}.{_HOST}"
