"""Errors as ClickHouse writes them: code, text, name, version, and the HTTP status that belongs to the code."""

from __future__ import annotations

import re
from collections.abc import Mapping

BAD_ARGUMENTS = 36
CHECKSUM_DOESNT_MATCH = 40
NOT_IMPLEMENTED = 48
SYNTAX_ERROR = 62
UNKNOWN_COMPRESSION_METHOD = 89
UNKNOWN_SETTING = 115
INCORRECT_DATA = 117
READONLY = 164
TOO_MANY_SIMULTANEOUS_QUERIES = 202
QUERY_IS_TOO_LARGE = 229
ABORTED = 236
NOT_ENOUGH_SPACE = 243
CANNOT_DECOMPRESS = 271
SESSION_NOT_FOUND = 372
SESSION_IS_LOCKED = 373
INVALID_SESSION_TIMEOUT = 374
QUERY_WAS_CANCELLED = 394
SETTING_CONSTRAINT_VIOLATION = 452
ACCESS_DENIED = 497
AUTHENTICATION_FAILED = 516
UNKNOWN_EXCEPTION = 1002

_NAMES: Mapping[int, str] = {
    number: name for name, number in globals().items() if name.isupper() and isinstance(number, int)
}

# as ClickHouse's own src/Server/HTTP/exceptionCodeToHTTPStatus.cpp has it; what is not here is a 500
_STATUS: Mapping[int, int] = {
    **dict.fromkeys(
        (
            6,
            8,
            15,
            25,
            26,
            27,
            36,
            37,
            38,
            41,
            44,
            53,
            62,
            72,
            117,
            123,
            167,
            168,
            223,
            321,
            376,
            427,
            441,
            675,
            676,
        ),
        400,
    ),
    194: 401,
    **dict.fromkeys((192, 193, 497, 512, 516), 403),
    **dict.fromkeys((46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511), 404),
    159: 408,
    381: 411,
    229: 413,
    779: 415,
    48: 501,
    **dict.fromkeys((76, 209, 439), 503),
    # not in ClickHouse's table, which answers 500; a client may try again
    202: 503,
}

_STREAMING = re.compile(r"^(?:Streaming [a-z ]+failed: )+")
_PREFIX = re.compile(r"^\s*Code: (\d+)\. DB::(?:\w*Exception|Exception): ")
_SUFFIX = re.compile(r"\s*(?:\(version [^()]*(?:\([^()]*\))?\)\.?|\(([A-Z][A-Z0-9_]+)\)\.?)\s*$")


class ServerError(Exception):
    """An error on its way to a client.

    Attributes:
        code: ClickHouse's number.
        message: the text without prefix, name and version.
    """

    def __init__(self, code: int, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.name = name or _NAMES.get(code, "")

    @classmethod
    def from_engine(cls, text: object, *, hide: str = "") -> ServerError:
        """Read the engine's text, which may nest prefixes and repeat the name; `hide` is a tag of ours to drop."""
        message = _STREAMING.sub("", str(text)).strip()
        if hide:
            message = message.replace(hide, "")
        code = 0
        while match := _PREFIX.match(message):
            code = code or int(match.group(1))
            message = message[match.end() :]
        name = ""
        while match := _SUFFIX.search(message):
            name = match.group(1) or name
            message = message[: match.start()]
        return cls(code or UNKNOWN_EXCEPTION, message.rstrip(), name=name)

    @property
    def status(self) -> int:
        """The HTTP status a ClickHouse server gives with this code."""
        return _STATUS.get(self.code, 500)

    def text(self, version: str) -> str:
        """The answer's body: `Code: 60. DB::Exception: ... (UNKNOWN_TABLE) (version 26.9.2.1 (official build))`."""
        name = f" ({self.name})" if self.name else ""
        end = "" if self.message.endswith(".") else "."
        return f"Code: {self.code}. DB::Exception: {self.message}{end}{name} (version {version} (official build))\n"


class ClientGoneError(Exception):
    """The client hung up; nobody is there to answer."""
