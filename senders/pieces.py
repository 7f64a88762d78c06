"""Encoded pieces of a message body: quoted-printable lines that may follow each other in any order.

Values are encoded once and found again by what they are: contacts share first names, towns and products.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from markupsafe import escape

from senders.mime import QUOTED_LENGTH, quoted

#: Behind a piece of text that may make blank lines with what stands about it; stands in no encoded text.
MARK = b"\0"
#: Characters of values that are remembered at most.
KEPT_LENGTH = 200
_KEPT_VALUES = 2048
_NUMBERS = frozenset({int, float, Decimal})
_ESCAPED = re.compile(r"[&<>\"']")
_PLAIN = re.compile(r"[ -<>-~]+")
_PLAIN_HTML = re.compile(r"[ !#$%(-;?-~]+")


class Ready(str):
    """A text that is encoded once, though it stands in several places of a message; it holds nothing that HTML escapes.

    Attributes:
        encoded: the text as a piece.
    """

    __slots__ = ("encoded",)
    encoded: bytes

    def __new__(cls, text: str) -> Ready:
        made = super().__new__(cls, text)
        made.encoded = _plain(text)
        return made

    def joined(self, other: Ready) -> Ready:
        """Both, one after the other, without encoding them anew."""
        made = str.__new__(Ready, self + other)
        made.encoded = self.encoded + other.encoded
        return made

    def __reduce__(self) -> tuple[type[Ready], tuple[str]]:
        return Ready, (str(self),)


class _Encoded(dict[str, bytes]):
    """Encoded values by value; contacts share first names, towns and products, so most are found."""

    def __missing__(self, value: str) -> bytes:
        encoded = self.made(value)
        if len(value) <= KEPT_LENGTH:
            if len(self) >= _KEPT_VALUES:
                self.clear()
            self[value] = encoded
        return encoded

    def made(self, value: str) -> bytes:
        """The piece of a value, without looking whether it is known."""
        return _plain(value) if _PLAIN.fullmatch(value) else quoted(value)


class _EncodedHtml(_Encoded):
    def made(self, value: str) -> bytes:
        return _plain(value) if _PLAIN_HTML.fullmatch(value) else quoted(str(escape(value)))


def _plain(value: str) -> bytes:
    """A value of which nothing need be encoded but what a line begins with."""
    if len(value) <= QUOTED_LENGTH and value[0] not in ".F" and "  " not in value:
        return value.encode("ascii") + b"=\r\n"
    if QUOTED_LENGTH < len(value) <= 2 * QUOTED_LENGTH:
        head, tail = value[:QUOTED_LENGTH], value[QUOTED_LENGTH:]
        if head[0] not in ".F" and tail[0] not in ".F" and "  " not in value:
            return f"{head}=\r\n{tail}=\r\n".encode("ascii")
        return quoted(value)
    pieces = [value[at : at + QUOTED_LENGTH] for at in range(0, len(value), QUOTED_LENGTH)]
    for piece in pieces:
        if piece[0] in ".F":
            return quoted(value)
    if "  " in value:
        return quoted(value)
    return ("=\r\n".join(pieces) + "=\r\n").encode("ascii")


class _EncodedText(_Encoded):
    def made(self, value: str) -> bytes:
        encoded = _plain(value) if _PLAIN.fullmatch(value) else quoted(value)
        # only such values can make blank lines with what stands about them
        if "\n" in value or "\r" in value or not value.strip(" "):
            encoded += MARK
        return encoded


_done_values = _Encoded()
#: Pieces of values in text, and of values in HTML that are yet to be escaped.
TEXT_VALUES = _EncodedText()
HTML_VALUES = _EncodedHtml()


def other_in_html(value: Any) -> bytes:
    """A value that is no plain text: a number, a date, markup; what is missing raises here."""
    if type(value) is Ready:
        return value.encoded
    if type(value) is int:
        return _done_values[str(value)]
    return _done_values[str(escape(value))]


def other_in_text(value: Any) -> bytes:
    """The same for text."""
    if type(value) is Ready:
        return value.encoded
    return TEXT_VALUES[str(value)]


def made_in_html(text: str) -> bytes:
    """Text that is done: escaped, if it must be, when it was made."""
    return _done_values["".join((text,))]


def made_in_text(text: str) -> bytes:
    """The same for text."""
    return TEXT_VALUES["".join((text,))]


def looks_alike(value: Any) -> bool:
    """Whether a value is written in HTML as in text: nothing in it is escaped."""
    return not _ESCAPED.search(value) if type(value) is str else type(value) in _NUMBERS


def piece_in_html(value: Any) -> bytes:
    """A value's piece, made anew."""
    if type(value) is str:
        return HTML_VALUES.made(value)
    # numbers hold nothing that is escaped
    return _done_values.made(str(value) if type(value) in _NUMBERS else str(escape(value)))


def piece_in_text(value: Any) -> bytes:
    """The same for text."""
    return TEXT_VALUES.made(value if type(value) is str else str(value))
