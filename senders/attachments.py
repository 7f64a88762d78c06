"""Files that go with a message: named in a campaign or at the head of a template, checked when it is loaded.

They lie in `content/attachments/`. A calendar file (`.ics`) is sent as `text/calendar` with its own method, so that
mail programs offer to take the date over.
"""

from __future__ import annotations

import binascii
import functools
import hashlib
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from senders.merge_tags import TemplateError

#: Bytes that all attachments of a message may have together; many servers refuse mail above 10 MB, encoded.
LARGEST = 7_000_000
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,100}")
# what mailboxes refuse whoever sends it
_REFUSED = frozenset(
    (".ade", ".adp", ".apk", ".bat", ".chm", ".cmd", ".com", ".cpl", ".dll", ".exe", ".hta", ".iso", ".jar", ".js",
     ".jse", ".lib", ".lnk", ".msc", ".msi", ".msp", ".ps1", ".scr", ".sct", ".sh", ".sys", ".vb", ".vbe", ".vbs",
     ".vxd", ".wsc", ".wsf", ".wsh")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attachment:
    """One file that goes with every message of a send.

    Attributes:
        name: as the recipient sees it.
        content_type: such as `application/pdf`, or `text/calendar; charset="utf-8"; method=PUBLISH`.
    """

    name: str
    content_type: str
    content: bytes

    @property
    def version(self) -> str:
        """Changes with what is sent."""
        return f"{self.name}:{self.content_type}:{hashlib.sha256(self.content).hexdigest()}"

    @property
    def media_type(self) -> str:
        """The content type without its parameters, which APIs do not take."""
        return self.content_type.partition(";")[0]

    @property
    def is_invitation(self) -> bool:
        """Whether it is a calendar file that asks for an answer: the content type must say its method (RFC 6047)."""
        method = re.search(r"; method=([A-Z]+)", self.content_type)
        return self.media_type == "text/calendar" and method is not None and method[1] != "PUBLISH"

    def part(self) -> bytes:
        """The body part with its header, base64; the last line is without line end."""
        encoded = binascii.b2a_base64(self.content, newline=False)
        name = self.name.replace("\\", "\\\\").replace('"', '\\"')
        # RFC 2231 where the name is not ASCII
        shown = f'filename="{name}"' if name.isascii() else f"filename*=utf-8''{quote(self.name, safe='')}"
        header = (
            f"Content-Type: {self.content_type}\r\nContent-Transfer-Encoding: base64\r\n"
            f"Content-Disposition: attachment; {shown}\r\n\r\n"
        )
        lines = [encoded[at : at + 76] for at in range(0, len(encoded), 76)]
        return header.encode("ascii") + b"\r\n".join(lines)


@functools.lru_cache(maxsize=16)
def base64_of(attachment: Attachment) -> str:
    """The content as APIs take it; made once for all messages."""
    return binascii.b2a_base64(attachment.content, newline=False).decode()


def load_attachments(names: Sequence[str], folder: Path, place: str) -> tuple[Attachment, ...]:
    """Read attachments.

    Args:
        names: paths in the folder.
        place: where they are named, for messages.

    Raises:
        TemplateError: a file is missing, outside the folder, too large, refused by mailboxes, or no calendar.
    """
    # whoever only sends needs none of it
    from warehouse.yaml_specs import nearest

    found: list[Attachment] = []
    for name in names:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise TemplateError(
                f"{place}: attachment {name!r} leaves {folder.name}/.", fix="Move the file into the folder."
            )
        if not path.is_file():
            there = [str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()]
            raise TemplateError(
                f"{place}: there is no attachment {name!r} in content/{folder.name}.",
                fix=nearest(name, sorted(there)) or f"Put the file into content/{folder.name}.",
            )
        if path.suffix.lower() in _REFUSED or not _NAME.fullmatch(path.name):
            raise TemplateError(
                f"{place}: mailboxes refuse an attachment named {path.name!r}.",
                fix="Send a link to it, or another kind of file.",
            )
        found.append(_attachment(path, place))
    size = sum(len(one.content) for one in found)
    if size > LARGEST:
        raise TemplateError(
            f"{place}: the attachments have {size / 1e6:.1f} MB, and at most {LARGEST / 1e6:.0f} MB may go.",
            fix="Send links to large files.",
        )
    return tuple(found)


def _attachment(path: Path, place: str) -> Attachment:
    content = path.read_bytes()
    if path.suffix.lower() != ".ics":
        kind, encoding = mimetypes.guess_type(path.name)
        if kind is None or encoding or kind.startswith(("multipart/", "message/")):
            kind = "application/octet-stream"
        return Attachment(
            path.name, kind + ('; charset="utf-8"' if kind.startswith("text/") else ""), content
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise TemplateError(
            f"{place}: {path.name} is not UTF-8 at byte {error.start}.",
            fix="Save the file with encoding UTF-8.",
        ) from None
    # a calendar's lines end with CRLF, and long ones are folded (RFC 5545 section 3.1)
    text = re.sub(r"\r\n?|\n", "\r\n", text.strip("\ufeff \r\n")) + "\r\n"
    lines = [line.upper() for line in text.replace("\r\n ", "").replace("\r\n\t", "").split("\r\n")]
    missing = [
        wanted
        for wanted in ("BEGIN:VCALENDAR", "VERSION:2.0", "BEGIN:VEVENT", "END:VEVENT", "END:VCALENDAR")
        if wanted not in lines
    ]
    missing += [
        wanted
        for wanted in ("PRODID", "UID", "DTSTAMP", "DTSTART")
        if not any(re.match(rf"{wanted}[:;]", line) for line in lines)
    ]
    if missing:
        raise TemplateError(
            f"{place}: {path.name} is no calendar file (RFC 5545): it has no {missing[0]}.",
            fix="Export the event anew from the calendar.",
        )
    method = next((line[7:] for line in lines if re.fullmatch(r"METHOD:[A-Z]{1,20}", line)), "PUBLISH")
    return Attachment(path.name, f'text/calendar; charset="utf-8"; method={method}', text.encode())
