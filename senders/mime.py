"""From a message to the bytes that go over the wire (RFC 5322, 2045 to 2047, 6532).

The standard library's `EmailMessage` takes ten times as long for the same: it re-parses every header that it is
given. What is written here must parse, field for field, as what the standard library would have written; a property
test holds it to that. Both parts are quoted-printable, or base64 where that is shorter, so the boundary below can
never occur in them.
"""

from __future__ import annotations

import binascii
import functools
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from email.utils import format_datetime

from senders.attachments import Attachment
from senders.message import Address, Message
from warehouse import addresses

#: Of the two bodies; can stand in neither, whatever their encoding.
BOUNDARY = "=_mailhouse_alternative"
_MIXED = "=_mailhouse_mixed"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS = re.compile(
    r"[\x00-\x20\x7f-\x9f\u2028\u2029]*[\x00-\x1f\x7f-\x9f\u2028\u2029][\x00-\x20\x7f-\x9f\u2028\u2029]*"
)
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00a0-\U0010ffff-]"
_DOT_ATOM = re.compile(rf"{_ATOM}+(?:\.{_ATOM}+)*")
_LOCAL = re.compile(rf"(?:{_ATOM}|\.){{1,64}}")
_DOMAIN = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
#: Addresses that need no change: an ASCII dot-atom and an ASCII domain.
_USUAL = re.compile(
    r"(?=[^@]{1,64}@[^@]{1,253}$)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@"
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_LINE_END = re.compile(r"\r\n?")
#: Text of which only what is not ASCII, equals signs and a last space need encoding.
_ONE_LINE = re.compile(r"[^\x00-\x1f\x7f.F][^\x00-\x1f\x7f]*")
_ENCODE = re.compile(r"[^\t\n -<>-~]+")
#: Characters of a quoted-printable line: an encoded dot in front, an encoded space behind and `=` make it 76.
QUOTED_LENGTH = 71
_FOLD = 76  # characters a line, if there is a place to fold
_LONGEST = 990  # characters a line at most; RFC 5322 allows 998


def build(message: Message) -> bytes:
    """The message as bytes.

    Raises:
        ValueError: an address or a header cannot be written; it would break the message, or smuggle in a header.
    """
    sender = message.sender
    domain = sender.email.rpartition("@")[2]
    fields = [
        f"From: {address(sender, 6)}",
        f"To: {address(message.recipient, 4)}",
        f"Subject: {unstructured(message.subject, 9)}",
        f"Message-ID: <{_token(message.message_id)}@{ascii_domain(domain)}>",
        header_date(message.sent_at).decode().rstrip(),
    ]
    if message.reply_to is not None:
        fields.append(f"Reply-To: {address(message.reply_to, 10)}")
    fields += header_lines(message.headers)
    fields.append("MIME-Version: 1.0\r\n")
    opening, closing = body_ends(message.attachments)
    text_encoding, text = encode_body(message.text)
    html_encoding, html = encode_body(message.html)
    return b"".join(
        (
            "\r\n".join(fields).encode(),
            opening,
            b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: %b\r\n\r\n'
            % text_encoding,
            text,
            b'\r\n--%b\r\nContent-Type: text/html; charset="utf-8"\r\nContent-Transfer-Encoding: %b\r\n\r\n'
            % (BOUNDARY.encode(), html_encoding),
            html,
            closing,
        )
    )


def body_ends(attachments: Sequence[Attachment] = ()) -> tuple[bytes, bytes]:
    """What stands about the two bodies: from `Content-Type` to the first boundary, and from the last one to the end.

    With attachments, the bodies are the first part of a multipart/mixed (RFC 2046 section 5.1).
    """
    alternative = f'Content-Type: multipart/alternative; boundary="{BOUNDARY}"\r\n\r\n--{BOUNDARY}\r\n'
    end = f"\r\n--{BOUNDARY}--\r\n".encode()
    if not attachments:
        return alternative.encode(), end
    begin = f'Content-Type: multipart/mixed; boundary="{_MIXED}"\r\n\r\n--{_MIXED}\r\n{alternative}'
    parts = [f"\r\n--{_MIXED}\r\n".encode() + attachment.part() for attachment in attachments]
    return begin.encode(), b"".join([end, *parts, f"\r\n--{_MIXED}--\r\n".encode()])


def header_lines(headers: Iterable[tuple[str, str]]) -> list[str]:
    """Header fields whose syntax is the caller's, one line each.

    Raises:
        ValueError: a name is none, or a value holds a control character, is not ASCII or too long for a line.
    """
    lines: list[str] = []
    for name, value in headers:
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no header name")
        lines.append(f"{name}: {_structured(value)}")
    return lines


def one_line(value: str) -> str:
    """The value with control characters, line breaks among them, and the space about them made one space."""
    return _CONTROLS.sub(" ", value).strip() if _CONTROL.search(value) else value.strip()


def unstructured(value: str, used: int = 0) -> str:
    """A header's free text, folded and encoded (RFC 2047) where it must be.

    Args:
        used: characters that stand before it on the line.

    Raises:
        ValueError: it holds a control character.
    """
    _refuse_control(value)
    if not value.isascii() or "=?" in value or value != value.strip():
        return _encoded_words(value, used)
    if used + len(value) <= _FOLD:
        return value
    lines: list[str] = []
    line = ""
    # fold before the last space of a gap: no line may be all space
    for word in re.split(r" (?=[^ ])", value):
        if not line:
            line = word
        elif used + len(line) + 1 + len(word) > _FOLD:
            lines.append(line)
            line, used = " " + word, 0
        else:
            line += " " + word
    lines.append(line)
    if max(map(len, lines)) > _LONGEST:
        return _encoded_words(value, used)
    return "\r\n".join(lines)


def address(value: Address, used: int = 0) -> str:
    """A mailbox as a header shows it.

    Raises:
        ValueError: the address is no address, or the name holds a control character.
    """
    spec = mailbox(value.email)
    name = value.name.strip()
    if not name:
        return spec
    _refuse_control(name)
    if not name.isascii() or "=?" in name or len(name) > _LONGEST:
        phrase = _encoded_words(name, used)
    elif _PHRASE.fullmatch(name):
        phrase = name
    else:
        phrase = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    gap = "\r\n " if used + len(phrase.rpartition("\r\n")[2]) + len(spec) + 3 > _FOLD else " "
    return f"{phrase}{gap}<{spec}>"


# header and envelope ask one after the other
@functools.lru_cache(maxsize=1024)
def mailbox(email: str) -> str:
    """The address for header and envelope: its domain in ASCII (IDNA), its local part quoted if it must be.

    Raises:
        ValueError: this is no address.
    """
    if _USUAL.fullmatch(email):
        return email
    local, at, domain = email.rpartition("@")
    if not at or not _LOCAL.fullmatch(local) or _CONTROL.search(local):
        raise ValueError("this is no email address")
    if not _DOT_ATOM.fullmatch(local):
        local = f'"{local}"'
    return f"{local}@{ascii_domain(domain)}"


@functools.lru_cache(maxsize=4096)
def ascii_domain(domain: str) -> str:
    """A domain as DNS knows it.

    Raises:
        ValueError: this is no domain.
    """
    try:
        domain = addresses.ascii_domain(domain)
    except ValueError:
        raise ValueError("the domain of this email address is none") from None
    if not _DOMAIN.fullmatch(domain):
        raise ValueError("the domain of this email address is none")
    return domain


def encode_body(text: str) -> tuple[bytes, bytes]:
    """Transfer encoding and encoded lines of a part; line ends become CRLF, and the last line gets one.

    Raises:
        ValueError: the text holds half a character (a lone surrogate).
    """
    if "\r" in text:
        text = _LINE_END.sub("\n", text)
    if not text.endswith("\n"):
        text += "\n"
    content = text.encode()
    if prefers_base64(text, len(content)):
        return b"base64", base64_lines(content)
    return b"quoted-printable", binascii.b2a_qp(content, istext=True).replace(b"\n", b"\r\n")


def base64_lines(content: bytes) -> bytes:
    """Text in UTF-8 as base64, its line ends CRLF; the last line is without one."""
    encoded = binascii.b2a_base64(content.replace(b"\n", b"\r\n"), newline=False)
    return b"\r\n".join([encoded[at : at + 76] for at in range(0, len(encoded), 76)])


def quoted(text: str) -> bytes:
    """Text as quoted-printable lines (RFC 2045 section 6.7), from the start of a line to the end of one.

    Where the text does not end with a line end, a soft one is added. No line is longer than 76 characters, and none
    begins with a dot or with `From `, which mail servers change.

    Raises:
        ValueError: the text holds half a character (a lone surrogate).
    """
    if not text:
        return b""
    if len(text) < QUOTED_LENGTH and _ONE_LINE.fullmatch(text) and "  " not in text:
        encoded = binascii.b2a_qp(text.encode(), istext=True)
        # longer, and it would have been wrapped
        if len(encoded) <= QUOTED_LENGTH:
            return encoded + b"=\r\n"
    if "\r" in text:
        text = _LINE_END.sub("\n", text)
    # neither tabs nor two spaces in a row: signers and other machines between us and the reader may change them
    encoded = _ENCODE.sub(_hexadecimal, text).replace("\t", "=09").replace("  ", " =20")
    lines = encoded.split("\n")
    last = lines.pop()
    parts: list[str] = []
    for line in lines:
        pieces = _wrapped(line)
        if pieces[-1].endswith(" "):
            pieces[-1] = pieces[-1][:-1] + "=20"
        parts.append("=\r\n".join(pieces) + "\r\n")
    if last:
        parts.append("=\r\n".join(_wrapped(last)) + "=\r\n")
    return "".join(parts).encode("ascii")


def _hexadecimal(match: re.Match[str]) -> str:
    return "".join([f"={byte:02X}" for byte in match[0].encode()])


def _wrapped(line: str) -> list[str]:
    """An encoded line in pieces; no character is cut in two."""
    pieces: list[str] = []
    at = 0
    while True:
        end = at + QUOTED_LENGTH
        if end >= len(line):
            end = len(line)
        else:
            if "=" in line[end - 2 : end]:
                end = line.rindex("=", end - 2, end)
            # continuation bytes of UTF-8 stay with the first
            while end > at + 3 and line[end] == "=" and line[end + 1] in "89AB":
                end -= 3
        piece = line[at:end]
        if piece.startswith("."):
            piece = "=2E" + piece[1:]
        elif piece.startswith("From "):
            piece = "=46" + piece[1:]
        pieces.append(piece)
        at = end
        if at >= len(line):
            return pieces


def prefers_base64(text: str, length: int = 0) -> bool:
    """Whether base64 is shorter: quoted-printable trebles what is not ASCII, base64 adds a third to everything.

    Args:
        length: bytes of the text in UTF-8, if they are known.
    """
    length = length or len(text.encode())
    return length - len(text) > length // 6


def _encoded_words(value: str, used: int) -> str:
    words: list[str] = []
    room = _room(used)
    if len(whole := value.encode()) <= room:
        return _encoded_word(whole)
    chunk = bytearray()
    for character in value:
        encoded = character.encode()
        if len(chunk) + len(encoded) > room:
            words.append(_encoded_word(chunk))
            chunk = bytearray()
            room = _room(1)
        chunk += encoded
    words.append(_encoded_word(chunk))
    return "\r\n ".join(words)


def _room(used: int) -> int:
    """Bytes that fit into one encoded word after so many characters: 75 characters a word, 76 a line."""
    return max(4, (min(75, _FOLD - used) - 12) // 4 * 3)


def _encoded_word(content: bytes | bytearray) -> str:
    return f"=?utf-8?b?{binascii.b2a_base64(content, newline=False).decode()}?="


def _structured(value: str) -> str:
    """A header whose syntax is the caller's: it goes out as it is."""
    _refuse_control(value)
    if not value.isascii() or len(value) > _LONGEST:
        raise ValueError("a header is longer than a line or not ASCII")
    return value


def _token(value: str) -> str:
    if not _DOT_ATOM.fullmatch(value) or not value.isascii():
        raise ValueError(f"{value!r} is no message id")
    return value


def _refuse_control(value: str) -> None:
    if _CONTROL.search(value):
        raise ValueError("a header holds a line break or another control character")


@functools.lru_cache(maxsize=64)
def header_date(moment: datetime) -> bytes:
    """The Date header, line end and all."""
    return f"Date: {format_datetime(moment)}\r\n".encode()
