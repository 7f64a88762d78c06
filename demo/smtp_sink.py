"""DEMO ONLY. A local SMTP server that accepts everything and files it into a maildir: the demo's mailboxes.

It speaks enough of RFC 5321 for one message after another on each connection, with PIPELINING and 8BITMIME, and
answers 250 only when the message is in the maildir.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from pathlib import Path


class SmtpSink:
    """An SMTP server in a thread of its own.

    Args:
        maildir: folder that gets `new/`, `tmp/` and `cur/`.

    Attributes:
        port: where it listens on 127.0.0.1, once entered as a context.
    """

    def __init__(self, maildir: Path) -> None:
        self.maildir = maildir
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="smtp-sink", daemon=True)

    def __enter__(self) -> SmtpSink:
        for name in ("tmp", "new", "cur"):
            (self.maildir / name).mkdir(parents=True, exist_ok=True)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 26), self._loop
        ).result()
        self.port = server.sockets[0].getsockname()[1]
        self._server = server
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def reply(text: str) -> None:
            writer.write(text.encode() + b"\r\n")

        reply("220 localhost Mailhouse demo sink")
        sender = recipient = b""
        try:
            while line := await reader.readline():
                word = line[:4].upper()
                if word == b"EHLO":
                    reply("250-localhost\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8")
                elif word in (b"HELO", b"NOOP"):
                    reply("250 OK")
                elif word == b"RSET":
                    sender = recipient = b""
                    reply("250 OK")
                elif word == b"MAIL":
                    sender = line.partition(b":")[2].split(b">")[0].strip(b" <\r\n")
                    reply("250 OK")
                elif word == b"RCPT":
                    recipient = line.partition(b":")[2].split(b">")[0].strip(b" <\r\n")
                    reply("250 OK")
                elif word == b"DATA":
                    reply("354 Go on")
                    await writer.drain()
                    body = await reader.readuntil(b"\r\n.\r\n")
                    self._deliver(sender, recipient, body[:-3].replace(b"\r\n..", b"\r\n."))
                    sender = recipient = b""
                    reply("250 Stored")
                elif word == b"QUIT":
                    reply("221 Bye")
                    await writer.drain()
                    break
                else:
                    reply("502 Not here")
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    def _deliver(self, sender: bytes, recipient: bytes, message: bytes) -> None:
        name = f"{uuid.uuid4().hex}.demo"
        envelope = b"Return-Path: <" + sender + b">\r\nDelivered-To: " + recipient + b"\r\n"
        (self.maildir / "tmp" / name).write_bytes(envelope + message)
        (self.maildir / "tmp" / name).rename(self.maildir / "new" / name)
