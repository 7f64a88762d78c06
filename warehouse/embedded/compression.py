"""Bodies as they travel: HTTP content encodings, and ClickHouse's own checksummed blocks (`compress=1`)."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import lz4.block
import lz4.frame
import zstandard

from warehouse.embedded.errors import (
    CANNOT_DECOMPRESS,
    CHECKSUM_DOESNT_MATCH,
    NOT_IMPLEMENTED,
    UNKNOWN_COMPRESSION_METHOD,
    ServerError,
)

ENCODINGS = ("zstd", "lz4", "gzip", "deflate")
_SMALL = 1024  # bytes; below it compression costs more than it saves


class Decompressor(Protocol):
    """What zlib, lz4 and zstandard share."""

    eof: bool
    unused_data: bytes | None

    def decompress(self, data: bytes, /) -> bytes: ...


def _decompressor(encoding: str) -> Any:
    if encoding == "gzip":
        return zlib.decompressobj(wbits=31)
    if encoding == "deflate":
        return zlib.decompressobj()
    if encoding == "lz4":
        return lz4.frame.LZ4FrameDecompressor()
    return zstandard.ZstdDecompressor().decompressobj()


def decoded(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Undo a content encoding chunk by chunk: every frame of it, for clients send one frame a block.

    Raises:
        ServerError: an unknown encoding, a broken frame, or a body that ends within one.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        yield from chunks
        return
    if encoding not in ENCODINGS:
        raise ServerError(
            NOT_IMPLEMENTED, f"Unknown content encoding '{encoding}'; known are {', '.join(ENCODINGS)}"
        )
    chunks = iter(chunks)
    start = b""
    if encoding == "deflate":
        # some clients send it without zlib's two bytes of header; it takes both to tell
        for chunk in chunks:
            start += chunk
            if len(start) > 1:
                break
    is_raw = encoding == "deflate" and not _has_zlib_header(start)
    current: Decompressor | None = None
    try:
        for chunk in itertools.chain((start,), chunks):
            data = chunk
            while data:
                if current is None:
                    current = zlib.decompressobj(wbits=-15) if is_raw else _decompressor(encoding)  # pyright: ignore[reportAssignmentType]
                assert current is not None
                out = current.decompress(data)
                data = b""
                if current.eof:
                    data, current = current.unused_data or b"", None
                if out:
                    yield out
    except (zlib.error, zstandard.ZstdError, RuntimeError, EOFError) as error:
        raise ServerError(CANNOT_DECOMPRESS, f"The request body is not valid {encoding}: {error}") from None
    if current is not None:
        raise ServerError(CANNOT_DECOMPRESS, f"The request body ends within a {encoding} frame")


def _has_zlib_header(data: bytes) -> bool:
    return len(data) > 1 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0


class Encoder:
    """Compresses an answer as one frame, flushed after each chunk so that a reader can start at once."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self._lz4: Any = None
        if encoding == "zstd":
            self._zstd = zstandard.ZstdCompressor(level=1).compressobj()
        elif encoding == "lz4":
            self._lz4 = lz4.frame.LZ4FrameCompressor(auto_flush=True)
            self._head = self._lz4.begin()
        else:
            self._zlib = zlib.compressobj(1, wbits=31 if encoding == "gzip" else 15)

    def encode(self, chunk: bytes) -> bytes:
        """The chunk, compressed and flushed."""
        if self.encoding == "zstd":
            return self._zstd.compress(chunk) + self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        if self._lz4 is not None:
            head, self._head = self._head, b""
            return head + self._lz4.compress(chunk)
        return self._zlib.compress(chunk) + self._zlib.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        """What closes the frame."""
        if self.encoding == "zstd":
            return self._zstd.flush()
        if self._lz4 is not None:
            return self._head + self._lz4.flush()
        return self._zlib.flush()


def chosen_encoding(accepted: str) -> str:
    """The best of the encodings that an Accept-Encoding header allows, '' if it allows none of ours."""
    offers = {
        offer.partition(";")[0].strip().lower()
        for offer in accepted.split(",")
        if "q=0" not in offer.replace("q=0.", "")
    }
    return next((encoding for encoding in ENCODINGS if encoding in offers), "")


def is_worth_encoding(size: int) -> bool:
    """Whether a whole answer of this size should be compressed."""
    return size >= _SMALL


# ClickHouse's own blocks: 16 bytes CityHash128 of the rest, 1 byte method, 4 bytes compressed size (with these 9),
# 4 bytes plain size, data. See ClickHouse's docs, "Native protocol", compression.

_LZ4, _ZSTD, _NONE = 0x82, 0x90, 0x02
_HEADER = struct.Struct("<BII")
_LARGEST_BLOCK = 1 << 30


def _cityhash128(data: bytes) -> bytes:
    try:
        from clickhouse_cityhash.cityhash import CityHash128  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ServerError(
            NOT_IMPLEMENTED,
            "compress=1 and decompress=1 need the package clickhouse-cityhash, which is not installed; "
            "use enable_http_compression=1 with Accept-Encoding or Content-Encoding",
        ) from None
    value: int = CityHash128(data)
    # the library gives the high half first in the number; on the wire the low half leads
    return struct.pack("<QQ", value >> 64, value & 0xFFFFFFFFFFFFFFFF)


def native_blocks(data: bytes) -> bytes:
    """Data as ClickHouse's compressed blocks of up to 1 MiB (LZ4)."""
    out = bytearray()
    for start in range(0, len(data), 1 << 20):
        plain = data[start : start + (1 << 20)]
        packed = lz4.block.compress(plain, store_size=False)
        block = _HEADER.pack(_LZ4, len(packed) + _HEADER.size, len(plain)) + packed
        out += _cityhash128(block) + block
    return bytes(out)


def from_native_blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Undo ClickHouse's compressed blocks.

    Raises:
        ServerError: a checksum or size does not match, or the body ends within a block.
    """
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= 16 + _HEADER.size:
            method, packed_size, plain_size = _HEADER.unpack_from(waiting, 16)
            if packed_size < _HEADER.size or packed_size > _LARGEST_BLOCK or plain_size > _LARGEST_BLOCK:
                raise ServerError(
                    CANNOT_DECOMPRESS, "A compressed block has an impossible size; is decompress=1 right?"
                )
            if len(waiting) < 16 + packed_size:
                break
            block = bytes(waiting[16 : 16 + packed_size])
            if _cityhash128(block) != bytes(waiting[:16]):
                raise ServerError(
                    CHECKSUM_DOESNT_MATCH, "Checksum of a compressed block doesn't match: the data is corrupt"
                )
            yield _block_data(method, block[_HEADER.size :], plain_size)
            del waiting[: 16 + packed_size]
    if waiting:
        raise ServerError(CANNOT_DECOMPRESS, "The request body ends within a compressed block")


def _block_data(method: int, packed: bytes, plain_size: int) -> bytes:
    try:
        if method == _LZ4:
            return lz4.block.decompress(packed, uncompressed_size=plain_size)
        if method == _ZSTD:
            return zstandard.ZstdDecompressor().decompress(packed, max_output_size=plain_size)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise ServerError(CANNOT_DECOMPRESS, f"A compressed block is corrupt: {error}") from None
    if method == _NONE:
        return packed
    raise ServerError(
        UNKNOWN_COMPRESSION_METHOD,
        f"Unknown compression method 0x{method:02x} of a block; known are LZ4, ZSTD and none",
    )
