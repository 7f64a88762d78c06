"""Runs one request's query on the engine, in a worker thread: settings for this query alone, data in, answer out."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warehouse.embedded import compression, statements
from warehouse.embedded.access import PRIVATE_SETTINGS, Effect, Policy, Statement, User
from warehouse.embedded.engine import Engine, Handle, Session, quoted, quoted_name
from warehouse.embedded.errors import (
    NOT_IMPLEMENTED,
    QUERY_IS_TOO_LARGE,
    QUERY_WAS_CANCELLED,
    SETTING_CONSTRAINT_VIOLATION,
    SYNTAX_ERROR,
    ClientGoneError,
    ServerError,
)
from warehouse.embedded.formats import StreamJoiner, native_header
from warehouse.embedded.protocol import ExternalTable, Request, read_multipart
from warehouse.embedded.spool import DataFile

# formats whose blocks, rendered one by one, make the same bytes as the whole
_STREAMED = frozenset(
    {"Native", "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "CSV", "RowBinary", "JSONEachRow", "JSONLines",
     "NDJSON", "JSONStringsEachRow", "JSONCompactEachRow", "ArrowStream"}
)  # fmt: skip
_QUERY_WORDS = frozenset({b"SELECT", b"WITH", b"FROM"})
_HEAD = 64 << 10  # bytes of a body in which an INSERT's head must end
_LARGEST_QUERY = 512 << 20  # bytes of a query that is not an INSERT with data
_INFILE_PLACE = ": While executing File: data for INSERT query"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.:-]")
_NOT_STREAMED = "Streaming query is not supported"


@dataclass
class Job:
    """A request under way, as those see it who may have to stop it."""

    query_id: str
    tag: str = ""
    is_cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        # travels in the query as a comment, so that system.processes shows it and KILL QUERY finds it
        self.tag = f"/* query_id={_UNSAFE.sub('_', self.query_id)[:64]} {uuid.uuid4().hex[:12]} */"

    def check(self) -> None:
        """Stop here if the client is gone."""
        if self.is_cancelled.is_set():
            raise ServerError(QUERY_WAS_CANCELLED, "Query was cancelled")


class Answer:
    """A query's answer: pieces of the body in order. `close` gives the handle back; do so before the last piece is
    sent, or the client's next request in the same session finds it taken.

    Attributes:
        format: the output format.
        summary: for the X-ClickHouse-Summary header.
        whole: the whole body if it is known, else None: then `next_piece` gives it.
        has_result: whether the statement gives rows, be there any; one that only writes tells no format.
    """

    def __init__(
        self, output_format: str, summary: Mapping[str, int], whole: bytes | None, lease: Lease
    ) -> None:
        self.format = output_format
        self.summary = dict(summary)
        self.whole = whole
        self.has_result = True
        self._lease = lease
        self._pieces: Iterator[bytes] = iter(())

    @classmethod
    def streamed(
        cls, output_format: str, summary: Mapping[str, int], pieces: Iterator[bytes], lease: Lease
    ) -> Answer:
        """An answer that is still being computed."""
        answer = cls(output_format, summary, None, lease)
        answer._pieces = pieces
        return answer

    def next_piece(self) -> bytes | None:
        """The next piece, None at the end. Blocks; raises ServerError if the query fails."""
        return next(self._pieces, None)

    def close(self) -> None:
        """Stop what still runs and give the handle back. Harmless twice."""
        self._lease.close()


class Lease:
    """A handle for the length of one request, and the way back to what it was.

    Args:
        engine: where handles come from.
        request: says database, session and settings.
        user: readers get handles that cannot write.
    """

    def __init__(self, engine: Engine, request: Request, user: User) -> None:
        # readonly is judged by the policy: the engine would not let go of it afterwards
        settings = {name: value for name, value in request.settings.items() if name != "readonly"}
        self._engine = engine
        self._is_reader = user.is_reader
        self._session: Session | None = None
        self._undo: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._is_closed = False
        asked = request.session
        # a reader's handle can make no temporary table, so it becomes a reader's only after
        self._late_reader = user.is_reader and bool(request.external)
        if asked is None:
            database = request.database or "default"
            is_reader = user.is_reader and not self._late_reader
            self.handle = engine.take(database, settings, is_reader=is_reader)
            if self._late_reader:
                self.handle.is_stale = True
        else:
            if self._late_reader:
                raise ServerError(NOT_IMPLEMENTED, "External tables of a read-only user in a session")
            name, seconds, must_exist = asked
            self._session = engine.enter_session(
                user.name, name, seconds, must_exist=must_exist, is_reader=user.is_reader
            )
            self.handle = self._session.handle
        try:
            self._enter_database(request.database)
            if self._session is None:
                self.handle.apply(settings)
            else:
                self.set(settings)
        except BaseException:
            self.close()
            raise

    @property
    def spool(self) -> Path:
        """Folder for data on its way into the engine."""
        return self._engine.spool

    @property
    def has_session(self) -> bool:
        """Whether what the client changes stays for its next request."""
        return self._session is not None

    def _enter_database(self, database: str) -> None:
        if self._session is None:
            self.handle.use(database or "default")
        elif database and database != self.handle.database:
            before = self.handle.database
            self.handle.use(database)
            self._undo.append(lambda: self.handle.use(before))

    def set(self, settings: Mapping[str, str]) -> None:
        """Change settings until the lease ends."""
        if not settings:
            return
        names = list(settings)
        if self.has_session and self.handle.has_settings:
            before = self.handle.values_of(names)
            self._undo.append(lambda: self.handle.set(before))
        else:
            self._undo.append(lambda: self.handle.reset(names))
        self.handle.set(settings)

    def add_tables(self, tables: Iterable[ExternalTable]) -> None:
        """Make the request's external tables."""
        for table in tables:
            name = quoted_name(table.name)
            self.handle.query(f"CREATE OR REPLACE TEMPORARY TABLE {name} ({table.structure}) ENGINE = Memory")
            if self.has_session:
                self._undo.append(
                    lambda name=name: self.handle.query(f"DROP TEMPORARY TABLE IF EXISTS {name}")
                )
            else:
                self.handle.is_stale = True
            head = statements.InsertHead(f"INSERT INTO {name} ".encode(), b"", table.format, 0, False)
            insert(self.handle, head, [table.data], self._engine.spool)
        if self._late_reader:
            self.handle.query("SET readonly = 2")

    def before_close(self, undo: Callable[[], object]) -> None:
        """Do something when the lease ends, last added first."""
        self._undo.append(undo)

    def close(self) -> None:
        """End the lease. Harmless twice, and from another thread."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        if not self.handle.is_stale or self.has_session:
            for undo in reversed(self._undo):
                try:
                    undo()
                except (ServerError, RuntimeError):
                    self.handle.is_stale = True
        if self._session is not None:
            self._engine.leave_session(self._session)
        else:
            self._engine.give_back(self.handle, is_reader=self._is_reader and not self._late_reader)


def insert(
    handle: Handle,
    head: statements.InsertHead,
    data: Iterable[bytes],
    spool: Path,
    *,
    tag: str = "",
) -> Any:
    """INSERT with data: the data is laid down whole, then the engine reads it with FROM INFILE.

    The engine's own streaming insert (`send_insert`) is not used: it reports success for what the table refused (a
    full disk, a violated constraint, too many parts, an error in a materialised view). And a body that breaks off
    or does not decompress leaves nothing, for the insert begins only when all of it is here.

    Raises:
        ServerError: what the engine said, or what the data's own iterator raised.
    """
    with DataFile(spool) as file:
        for chunk in data:
            file.write(chunk)
        source = quoted(file.path)
        sql = (
            f"{tag} {_text(head.target)} FROM INFILE {source} COMPRESSION 'none' "
            f"{_text(head.settings)} FORMAT {head.format}"
        )
        try:
            return handle.query(sql, "TSVRaw", hide=tag)
        except ServerError as error:
            message = error.message.replace(f"(in file/uri {file.path}): ", "").replace(_INFILE_PLACE, "")
            raise ServerError(error.code, message, name=error.name) from None


class QueryRunner:
    """Runs requests. Thread-safe; each call of `run` blocks its thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._policy = Policy(engine.engines, engine.table_functions)

    def run(self, request: Request, user: User, raw_body: Iterable[bytes], job: Job) -> Answer:
        """Read the body, judge the statement, run it. The caller closes the answer.

        Raises:
            ServerError: whatever keeps the query from running or from giving its first rows.
            ClientGoneError: the client hung up while it sent the body.
        """
        query, data = self._read(request, raw_body)
        if not query.strip():
            raise ServerError(SYNTAX_ERROR, "Syntax error: Empty query")
        for name in request.settings:
            if name in PRIVATE_SETTINGS:
                raise ServerError(SETTING_CONSTRAINT_VIOLATION, f"Setting {name} should not be changed")
            self._policy.check_setting(user, name)
        self._policy.check_database(user, request.database)
        for table in request.external:
            self._policy.check_structure(table.structure)
        job.check()
        lease = Lease(self._engine, request, user)
        try:
            is_read_only = request.is_read_only or request.settings.get("readonly", "0") != "0"
            lease.add_tables(request.external)
            execution = _Execution(lease, request, job, self._policy, user, is_read_only)
            head = statements.insert_head(query) if statements.is_insert(query) else None
            if head is not None:
                return execution.insert(head, query, data)
            return execution.query(_text(b"".join([query, *data])))
        except BaseException:
            lease.close()
            raise

    @staticmethod
    def _read(request: Request, raw_body: Iterable[bytes]) -> tuple[bytes, Iterable[bytes]]:
        """The query's text, and the data behind it that has not been read yet (only for an INSERT)."""
        chunks = compression.decoded(raw_body, request.headers.get("content-encoding", ""))
        if request.is_on("decompress"):
            chunks = compression.from_native_blocks(chunks)
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            read_multipart(request, _all(chunks))
            chunks = iter(())
        query = request.parameters.get("query", "").encode()
        if query:
            if statements.is_insert(query):
                return query, chunks
            rest = _all(chunks)
            return (query + b"\n" + rest if rest else query), ()
        start = bytearray()
        for chunk in chunks:
            start += chunk
            if len(start) >= _HEAD:
                break
        if statements.is_insert(bytes(start)) and statements.insert_head(bytes(start)) is not None:
            return bytes(start), chunks
        return bytes(start) + _all(chunks, _LARGEST_QUERY - len(start)), ()


class _Execution:
    """One statement on one lease."""

    def __init__(
        self, lease: Lease, request: Request, job: Job, policy: Policy, user: User, is_read_only: bool
    ) -> None:
        self._lease = lease
        self._handle = lease.handle
        self._request = request
        self._job = job
        self._policy = policy
        self._user = user
        self._is_read_only = is_read_only
        self._parameters = request.query_parameters

    def _judged(self, text: str) -> Statement:
        handle = self._handle
        statement = Statement(
            text,
            classify=handle.classify,
            explain=lambda sql: handle.explain(sql, self._parameters),
            normalise=handle.normalise,
        )
        self._policy.check(statement, self._user, is_read_only=self._is_read_only)
        return statement

    # INSERT with data -----------------------------------------------------------------------------------------

    def insert(self, head: statements.InsertHead, query: bytes, rest: Iterable[bytes]) -> Answer:
        """INSERT ... FORMAT X or VALUES, with data behind it in the query and in what is left of the body."""
        statement = _text(head.statement)
        self._judged(
            f"{statement} VALUES" if head.format == "Values" else f"{statement} FORMAT {head.format}"
        )
        data = _chain(query[head.data_start :], rest)
        if head.format == "Values":
            values = _all(data)
            if not head.has_select and self._policy.check_values(
                values.decode("utf-8", "replace"), lambda sql: self._handle.explain(sql, self._parameters)
            ):
                self._lease.set(dict.fromkeys(PRIVATE_SETTINGS, "1"))
            data = iter([values])
        self._job.check()
        tag = self._job.tag
        if head.has_select:
            result = self._insert_through_select(head, data)
        elif self._parameters:
            # the engine substitutes no parameters where it streams data
            clause = " VALUES " if head.format == "Values" else f" FORMAT {head.format}\n"
            text = f"{tag} {statement}{clause}{_text(_all(data))}"
            result = self._handle.query(text, "TSVRaw", self._parameters, hide=tag)
        else:
            result = insert(self._handle, head, data, self._lease.spool, tag=tag)
        summary = {"written_rows": result.rows_written(), "written_bytes": result.bytes_written()}
        return self._whole(self._request.default_format, _summary(summary), b"")

    def _insert_through_select(self, head: statements.InsertHead, data: Iterable[bytes]) -> Any:
        """INSERT SELECT FROM input(): the engine feeds no data to input(), so that becomes a temporary table."""
        call = statements.input_call(head.statement)
        if call is None:
            raise ServerError(
                NOT_IMPLEMENTED, "INSERT SELECT with data needs input('structure') with a literal structure"
            )
        structure = self._handle.text(f"SELECT {call.structure.decode()}")
        self._policy.check_structure(structure)
        name = f"mailhouse_input_{uuid.uuid4().hex[:12]}"
        self._lease.add_tables([ExternalTable(name, structure, head.format, _all(data))])
        statement = head.statement[: call.start] + name.encode() + head.statement[call.end :]
        tag = self._job.tag
        return self._handle.query(f"{_text(statement)}\n{tag}", "TSVRaw", self._parameters, hide=tag)

    # everything else ------------------------------------------------------------------------------------------

    def query(self, text: str) -> Answer:
        """A statement without data behind it."""
        statement = self._judged(text)
        output = statements.output_of(text.encode())
        output_format = output.format or self._request.default_format
        inner = output.statement.decode()
        self._job.check()
        is_query = (
            statement.effect is Effect.READ_ONLY and statements.first_word(text.encode()) in _QUERY_WORDS
        )
        is_plain = not output.format or len(inner) < len(text)
        if (
            is_query
            and is_plain
            and output_format in _STREAMED
            and not self._request.is_on("wait_end_of_query")
        ):
            is_native = output_format == "Native"
            if is_native and statements.asks_for_columns(inner.encode()) and (header := self._columns(inner)):
                # the engine would read tables first, for sets and scalars of a query that gives no row
                return self._whole(output_format, _summary({}), header)
            answer = self._streamed(inner, output_format)
            if answer is not None:
                return answer
        tag = self._job.tag
        result = self._handle.query(f"{text}\n{tag}", output_format, self._parameters, hide=tag)
        self._note_effect(statement)
        body = result.bytes() or b""
        if not body and output_format == "Native" and is_query:
            body = self._columns(inner)
        summary = _summary(
            {
                "read_rows": result.storage_rows_read(),
                "read_bytes": result.storage_bytes_read(),
                "written_rows": result.rows_written(),
                "written_bytes": result.bytes_written(),
                "result_rows": result.rows_read(),
                "result_bytes": len(body),
            }
        )
        answer = self._whole(output_format, summary, body)
        answer.has_result = statement.effect is Effect.READ_ONLY or bool(body)
        return answer

    def _note_effect(self, statement: Statement) -> None:
        """What a SET or USE leaves in the handle."""
        if statement.effect is not Effect.CONTROL:
            return
        if not self._lease.has_session:
            self._handle.is_stale = True
        elif statement.root == "Set":
            self._handle.has_settings = True
        elif statement.root == "UseQuery":
            self._handle.database = self._handle.text("SELECT currentDatabase()")

    def _streamed(self, statement: str, output_format: str) -> Answer | None:
        """Start a query and wait for its first rows; None if the engine does not stream this statement."""
        connection, tag = self._handle.connection, self._job.tag
        try:
            running = connection.send_query(f"{statement}\n{tag}", output_format, params=self._parameters)
        except RuntimeError as error:
            if _NOT_STREAMED in str(error):
                return None
            self._handle.discard_output()
            raise ServerError.from_engine(error, hide=tag) from None
        blocks = _Blocks(self._handle, running, tag)
        self._lease.before_close(blocks.cancel)
        pieces = _joined(blocks) if output_format == "ArrowStream" else iter(blocks)
        first = next(pieces, b"")
        second = next(pieces, None)
        summary = _summary({"read_rows": blocks.rows, "read_bytes": blocks.bytes})
        if second is None:
            if not first and output_format == "Native":
                first = self._columns(statement)
            return self._whole(output_format, summary, first)
        return Answer.streamed(output_format, summary, _after(deque((first, second)), pieces), self._lease)

    def _columns(self, statement: str) -> bytes:
        """Names and types of an answer without rows, as a Native block."""
        try:
            described = self._handle.query(
                f"DESCRIBE ({statement.rstrip().rstrip(';')}\n)", "JSONCompact", self._parameters
            )
        except ServerError:
            return b""
        rows = json.loads(described.bytes())["data"]
        return native_header([row[0] for row in rows], [row[1] for row in rows])

    def _whole(self, output_format: str, summary: Mapping[str, int], body: bytes) -> Answer:
        # before the answer leaves: the client's next query in this session must find it free
        self._lease.close()
        return Answer(output_format, summary, body, self._lease)


class _Blocks:
    """A running query's blocks, rendered; counts what the first block says was read."""

    def __init__(self, handle: Handle, running: Any, tag: str) -> None:
        self._handle = handle
        self._connection = handle.connection
        self._running = running
        self._tag = tag
        self._is_done = False
        self.rows = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        while not self._is_done:
            try:
                block = self._connection.streaming_fetch_result(self._running)
            except RuntimeError as error:
                self._is_done = True
                self._handle.discard_output()
                raise ServerError.from_engine(error, hide=self._tag) from None
            if block is None:
                self._is_done = True
                return
            self.rows = max(self.rows, block.storage_rows_read())
            self.bytes = max(self.bytes, block.storage_bytes_read())
            # the last block has no rows; it may still hold totals, or the schema of an empty answer
            self._is_done = block.rows_read() == 0
            piece = block.bytes()
            if piece:
                yield piece

    def cancel(self) -> None:
        """Stop the query if it still runs."""
        if not self._is_done:
            self._is_done = True
            with suppress(RuntimeError):
                self._connection.streaming_cancel_query(self._running)
            self._handle.discard_output()


def _joined(blocks: _Blocks) -> Iterator[bytes]:
    joiner = StreamJoiner()
    waiting = b""
    for block in blocks:
        if waiting:
            yield waiting
        waiting = joiner.join(block)
    yield waiting + joiner.end()


def _after(ready: deque[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    while ready:  # let go of each before the next: blocks are large
        yield ready.popleft()
    yield from rest


def _chain(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _all(chunks: Iterable[bytes], most: int = _LARGEST_QUERY) -> bytes:
    whole = bytearray()
    for chunk in chunks:
        whole += chunk
        if len(whole) > most:
            raise ServerError(QUERY_IS_TOO_LARGE, f"The query has more than {_LARGEST_QUERY} bytes")
    return bytes(whole)


def _text(query: bytes) -> str:
    try:
        return query.decode()
    except UnicodeDecodeError:
        raise ServerError(
            NOT_IMPLEMENTED, "The embedded engine takes query text in UTF-8 only; write other bytes as \\xNN"
        ) from None


def _summary(found: Mapping[str, int]) -> dict[str, int]:
    names = (
        "read_rows",
        "read_bytes",
        "written_rows",
        "written_bytes",
        "total_rows_to_read",
        "result_rows",
        "result_bytes",
    )
    return {name: found.get(name, 0) for name in names}


__all__ = ["Answer", "ClientGoneError", "Job", "QueryRunner", "insert"]
