"""Mail over SMTP (RFC 5321), through a few connections that stay open.

One rule decides everything: a message may be sent again only if the server certainly did not take it. Until the final
dot of the data has been handed to the network, a lost connection means just that; once it has, only the server's
answer tells, and without one the outcome is `unknown`. Extensions that are used where offered: PIPELINING (2920),
SIZE (1870), STARTTLS (3207), AUTH (4954), SMTPUTF8 (6531), DSN (3461), enhanced status codes (3463).
"""

from __future__ import annotations

import base64
import contextlib
import functools
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from senders.journal import Marks
from senders.loopback import is_loopback
from senders.message import Delivery, Message, Reason, RejectReason, Status
from senders.mime import mailbox
from senders.providers.base import (
    Capabilities,
    Make,
    Provider,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from warehouse.errors import SettingsError

if TYPE_CHECKING:
    from senders.settings import SenderSettings

TlsMode = Literal["none", "starttls", "implicit", "opportunistic"]
_MODES: tuple[TlsMode, ...] = ("none", "starttls", "implicit", "opportunistic")
_PORTS = {"none": 25, "starttls": 587, "implicit": 465, "opportunistic": 25}
_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})\b")
_LONGEST_LINE = 8192
_MOST_LINES = 100
_MOST_HANDSHAKES = 20
_WINDOW = 200
_READ = 8192
_RUN = 20  # messages made in a row
_ENVELOPE = ("mail", "rcpt", "data")
#: A message and the envelope of the next one were taken.
_ALL_WELL = re.compile(rb"250 ([^\r\n]*)\r\n250 [^\r\n]*\r\n250 [^\r\n]*\r\n354 [^\r\n]*\r\n")


@dataclass(frozen=True)
class SmtpServer:
    """A server and how to talk to it; `repr` hides the password.

    Attributes:
        tls: `starttls` insists on it, `opportunistic` uses it if offered, `implicit` begins with it.
        ca_file: PEM file of authorities to trust beside the system's.
        connect_timeout, timeout: seconds, for connecting and for any answer.
        data_timeout: seconds, for the answer after the final dot; long, because a message whose answer is not awaited
            is of unknown outcome (RFC 5321 asks for ten minutes).
    """

    host: str
    port: int
    tls: TlsMode
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    connect_timeout: float = 30.0
    timeout: float = 120.0
    data_timeout: float = 600.0

    @classmethod
    def parse(cls, url: str) -> SmtpServer:
        """Parse `smtp://user:password@host:port?tls=starttls&ca=FILE`, or `smtps://` for implicit TLS.

        Without `tls`, a server on this machine is spoken to in plain, any other with STARTTLS.

        Raises:
            SettingsError: it is no such URL, has an unknown option, or would send a password in the clear.
        """
        fix = "Write it like smtp://user:password@mail.example.com:587?tls=starttls; percent-encode special characters."
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise SettingsError("MAILHOUSE_SMTP_URL is no URL.", fix=fix) from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.path not in ("", "/"):
            raise SettingsError("MAILHOUSE_SMTP_URL is no smtp or smtps URL of a server.", fix=fix)
        options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        unknown = sorted(options.keys() - {"tls", "ca"})
        if unknown:
            raise SettingsError(
                f"MAILHOUSE_SMTP_URL has an unknown option {unknown[0]!r}.", fix="Options are tls and ca."
            )
        usual = (
            "implicit" if parts.scheme == "smtps" else "none" if is_loopback(parts.hostname) else "starttls"
        )
        tls = options.get("tls", usual)
        if tls not in _MODES or (parts.scheme == "smtps" and tls != "implicit"):
            raise SettingsError(
                f"MAILHOUSE_SMTP_URL cannot have tls={tls}.",
                fix=f"With smtps:// leave it out; otherwise choose of {', '.join(_MODES)}.",
            )
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if user and tls in ("none", "opportunistic") and not is_loopback(parts.hostname):
            raise SettingsError(
                f"MAILHOUSE_SMTP_URL would send the password to {parts.hostname} without insisting on encryption.",
                fix="Use tls=starttls or smtps://.",
            )
        return cls(parts.hostname, port or _PORTS[tls], tls, user, password, options.get("ca", ""))

    @property
    def label(self) -> str:
        """`host:port`, for messages."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer: code and text, lines joined by spaces."""

    code: int
    text: str

    @property
    def is_ok(self) -> bool:
        """2yz, or 3yz where the server waits for more."""
        return 200 <= self.code < 400

    @property
    def is_transient(self) -> bool:
        """4yz: not now."""
        return 400 <= self.code < 500

    @property
    def enhanced(self) -> tuple[int, int, int] | None:
        """Class, subject and detail of RFC 3463, if the text begins with them."""
        found = _ENHANCED.match(self.text)
        return (int(found[1]), int(found[2]), int(found[3])) if found else None

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class _LostError(Exception):
    """The connection is gone, or talks no SMTP any more."""


class SmtpConnection:
    """One connection. Not for several threads at once.

    Raises from the constructor:
        ProviderUnavailableError: the server does not answer, or not now.
        ProviderRefusedError: it refuses us: credentials, TLS, policy.
    """

    def __init__(self, server: SmtpServer, context: ssl.SSLContext | None) -> None:
        self.server = server
        self.sent = 0
        self._buffer = b""
        self._features: dict[str, str] = {}
        try:
            self._socket: socket.socket = socket.create_connection(
                (server.host, server.port), timeout=server.connect_timeout
            )
        except OSError as error:
            raise ProviderUnavailableError(
                f"The SMTP server {server.label} does not answer: {error.strerror or error}.",
                fix="Start it, or correct MAILHOUSE_SMTP_URL. What was not sent waits for the next run.",
            ) from error
        try:
            self._open(context)
        except BaseException:
            self._socket.close()
            raise

    def _open(self, context: ssl.SSLContext | None) -> None:
        server = self.server
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if server.tls == "implicit":
                self._encrypt(context)
            self._socket.settimeout(server.timeout)
            self._expect(self._read(), "its greeting")
            self._hello()
            if server.tls in ("starttls", "opportunistic"):
                if "STARTTLS" in self._features:
                    self._expect(self._command("STARTTLS"), "STARTTLS")
                    # what came before the handshake is not to be trusted
                    self._buffer = b""
                    self._encrypt(context)
                    self._hello()
                elif server.tls == "starttls":
                    raise ProviderRefusedError(
                        f"The SMTP server {server.label} offers no STARTTLS.",
                        fix="Use its TLS port with smtps://, or tls=none if it is on a network you trust.",
                    )
            if server.user:
                self._log_in()
        except ssl.SSLError as error:
            raise ProviderRefusedError(
                f"No TLS with the SMTP server {server.label}: {error.reason or error}.",
                fix="Check host name and certificate; name a private authority with ?ca=FILE.",
            ) from error
        except (_LostError, OSError) as error:
            raise ProviderUnavailableError(
                f"The SMTP server {server.label} hung up before we could begin: {error}.",
                fix="Try again later; what was not sent waits for the next run.",
            ) from error

    def _encrypt(self, context: ssl.SSLContext | None) -> None:
        assert context is not None
        self._socket = context.wrap_socket(self._socket, server_hostname=self.server.host)

    def _hello(self) -> None:
        name = socket.getfqdn()
        name = name if "." in name and name.isascii() else "[127.0.0.1]"
        reply = self._command(f"EHLO {name}")
        self._features = {}
        if reply.code in (500, 501, 502, 504):
            reply = self._command(f"HELO {name}")
        elif reply.is_ok:
            for line in self._last_lines[1:]:
                word, _, rest = line.partition(" ")
                self._features[word.upper()] = rest
        self._expect(reply, "EHLO")

    def _log_in(self) -> None:
        user, password = self.server.user, self.server.password
        offered = self._features.get("AUTH", "").upper().split()
        if "PLAIN" in offered:
            token = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
            reply = self._command(f"AUTH PLAIN {token}")
        elif "LOGIN" in offered:
            reply = self._command("AUTH LOGIN")
            for secret in (user, password):
                if reply.code == 334:
                    reply = self._command(base64.b64encode(secret.encode()).decode())
        else:
            raise ProviderRefusedError(
                f"The SMTP server {self.server.label} offers no way to log in that we know (PLAIN, LOGIN).",
                fix="Take user and password out of MAILHOUSE_SMTP_URL if it needs none, or use its submission port.",
            )
        if reply.code != 235:
            if reply.is_transient:
                raise ProviderUnavailableError(
                    f"The SMTP server {self.server.label} cannot check logins now: {reply}"
                )
            raise ProviderRefusedError(
                f"The SMTP server {self.server.label} refuses the login of {user!r}: {reply}",
                fix="Correct user and password in MAILHOUSE_SMTP_URL.",
            )

    def _expect(self, reply: Reply, what: str) -> None:
        if reply.is_ok:
            return
        message = f"The SMTP server {self.server.label} answers {what} with: {reply}"
        if reply.is_transient:
            raise ProviderUnavailableError(message, fix="Try again later.")
        raise ProviderRefusedError(message, fix="Ask who runs the server; it does not want mail from here.")

    @property
    def features(self) -> Mapping[str, str]:
        """Extensions that the server offers, with their parameters."""
        return self._features

    @property
    def socket(self) -> socket.socket:
        """The socket, for whoever carries transactions over it."""
        return self._socket

    @property
    def is_open(self) -> bool:
        """Whether another message can be tried."""
        return self._socket.fileno() >= 0

    def quit(self) -> None:
        """Say goodbye, without waiting long for the answer."""
        if self.is_open:
            with contextlib.suppress(_LostError, OSError):
                self._socket.settimeout(2.0)
                self._command("QUIT")
            self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _command(self, line: str) -> Reply:
        self._write(line.encode() + b"\r\n")
        return self._read()

    def _write(self, content: bytes) -> None:
        self._socket.sendall(content)

    def _read(self) -> Reply:
        lines: list[str] = []
        while True:
            line = self._read_line()
            if len(line) < 3 or not line[:3].isdigit() or line[3:4] not in (b"", b" ", b"-"):
                raise _LostError("the answer is no SMTP")
            lines.append(line[4:].decode("utf-8", "replace").strip())
            if line[3:4] != b"-":
                self._last_lines = lines
                return Reply(int(line[:3]), " ".join(lines))
            if len(lines) > _MOST_LINES:
                raise _LostError("the answer does not end")

    def _read_line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LONGEST_LINE:
                raise _LostError("the answer is too long")
            received = self._socket.recv(16_384)
            if not received:
                raise _LostError("the server closed the connection")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")


class SmtpProvider(Provider):
    """Send through one SMTP server.

    Args:
        connections: at most so many at once.
        bounce_address: with the message's id behind a plus sign it is the return path; empty: the sender's address.
    """

    name = "smtp"
    capabilities = Capabilities(dispatch_window=_WINDOW, can_attach=True, can_invite=True, marks_each=True)

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> SmtpProvider:
        """The provider of the settings.

        Raises:
            SettingsError: no server is set, or it is no URL of one.
        """
        return cls.maker(settings)()

    @classmethod
    def maker(cls, settings: SenderSettings) -> Callable[[], SmtpProvider]:
        """As `Provider.maker`; whoever makes it there needs no settings.

        Raises:
            SettingsError: no server is set, or it is no URL of one.
        """
        if settings.smtp_url is None:
            raise SettingsError(
                "Provider smtp needs a server, and MAILHOUSE_SMTP_URL is not set.",
                fix="Set it, like smtp://user:password@mail.example.com:587?tls=starttls.",
            )
        server = SmtpServer.parse(settings.smtp_url.get_secret_value())
        return functools.partial(
            cls, server, connections=settings.smtp_connections, bounce_address=settings.bounce_address
        )

    def __init__(self, server: SmtpServer, *, connections: int = 4, bounce_address: str = "") -> None:
        if connections < 1:
            raise SettingsError(f"MAILHOUSE_SMTP_CONNECTIONS is {connections}.", fix="Set it to 1 or more.")
        if bounce_address:
            try:
                mailbox(bounce_address)
            except ValueError as error:
                raise SettingsError(
                    f"MAILHOUSE_BOUNCE_ADDRESS {bounce_address!r} is no address: {error}.",
                    fix="Write it like bounce@mail.example.com.",
                ) from None
        self.server = server
        self.connections = connections
        self.bounce_address = bounce_address
        self.capabilities = replace(self.capabilities, reaches_people=not is_loopback(server.host))
        self._idle: list[SmtpConnection] = []
        self._refused: ProviderRefusedError | None = None
        self._context: ssl.SSLContext | None = None
        if server.tls != "none":
            try:
                self._context = ssl.create_default_context()
                if server.ca_file:
                    self._context.load_verify_locations(server.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(
                    f"The certificate authorities in {server.ca_file} cannot be read: {error}.",
                    fix="Name a PEM file in ?ca=.",
                ) from None

    def send(self, batch: Sequence[Message]) -> list[Delivery]:
        """Hand messages over, several at a time.

        Raises:
            ProviderUnavailableError, ProviderRefusedError: nothing was handed over.
        """
        return self.send_each([message.message_id for message in batch], batch.__getitem__)

    def send_each(self, message_ids: Sequence[str], make: Make) -> list[Delivery]:
        """Hand messages over, each made while others are on their way.

        Raises:
            ProviderUnavailableError, ProviderRefusedError: nothing was handed over.
        """
        if self._refused is not None:
            raise self._refused
        transfer = _Transfer(message_ids, make, self.server, self.bounce_address, self.marks)
        for connection in self._take(min(self.connections, transfer.left), transfer):
            transfer.begin(connection)
        while transfer.lanes:
            transfer.turn()
            if transfer.missing:
                # a connection that was lost is replaced while there is work for it
                for _ in range(min(transfer.missing, transfer.left)):
                    for connection in self._take(1, transfer):
                        transfer.begin(connection)
                transfer.missing = 0
        self._idle += transfer.done
        self._refused = transfer.refused
        if transfer.error is not None and not transfer.answers:
            raise transfer.error
        # what no connection took was certainly not handed over
        why = str(transfer.error.message if transfer.error else "not tried")
        return [
            transfer.answers.get(position) or _lost(message_id, why)
            for position, message_id in enumerate(message_ids)
        ]

    def _take(self, count: int, transfer: _Transfer) -> list[SmtpConnection]:
        """So many connections, kept ones first; fewer if the server gives no more: `transfer` has the reason."""
        found = []
        while self._idle and len(found) < count:
            connection = self._idle.pop()
            # one that is needed in place of another that was lost must be new: the server may have closed them all
            if transfer.missing:
                connection.quit()
            elif connection.is_open:
                found.append(connection)
        missing = count - len(found)
        if missing <= 0:
            return found

        def connect(_: int) -> SmtpConnection | ProviderUnavailableError | ProviderRefusedError:
            try:
                return SmtpConnection(self.server, self._context)
            except (ProviderUnavailableError, ProviderRefusedError) as error:
                return error

        # handshakes side by side: each is several round trips
        with ThreadPoolExecutor(min(missing, _MOST_HANDSHAKES)) as pool:
            made = list(pool.map(connect, range(missing))) if missing > 1 else [connect(0)]
        for one in made:
            if isinstance(one, SmtpConnection):
                found.append(one)
            else:
                transfer.error = transfer.error or one
        return found

    def close(self) -> None:
        """Say goodbye on all connections."""
        while self._idle:
            self._idle.pop().quit()


class _Lane:
    """One connection while it carries messages.

    Where the server takes commands in groups (PIPELINING), a message and the envelope of the next one are one write.

    Attributes:
        expected: what the answers still to come are answers to: `mail`, `rcpt`, `data`, `end` (of a message), `drop`
            (the end of a message to nobody) or `rset`.
        position: the message whose envelope is under way.
        refusal: the first refusal in that envelope, and of which command.
        ended: the message whose end the server has not answered.
        unsent: bytes that the network has not taken yet.
        before_end: how many of those come before and with the final dot of `ended`.
        sizes, reports: whether the server takes a message's length, and tells what became of it (DSN).
        has_parameters: either of them.
        most_bytes: of a message; 0: it names no limit.
        recipient: the RCPT command of the envelope under way.
    """

    __slots__ = (
        "before_end", "buffer", "connection", "deadline", "ended", "expected", "has_parameters", "is_encrypted",
        "lines", "most_bytes", "pipelines", "position", "recipient", "refusal", "reports", "sizes", "socket",
        "unsent",
    )  # fmt: skip

    def __init__(self, connection: SmtpConnection) -> None:
        self.connection = connection
        self.socket = connection.socket
        self.socket.setblocking(False)
        self.is_encrypted = isinstance(self.socket, ssl.SSLSocket)
        features = connection.features
        self.pipelines = "PIPELINING" in features
        self.sizes, self.reports = "SIZE" in features, "DSN" in features
        limit = features.get("SIZE", "")
        self.most_bytes = int(limit) if limit.isdigit() else 0
        self.has_parameters = self.sizes or self.reports
        self.recipient = ""
        self.expected: deque[str] = deque()
        self.position: int | None = None
        self.refusal: tuple[str, Reply] | None = None
        self.ended: int | None = None
        self.unsent: memoryview | bytes = b""
        self.before_end = 0
        self.buffer = b""
        self.lines: list[str] = []
        self.deadline = 0.0

    def write(self, *contents: bytes) -> None:
        """Hand bytes to the network, and keep what it does not take now.

        Raises:
            OSError: the connection is gone.
        """
        if self.unsent:
            self.unsent = b"".join((self.unsent, *contents))
            return
        taken = 0
        if not self.is_encrypted:
            try:
                # a message of 40 KB is not copied to have an envelope behind it
                taken = self.socket.sendmsg(contents)
            except BlockingIOError:
                taken = 0
            if taken == sum([len(content) for content in contents]):
                self.before_end = 0
                return
            self.before_end = max(0, self.before_end - taken)
        self.unsent = memoryview(b"".join(contents))[taken:]
        self.flush()

    def flush(self) -> None:
        """Hand over what was kept.

        Raises:
            OSError: the connection is gone.
        """
        while self.unsent:
            try:
                taken = self.socket.send(self.unsent)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            self.unsent = self.unsent[taken:]
            self.before_end = max(0, self.before_end - taken)

    def receive(self) -> bytes:
        """What has come; nothing if nothing has.

        Raises:
            _LostError, OSError: the connection is gone.
        """
        try:
            received = self.socket.recv(_READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        if not received:
            raise _LostError("the server closed the connection")
        return received

    def replies(self, received: bytes) -> Iterator[tuple[int, str]]:
        """Answers that are whole now: code and text.

        Raises:
            _LostError: it talks no SMTP any more.
        """
        *lines, self.buffer = (self.buffer + received).split(b"\n")
        for line in lines:
            code, mark = line[:3], line[3:4]
            if len(code) < 3 or not code.isdigit() or mark not in (b"", b" ", b"-", b"\r"):
                raise _LostError("the answer is no SMTP")
            text = line[4:].decode("utf-8", "replace").strip()
            if mark == b"-":
                self.lines.append(text)
                if len(self.lines) > _MOST_LINES:
                    raise _LostError("the answer does not end")
                continue
            if self.lines:
                text = " ".join((*self.lines, text))
                self.lines.clear()
            yield int(code), text
        if len(self.buffer) > _LONGEST_LINE:
            raise _LostError("the answer is too long")


class _Transfer:
    """A batch on its way over several connections, in one thread.

    Messages are made a few in a row, when the envelope of the first is due, and given up with their answers: so the
    processor's cache holds what makes them, and them too until they have gone.

    Attributes:
        answers: by position in the batch. `message_ids`: of all of it.
        lanes: connections at work. `done`: those that have none left, still open. `missing`: lost since last asked.
        left: messages that no connection has taken.
        error: the first connection that could not be made. `refused`: the server does not want this sender.
    """

    def __init__(
        self,
        message_ids: Sequence[str],
        make: Make,
        server: SmtpServer,
        bounce_address: str,
        marks: Marks | None,
    ) -> None:
        self.message_ids, self.server, self.marks = message_ids, server, marks
        self._make = make
        self._bounce_to = mailbox(bounce_address).rsplit("@", 1) if bounce_address else None
        self.answers: dict[int, Delivery] = {}
        self.lanes: set[_Lane] = set()
        self.done: list[SmtpConnection] = []
        self.missing = 0
        self.error: ProviderUnavailableError | ProviderRefusedError | None = None
        self.refused: ProviderRefusedError | None = None
        self._poll = select.poll()
        self._lanes: dict[int, _Lane] = {}
        self._waiting = deque(range(len(message_ids)))
        # made beforehand, to go next; and those that a connection has
        self._ready: deque[tuple[int, Message]] = deque()
        self._made: dict[int, Message] = {}
        self._sender: str | None = None
        self._sender_mailbox = ""
        self._again: set[int] = set()
        self._checked_at = time.monotonic()

    @property
    def left(self) -> int:
        return len(self._waiting) + len(self._ready)

    def begin(self, connection: SmtpConnection) -> None:
        """Put a connection to work."""
        lane = _Lane(connection)
        self.lanes.add(lane)
        self._lanes[lane.socket.fileno()] = lane
        self._poll.register(lane.socket, select.POLLIN)
        self._guarded(lane, self._next_envelope)

    def turn(self) -> None:
        """Wait for the network once, and deal with what it has."""
        for number, events in self._poll.poll(1000):
            lane = self._lanes.get(number)
            if lane is None:
                continue
            if events == select.POLLIN:
                self._guarded(lane, self._read)
                continue
            if events & select.POLLOUT:
                self._guarded(lane, self._flush)
            # an error or a closed connection shows when it is read from
            if events != select.POLLOUT and lane in self.lanes:
                self._guarded(lane, self._read)
        now = time.monotonic()
        if now - self._checked_at >= 1:
            self._checked_at = now
            for lane in [lane for lane in self.lanes if lane.deadline < now]:
                self._lose(lane, "the server does not answer in time")

    def _next(self) -> int | None:
        """The next message, which is made now; None if none is left."""
        while not self._ready and self._waiting:
            for _ in range(min(_RUN, len(self._waiting))):
                position = self._waiting.popleft()
                made = self._make(position)
                if isinstance(made, Message):
                    self._ready.append((position, made))
                else:
                    self.answers[position] = made
        if not self._ready:
            return None
        position, self._made[position] = self._ready.popleft()
        return position

    def _guarded(self, lane: _Lane, act: Callable[[_Lane], None]) -> None:
        try:
            act(lane)
        except (_LostError, OSError) as error:
            self._lose(lane, str(error))

    def _flush(self, lane: _Lane) -> None:
        lane.flush()
        if not lane.unsent:
            self._poll.modify(lane.socket, select.POLLIN)

    def _write(self, lane: _Lane, *contents: bytes, is_end: bool = False) -> None:
        was_empty = not lane.unsent
        lane.deadline = time.monotonic() + (self.server.data_timeout if is_end else self.server.timeout)
        lane.write(*contents)
        if was_empty and lane.unsent:
            self._poll.modify(lane.socket, select.POLLIN | select.POLLOUT)

    def _read(self, lane: _Lane) -> None:
        while received := lane.receive():
            # four answers are due only while a message and the envelope of the next one are under way
            if len(lane.expected) == 4 and not lane.buffer and (all_well := _ALL_WELL.fullmatch(received)):
                self._went_well(lane, all_well[1])
                return
            self._dispatch(lane, received)
            if lane not in self.lanes or (len(received) < _READ and not lane.is_encrypted):
                return

    def _went_well(self, lane: _Lane, end: bytes) -> None:
        """What nearly always comes, at a quarter of the cost: message taken, next envelope taken, all in one piece."""
        ended, position = lane.ended, lane.position
        assert ended is not None
        assert position is not None
        lane.expected.clear()
        self._accepted(lane, ended, f"250 {end.decode('utf-8', 'replace').strip()}")
        self._hand_over(lane, position)

    def _dispatch(self, lane: _Lane, received: bytes) -> None:
        """Answers one by one."""
        expected = lane.expected
        for code, text in lane.replies(received):
            if not expected:
                raise _LostError(f"an answer that nobody asked for: {code} {text}")
            command = expected.popleft()
            if lane.pipelines and 200 <= code < 400 and (command == "mail" or command == "rcpt"):
                # the envelope went as a whole: its last answer decides
                continue
            self._answered(lane, command, Reply(code, text))
            if lane not in self.lanes:
                return

    def _accepted(self, lane: _Lane, position: int, reply: str) -> None:
        """The server has taken a message."""
        message_id = self._made.pop(position).message_id
        lane.connection.sent += 1
        if self.marks is not None:
            self.marks.accepted(message_id)
        self.answers[position] = Delivery(message_id, Status.SENT, "", message_id, reply[:500])

    def _hand_over(self, lane: _Lane, position: int) -> None:
        """The server waits for a message: here it is, and the next envelope behind it."""
        lane.position, lane.ended = None, position
        message = self._made[position]
        content = message.raw if message.is_stuffed else _stuffed(message.raw)
        if self.marks is not None:
            self.marks.handed_over(message.message_id)
        lane.expected.append("end")
        lane.before_end = len(lane.unsent) + len(content) + 3
        following = self._envelope(lane) if lane.pipelines else b""
        self._write(lane, content, b".\r\n" + following, is_end=True)

    def _answered(self, lane: _Lane, command: str, reply: Reply) -> None:
        if command == "end":
            position, lane.ended = lane.ended, None
            assert position is not None
            if 200 <= reply.code < 300:
                self._accepted(lane, position, str(reply))
            else:
                lane.connection.sent += 1
                message_id = self._made.pop(position).message_id
                if self.marks is not None:
                    self.marks.refused(message_id)
                self.answers[position] = _refused(message_id, reply)
            if reply.code == 421:
                self._lose(lane, str(reply))
            elif lane.position is None:
                self._next_envelope(lane)
        elif reply.code == 421:
            self._lose(lane, str(reply), reply)
        elif command == "rset":
            self._next_envelope(lane)
        elif command != "drop":
            self._answered_in_envelope(lane, command, reply)

    def _answered_in_envelope(self, lane: _Lane, command: str, reply: Reply) -> None:
        position = lane.position
        assert position is not None
        if not reply.is_ok and lane.refusal is None:
            lane.refusal = (command, reply)
        if command == "data" and lane.refusal is None and reply.code != 354:
            raise _LostError(f"unexpected answer to DATA: {reply}")
        if command == "data" and lane.refusal is None:
            self._hand_over(lane, position)
            return
        if lane.refusal is not None and (command == "data" or not lane.pipelines):
            refused_at, refusal = lane.refusal
            lane.position = lane.refusal = None
            self._refuse(position, refused_at, refusal)
            if command == "data" and reply.code == 354:
                # it waits for data although nobody is to get it: an empty message ends that
                lane.expected += ("drop", "rset")
                self._write(lane, b".\r\nRSET\r\n")
            else:
                lane.expected.append("rset")
                self._write(lane, b"RSET\r\n")
        elif not lane.pipelines:
            following, line = (
                ("rcpt", lane.recipient.encode()) if command == "mail" else ("data", b"DATA\r\n")
            )
            lane.expected.append(following)
            self._write(lane, line)

    def _refuse(self, position: int, command: str, reply: Reply) -> None:
        message = self._made.pop(position)
        if command != "mail" or reply.is_transient or reply.code == 552:
            self.answers[position] = _refused(message.message_id, reply)
            return
        self.answers[position] = Delivery(
            message.message_id, Status.FAILED, Reason.SENDER_REFUSED, reply=str(reply)[:500]
        )
        self.refused = self.refused or ProviderRefusedError(
            f"The SMTP server {self.server.label} refuses the sender {message.sender.email}: {reply}",
            fix="Correct MAILHOUSE_FROM_EMAIL or the login in MAILHOUSE_SMTP_URL, then send again.",
        )

    def _next_envelope(self, lane: _Lane) -> None:
        """Begin with the next message, or lay the connection aside."""
        envelope = self._envelope(lane)
        if envelope:
            self._write(lane, envelope)
        else:
            self._release(lane)
            self.done.append(lane.connection)

    def _envelope(self, lane: _Lane) -> bytes:
        """Commands that begin the next message; none if no message is left."""
        if self.refused is not None:
            left = [*(position for position, _ in self._ready), *self._waiting]
            self._ready.clear()
            self._waiting.clear()
            for position in left:
                self.answers[position] = Delivery(
                    self.message_ids[position],
                    Status.FAILED,
                    Reason.SENDER_REFUSED,
                    reply=self.refused.message,
                )
        while (position := self._next()) is not None:
            message = self._made[position]
            sender, recipient = message.sender.email, message.recipient.email
            try:
                if sender is not self._sender:
                    self._sender, self._sender_mailbox = sender, mailbox(sender)
                sender, recipient = self._sender_mailbox, mailbox(recipient)
            except ValueError as error:
                del self._made[position]
                self.answers[position] = Delivery(
                    message.message_id, Status.INVALID, RejectReason.INVALID, reply=str(error)
                )
                continue
            parameters = ""
            if lane.has_parameters or not (recipient.isascii() and sender.isascii()):
                found = self._parameters(
                    message, lane, is_utf8=not (sender.isascii() and recipient.isascii())
                )
                if isinstance(found, Delivery):
                    del self._made[position]
                    self.answers[position] = found
                    continue
                parameters = found
            lane.position = position
            if self._bounce_to is not None:
                sender = f"{self._bounce_to[0]}+{message.message_id}@{self._bounce_to[1]}"
            mail = f"MAIL FROM:<{sender}>{parameters}\r\n"
            # RFC 3461: tell of what fails and what is late, never of what arrives
            lane.recipient = f"RCPT TO:<{recipient}>{' NOTIFY=FAILURE,DELAY' if lane.reports else ''}\r\n"
            if not lane.pipelines:
                lane.expected.append("mail")
                return mail.encode()
            lane.expected += _ENVELOPE
            return f"{mail}{lane.recipient}DATA\r\n".encode()
        return b""

    def _parameters(self, message: Message, lane: _Lane, *, is_utf8: bool) -> str | Delivery:
        """Parameters of MAIL, or why this server cannot take the message."""
        if is_utf8 and not {"SMTPUTF8", "8BITMIME"} <= lane.connection.features.keys():
            return Delivery(
                message.message_id,
                Status.INVALID,
                RejectReason.INVALID,
                reply="the server takes no addresses that are not ASCII (SMTPUTF8)",
            )
        size = len(message.raw)
        if 0 < lane.most_bytes < size:
            return Delivery(
                message.message_id,
                Status.REJECTED,
                RejectReason.OTHER,
                reply=f"{size} bytes, and the server takes {lane.most_bytes}",
            )
        parameters = f" SIZE={size}" if lane.sizes else ""
        if lane.reports:
            # RFC 3461: a report names the message by this id and returns its header only
            parameters += f" RET=HDRS ENVID={message.message_id}"
        return f"{parameters} BODY=8BITMIME SMTPUTF8" if is_utf8 else parameters

    def _lose(self, lane: _Lane, why: str, reply: Reply | None = None) -> None:
        """A connection is gone: say what became of its messages."""
        self._release(lane)
        lane.connection.close()
        self.missing += 1
        # a connection that was kept may have been closed at the other end meanwhile
        was_used = lane.connection.sent > 0 or lane.ended is not None
        for position, is_handed_over in (
            (lane.ended, lane.before_end == 0),
            (lane.position, False),
        ):
            if position is None:
                continue
            message = self._made.pop(position)
            if is_handed_over:
                self.answers[position] = Delivery(
                    message.message_id,
                    Status.UNKNOWN,
                    reply=f"connection lost after the end of the message: {why}",
                )
            elif was_used and position not in self._again:
                self._again.add(position)
                self._ready.appendleft((position, message))
            elif reply is not None:
                self.answers[position] = _refused(message.message_id, reply)
            else:
                self.answers[position] = _lost(
                    message.message_id, f"connection lost before the end of the message: {why}"
                )

    def _release(self, lane: _Lane) -> None:
        self.lanes.discard(lane)
        self._poll.unregister(lane.socket)
        del self._lanes[lane.socket.fileno()]


def _stuffed(content: bytes) -> bytes:
    """Lines that begin with a dot get another one (RFC 5321 section 4.5.2)."""
    content = content.replace(b"\r\n.", b"\r\n..")
    return b"." + content if content.startswith(b".") else content


def _lost(message_id: str, reply: str) -> Delivery:
    return Delivery(message_id, Status.FAILED, Reason.DEFERRED, reply=reply[:500], is_transient=True)


def _refused(message_id: str, reply: Reply) -> Delivery:
    text = str(reply)[:500]
    if reply.is_transient:
        return Delivery(message_id, Status.FAILED, Reason.DEFERRED, reply=text, is_transient=True)
    return Delivery(message_id, Status.REJECTED, classify(reply), reply=text)


def classify(reply: Reply) -> RejectReason:
    """Why a permanent refusal, by its code: the enhanced one where there is one, never the words."""
    enhanced = reply.enhanced
    if enhanced is None:
        return RejectReason.INVALID if reply.code in (550, 551, 553) else RejectReason.OTHER
    _, subject, detail = enhanced
    if subject == 1:
        return RejectReason.INVALID
    if subject == 2:
        return RejectReason.BOUNCED
    if subject == 4 and detail == 7:
        return RejectReason.TIMED_OUT
    if subject == 7:
        return RejectReason.BLOCKED
    return RejectReason.OTHER
