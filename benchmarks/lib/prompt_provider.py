"""A provider's server that accepts every call at once: 202 to whatever is posted.

python benchmarks/lib/prompt_provider.py PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

_ANSWER = b"HTTP/1.1 202 Accepted\r\nx-message-id: prompt\r\ncontent-length: 0\r\n\r\n"


class Session(asyncio.Protocol):
    """One connection that stays open."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._head = b""
        self._left = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._left:
            head, mark, body = (self._head + data).partition(b"\r\n\r\n")
            if not mark:
                self._head = head
                return
            self._head, data = b"", body
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._left = int(length or 0)
        self._left -= len(data)
        if self._left <= 0:
            self._left = 0
            self._transport.write(_ANSWER)


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Session, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
