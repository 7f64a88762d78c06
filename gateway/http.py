"""Requests as the routes see them, and answers as they give them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HTML = b"text/html; charset=utf-8"
JSON = b"application/json"
_BODY_SECONDS = 30.0  # for a body to arrive
_PIECE = 65_536


class TooLargeError(Exception):
    """The body is larger than it may be, as sent or as unpacked."""


class BadEncodingError(Exception):
    """The body is packed in a way that we do not read, or is not what it says to be."""


class TooSlowError(Exception):
    """The body did not arrive in time."""


@dataclass
class Answer:
    """An answer: status, body, and headers beside those of every answer."""

    status: int
    body: bytes = b""
    content_type: bytes = HTML
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @classmethod
    def json(cls, status: int, value: Any, *headers: tuple[bytes, bytes]) -> Answer:
        """An answer in JSON."""
        return cls(status, orjson.dumps(value), JSON, list(headers))


class Request:
    """One request."""

    __slots__ = ("_headers", "_receive", "_scope", "method", "path")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope, self._receive = scope, receive
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._headers: dict[bytes, bytes] | None = None

    def header(self, name: bytes) -> str:
        """A header's value by its name in small letters; empty if it is not there."""
        if self._headers is None:
            self._headers = dict(self._scope["headers"])
        return self._headers.get(name, b"").decode("latin-1")

    @property
    def headers(self) -> dict[str, str]:
        """All of them."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self._scope["headers"]}

    @property
    def client(self) -> str:
        """The caller's address, as the server knows it."""
        found = self._scope.get("client")
        return str(found[0]) if found else ""

    @property
    def target(self) -> str:
        """Path and query as they were called."""
        query = self._scope["query_string"].decode("latin-1")
        path = self._scope.get("raw_path") or self.path.encode()
        return path.decode("latin-1") + (f"?{query}" if query else "")

    async def body(self, most: int) -> bytes:
        """The body, unpacked if it is packed.

        Raises:
            TooLargeError, BadEncodingError, TooSlowError: see there; what is left of the body is not read.
        """
        length = self.header(b"content-length")
        if length.isdecimal() and int(length) > most:
            raise TooLargeError
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                content = await self._whole(most)
        except TimeoutError:
            raise TooSlowError from None
        encoding = self.header(b"content-encoding").strip().lower()
        return content if encoding in ("", "identity") else unpacked(content, encoding, most)

    async def _whole(self, most: int) -> bytes:
        message = await self._receive()
        content: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if len(content) > most:
                raise TooLargeError
            return content
        gathered = bytearray(content)
        while message.get("more_body"):
            message = await self._receive()
            gathered += message.get("body", b"")
            if len(gathered) > most:
                raise TooLargeError
        return bytes(gathered)


def unpacked(content: bytes, encoding: str, most: int) -> bytes:
    """A packed body, as far as `most` bytes; whatever it says of itself, it gets no more memory than that.

    Raises:
        TooLargeError, BadEncodingError: see there.
    """
    bits = {"gzip": 31, "x-gzip": 31, "deflate": 15}.get(encoding)
    if bits is None:
        raise BadEncodingError(encoding)
    packer = zlib.decompressobj(bits)
    try:
        made = packer.decompress(content, most + 1)
    except zlib.error as error:
        raise BadEncodingError(encoding) from error
    if len(made) > most or packer.unconsumed_tail:
        raise TooLargeError
    if not packer.eof or packer.unused_data:
        raise BadEncodingError(encoding)
    return made
