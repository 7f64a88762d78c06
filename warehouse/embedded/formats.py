"""Joining what the engine renders block by block into one answer: Arrow streams, and Native without rows."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + b"\x00\x00\x00\x00"
_SCHEMA = 1  # MessageHeader.Schema


class StreamJoiner:
    """Takes whole Arrow IPC streams of one schema; gives the pieces of one stream.

    The format (https://arrow.apache.org/docs/format/Columnar.html, "IPC Streaming Format") is a schema message,
    dictionary and record batch messages, and an end mark, so the first stream goes out without its end mark, later
    ones also without their schema. Only the messages' bounds are read, nothing is decoded or copied but whole messages.
    """

    def __init__(self) -> None:
        self._has_schema = False

    def join(self, stream: bytes) -> bytes:
        """The part of a stream that follows what went out before."""
        pieces: list[bytes] = []
        for kind, message in _messages(stream):
            if kind == _SCHEMA:
                if self._has_schema:
                    continue
                self._has_schema = True
            pieces.append(message)
        return b"".join(pieces)

    def end(self) -> bytes:
        """The end mark."""
        return _END


def _messages(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and bytes of each message: continuation mark, metadata length, metadata (a flatbuffer), body."""
    place = 0
    while place + 8 <= len(stream):
        (length,) = struct.unpack_from("<i", stream, place + 4)
        if length == 0:
            return
        meta = place + 8
        # a flatbuffer table: its fields' offsets stand in a vtable. Message: 1 header type, 3 body length
        table = meta + struct.unpack_from("<I", stream, meta)[0]
        vtable = table - struct.unpack_from("<i", stream, table)[0]
        (vtable_size,) = struct.unpack_from("<H", stream, vtable)
        offsets = struct.unpack_from(f"<{(vtable_size - 4) // 2}H", stream, vtable + 4)
        kind = stream[table + offsets[1]] if len(offsets) > 1 and offsets[1] else 0
        body = (
            struct.unpack_from("<q", stream, table + offsets[3])[0] if len(offsets) > 3 and offsets[3] else 0
        )
        end = meta + length + body
        yield kind, stream[place:end]
        place = end


def varint(number: int) -> bytes:
    """An unsigned LEB128 number."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def native_header(names: list[str], types: list[str]) -> bytes:
    """A block of no rows in Native format: how an empty answer still says its columns."""
    out = bytearray(varint(len(names)) + varint(0))
    for name, kind in zip(names, types, strict=True):
        for text in (name.encode(), kind.encode()):
            out += varint(len(text)) + text
    return bytes(out)
