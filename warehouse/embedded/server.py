"""The HTTP side: an ASGI application that authenticates, runs queries in worker threads, and streams the answers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import secrets
import string
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from warehouse.embedded import compression
from warehouse.embedded.access import User, Users
from warehouse.embedded.engine import Engine
from warehouse.embedded.errors import (
    AUTHENTICATION_FAILED,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    UNKNOWN_EXCEPTION,
    ClientGoneError,
    ServerError,
)
from warehouse.embedded.protocol import Request, content_type
from warehouse.embedded.queries import Answer, Job, QueryRunner

log = logging.getLogger("warehouse.embedded")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PIECE = 1 << 20
_KILL_EVERY = 0.2  # seconds between attempts to stop the query of a client that left
_HTTP_METHODS = ("GET", "HEAD", "POST", "PUT")
_TAG_LETTERS = string.ascii_lowercase


class BrokenAnswerError(Exception):
    """Raised when a streamed answer has failed: the connection must break rather than end as if all were there."""


class EmbeddedServer:
    """The ASGI application.

    Args:
        engine: the open engine.
        users: who may ask.
        workers: queries that run at once; more wait.
        most_waiting: requests under way, running or waiting, beyond which new ones are refused.
    """

    def __init__(self, engine: Engine, users: Users, *, workers: int, most_waiting: int) -> None:
        self._engine = engine
        self._users = users
        self._runner = QueryRunner(engine)
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="query")
        self._closers = ThreadPoolExecutor(2, thread_name_prefix="stop")
        self._most_waiting = most_waiting
        self._under_way = 0

    @property
    def under_way(self) -> int:
        """Requests that have not been answered to the end."""
        return self._under_way

    def close(self) -> None:
        """Take no more work; do not wait for what runs."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._closers.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): _header_text(value) for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if path in ("/ping", "/replicas_status"):
            await self._plain(send, 200, b"Ok.\n")
        elif path not in ("/", "/query"):
            await self._plain(
                send, 404, f"There is no handle {path}\n\nUse / or /ping for health checks.\n".encode()
            )
        elif method not in _HTTP_METHODS:
            await self._plain(send, 501, f"Method {method} is not supported\n".encode())
        elif method in ("GET", "HEAD") and b"query=" not in scope["query_string"]:
            await self._plain(send, 200, b"Ok.\n")
        else:
            self._under_way += 1
            try:
                await self._query(scope, headers, receive, send)
            finally:
                self._under_way -= 1

    # one query ------------------------------------------------------------------------------------------------

    async def _query(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        exchange = _Exchange(self, receive, send)
        try:
            request = Request.parse(scope["method"], scope["query_string"], headers)
            exchange.query_id = request.parameters.get("query_id") or exchange.query_id
            user = self._users.authenticate(*request.credentials)
            if self._under_way > self._most_waiting:
                raise ServerError(
                    TOO_MANY_SIMULTANEOUS_QUERIES,
                    f"Too many simultaneous queries. Maximum: {self._most_waiting}",
                )
            await exchange.run(request, user)
        except ServerError as error:
            await exchange.fail(error)
        except ClientGoneError:
            return

    async def _plain(self, send: Send, status: int, body: bytes) -> None:
        await self.start(
            send, status, {"content-type": "text/plain; charset=UTF-8", "content-length": str(len(body))}
        )
        await send({"type": "http.response.body", "body": body})

    async def start(self, send: Send, status: int, headers: Mapping[str, str]) -> None:
        """Send the head of an answer."""
        every = {
            "x-clickhouse-server-display-name": "mailhouse",
            "x-clickhouse-timezone": self._engine.timezone,
            **headers,
        }
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in every.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})

    async def in_worker(self, work: Callable[[], Any]) -> Any:
        """Run blocking work in a query thread."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    async def in_closer(self, work: Callable[[], Any]) -> Any:
        """Run blocking work that must not wait behind queries."""
        return await asyncio.get_running_loop().run_in_executor(self._closers, work)

    @property
    def runner(self) -> QueryRunner:
        """Runs the queries."""
        return self._runner

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self._engine


def _header_text(value: bytes) -> str:
    """A header's value: clients send names and passwords in UTF-8, whatever the RFC says."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


class _Exchange:
    """One request and its answer on one connection."""

    def __init__(self, server: EmbeddedServer, receive: Receive, send: Send) -> None:
        self._server = server
        self._receive = receive
        self._send = send
        self.query_id = str(uuid.uuid4())
        self._has_started = False
        self._is_done = False
        self._tag = ""
        self._encoder: compression.Encoder | None = None

    async def run(self, request: Request, user: User) -> None:
        """Run the query and send the answer.

        Raises:
            ServerError: before or while the answer is sent.
        """
        started = time.perf_counter()
        job = Job(self.query_id)
        body = await self._body(request)
        watcher: asyncio.Task[None] | None = None
        if isinstance(body, list):
            watcher = asyncio.create_task(self._watch(job))
        else:
            body.when_read = lambda: self._watch(job)
        answer: Answer | None = None
        try:
            answer = await self._server.in_worker(lambda: self._server.runner.run(request, user, body, job))
            assert answer is not None
            answer.summary["elapsed_ns"] = int((time.perf_counter() - started) * 1e9)
            await self._answer(request, answer, job)
        finally:
            self._is_done = True
            if answer is not None and answer.whole is None:
                await self._server.in_closer(answer.close)
            if watcher is not None:
                watcher.cancel()
            if isinstance(body, _BodyReader):
                body.stop()

    async def _body(self, request: Request) -> list[bytes] | _BodyReader:
        """The body: whole if it came in one piece, else something a worker thread can read on."""
        if request.method in ("GET", "HEAD"):
            return []
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        first = message.get("body", b"")
        if not message.get("more_body"):
            return [first] if first else []
        return _BodyReader(first, self._receive, asyncio.get_running_loop())

    async def _watch(self, job: Job) -> None:
        """Stop the query if the client leaves before the answer is whole."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        if self._is_done:
            return
        job.is_cancelled.set()
        # the query may not have reached the engine yet, or be between two of its statements
        while not self._is_done:
            await self._server.in_closer(lambda: self._server.engine.kill(job.tag))
            await asyncio.sleep(_KILL_EVERY)

    async def _answer(self, request: Request, answer: Answer, job: Job) -> None:
        encoding = ""
        if request.is_on("enable_http_compression"):
            encoding = compression.chosen_encoding(request.headers.get("accept-encoding", ""))
        is_native = request.is_on("compress")
        headers = {
            "content-type": content_type(answer.format),
            "x-clickhouse-query-id": self.query_id,
            **({"x-clickhouse-format": answer.format} if answer.has_result else {}),
            "x-clickhouse-summary": json.dumps({name: str(value) for name, value in answer.summary.items()}),
        }
        if answer.whole is not None:
            body = answer.whole
            if is_native and body:
                body = await self._server.in_worker(lambda: compression.native_blocks(answer.whole or b""))
            elif encoding and compression.is_worth_encoding(len(body)):
                encoder = compression.Encoder(encoding)
                body = await self._server.in_worker(
                    lambda: encoder.encode(answer.whole or b"") + encoder.end()
                )
                headers["content-encoding"] = encoding
            headers["content-length"] = str(len(body))
            # from here on a client that leaves has its answer
            self._is_done = True
            await self._start(200, headers)
            if request.method == "HEAD":
                body = b""
            for place in range(0, len(body), _PIECE):
                await self._send(
                    {"type": "http.response.body", "body": body[place : place + _PIECE], "more_body": True}
                )
            await self._send({"type": "http.response.body", "body": b""})
            return
        if encoding and not is_native:
            headers["content-encoding"] = encoding
            self._encoder = compression.Encoder(encoding)
        self._tag = "".join(secrets.choice(_TAG_LETTERS) for _ in range(16))
        headers["x-clickhouse-exception-tag"] = self._tag

        def piece() -> bytes | None:
            found = answer.next_piece()
            if found is None:
                return None
            if is_native:
                return compression.native_blocks(found)
            return self._encoder.encode(found) if self._encoder else found

        following = await self._server.in_worker(piece)
        await self._start(200, headers)
        while following is not None and not job.is_cancelled.is_set():
            # in small pieces: one that is larger than the socket takes would be held once more while it waits
            for place in range(0, len(following), _PIECE):
                part = following[place : place + _PIECE]
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
            following = None
            following = await self._server.in_worker(piece)
        if job.is_cancelled.is_set():
            return
        self._is_done = True
        await self._server.in_closer(answer.close)
        await self._send(
            {"type": "http.response.body", "body": self._encoder.end() if self._encoder else b""}
        )

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._has_started = True
        await self._server.start(self._send, status, headers)

    async def fail(self, error: ServerError) -> None:
        """Answer with an error; if the answer is under way, end it the way ClickHouse does.

        Raises:
            BrokenAnswerError: the answer was under way: the connection must break.
        """
        text = error.text(self._server.engine.version).encode("utf-8", "replace")
        if self._has_started:
            # ClickHouse 25.11 and later: the message between marks that carry the tag of the head
            tag = self._tag.encode()
            block = b"\r\n__exception__\r\n%s\r\n%s%d %s\r\n__exception__\r\n" % (tag, text, len(text), tag)
            if self._encoder is not None:
                block = self._encoder.encode(block) + self._encoder.end()
            await self._send({"type": "http.response.body", "body": block, "more_body": True})
            raise BrokenAnswerError
        headers = {
            "content-type": "text/plain; charset=UTF-8",
            "content-length": str(len(text)),
            "x-clickhouse-exception-code": str(error.code),
            "x-clickhouse-query-id": self.query_id,
        }
        if error.code == AUTHENTICATION_FAILED:
            headers["www-authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        elif error.code == UNKNOWN_EXCEPTION:
            log.error("the engine failed: %s", error.message)
        await self._start(error.status, headers)
        await self._send({"type": "http.response.body", "body": text})


class _BodyReader:
    """A body that is still arriving, read by a worker thread: each piece is fetched when the thread asks for it.

    Attributes:
        when_read: a coroutine to start once the body is whole.
    """

    def __init__(self, first: bytes, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        self._first = first
        self._receive = receive
        self._loop = loop
        self._is_whole = False
        self._is_stopped = False
        self._task: asyncio.Task[None] | None = None
        self.when_read: Callable[[], Any] | None = None

    def __iter__(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
        while not self._is_whole:
            if self._is_stopped:
                raise ClientGoneError
            future: concurrent.futures.Future[bytes] = asyncio.run_coroutine_threadsafe(
                self._next(), self._loop
            )
            piece = future.result()
            if piece:
                yield piece

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._is_whole = not message.get("more_body")
        if self._is_whole and self.when_read is not None:
            self._task = asyncio.get_running_loop().create_task(self.when_read())
        return message.get("body", b"")

    def stop(self) -> None:
        """The answer is out: nobody reads any more, nobody watches."""
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()
