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
#: What HTML escapes, line ends of which text may make blank lines, or nothing at all.
_DIFFERS = re.compile(r"[&<>\"'\r\n]|\A\Z")
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


class Stem:
    """What many texts begin with, encoded once: links that differ in their token only.

    Args:
        text: what they begin with.
        length: of what follows: characters of URL-safe base64.
        end: what stands behind that.
    """

    __slots__ = ("_cut", "_encoded", "_encoded_end", "_end", "_is_simple", "_text")

    def __init__(self, text: str, length: int, end: str = "") -> None:
        self._text, self._end = text, end
        # lines break where they always do; what follows cannot be longer than one
        whole = len(text) // QUOTED_LENGTH * QUOTED_LENGTH
        lines = [text[at : at + QUOTED_LENGTH] for at in range(0, whole, QUOTED_LENGTH)]
        self._encoded = "=\r\n".join([*lines, text[whole:]]).encode()
        self._cut = QUOTED_LENGTH - (len(text) - whole)
        self._encoded_end = f"{end}=\r\n".encode()
        example = "A" * length
        # a line that begins with a dot, a break within the end: rare enough to go the long way
        self._is_simple = text.isascii()
        self._is_simple = (
            self._is_simple and self.ready(example.encode()).encoded == Ready(text + example + end).encoded
        )

    def ready(self, middle: bytes) -> Ready:
        """The text with this in it."""
        text = f"{self._text}{middle.decode()}{self._end}"
        if not self._is_simple:
            return Ready(text)
        made = str.__new__(Ready, text)
        cut = self._cut
        if cut < len(middle):
            made.encoded = b"%b%b=\r\n%b%b" % (self._encoded, middle[:cut], middle[cut:], self._encoded_end)
        else:
            made.encoded = b"%b%b%b" % (self._encoded, middle, self._encoded_end)
        return made


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


def pieces_of(of_text: Any, of_html: Any) -> tuple[bytes, bytes]:
    """Pieces of a value in text and in HTML, made anew; they are the same object where they are alike.

    Args:
        of_text, of_html: the value as filters left it in either part.
    """
    kind = type(of_text)
    if of_html is of_text:
        if kind in _NUMBERS:
            written = str(of_text)
            if len(written) <= QUOTED_LENGTH:
                # a number neither holds what is escaped nor begins with a dot
                piece = written.encode() + b"=\r\n"
                return piece, piece
        elif kind is str and not _DIFFERS.search(of_text) and not of_text.isspace():
            piece = _plain(of_text) if _PLAIN_HTML.fullmatch(of_text) else quoted(of_text)
            return piece, piece
    text = TEXT_VALUES.made(of_text if kind is str else str(of_text))
    if of_html is of_text and _looks_alike(of_text) and not text.endswith(MARK):
        return text, text
    html = _piece_in_html(of_html)
    return (text, text) if text == html else (text, html)


def _looks_alike(value: Any) -> bool:
    """Whether a value is written in HTML as in text: nothing in it is escaped."""
    return not _ESCAPED.search(value) if type(value) is str else type(value) in _NUMBERS


def _piece_in_html(value: Any) -> bytes:
    if type(value) is str:
        return HTML_VALUES.made(value)
    # numbers hold nothing that is escaped
    return _done_values.made(str(value) if type(value) in _NUMBERS else str(escape(value)))
