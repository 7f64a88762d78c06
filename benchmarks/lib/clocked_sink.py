"""An SMTP server that takes everything and writes down for whom, and when by the monotonic clock.

python benchmarks/lib/clocked_sink.py PORT FILE
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, TextIO


class Session(asyncio.Protocol):
    """One client; commands may come together (PIPELINING)."""

    def __init__(self, notes: TextIO) -> None:
        self._notes = notes
        self._buffer = b""
        self._recipients: list[str] = []
        self._in_data = False
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        answers: list[bytes] = []
        while True:
            if self._in_data:
                end = self._buffer.find(b"\r\n.\r\n")
                if end < 0:
                    break
                now = time.monotonic()
                self._notes.writelines(f"{one} {now!r}\n" for one in self._recipients)
                self._buffer, self._in_data, self._recipients = self._buffer[end + 5 :], False, []
                answers.append(b"250 2.0.0 ok\r\n")
                continue
            line, mark, rest = self._buffer.partition(b"\r\n")
            if not mark:
                break
            self._buffer = rest
            answers.append(self._answer(line))
        if answers:
            self._notes.flush()
            self._transport.write(b"".join(answers))

    def _answer(self, line: bytes) -> bytes:
        word = line[:4].upper()
        if word == b"EHLO":
            return b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 100000000\r\n"
        if word == b"RCPT":
            self._recipients.append(line.partition(b"<")[2].partition(b">")[0].decode())
        if word == b"DATA":
            self._in_data = True
            return b"354 go on\r\n"
        return b"221 bye\r\n" if word == b"QUIT" else b"250 2.0.0 ok\r\n"


async def serve(port: int, path: Path) -> None:
    """Serve for ever."""
    with path.open("a") as notes:
        server = await asyncio.get_running_loop().create_server(lambda: Session(notes), "127.0.0.1", port)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
