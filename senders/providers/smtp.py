"""Mail over SMTP (RFC 5321), through a few connections that stay open.

One rule decides everything: a message may be sent again only if the server certainly did not take it. Until the final
dot of the data has been handed to the network, a lost connection means just that; once it has, only the server's
answer tells, and without one the outcome is `unknown`. Extensions that are used where offered: PIPELINING (2920),
SIZE (1870), STARTTLS (3207), AUTH (4954), SMTPUTF8 (6531), enhanced status codes (3463).
"""

from __future__ import annotations

import base64
import contextlib
import queue
import re
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from senders.message import Delivery, Message, Reason, RejectReason, Status
from senders.mime import mailbox
from senders.providers.base import Capabilities, Provider, ProviderRefusedError, ProviderUnavailableError
from senders.settings import SenderSettings, is_loopback
from warehouse.errors import SettingsError

TlsMode = Literal["none", "starttls", "implicit", "opportunistic"]
_MODES: tuple[TlsMode, ...] = ("none", "starttls", "implicit", "opportunistic")
_PORTS = {"none": 25, "starttls": 587, "implicit": 465, "opportunistic": 25}
_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})\b")
_LONGEST_LINE = 8192
_MOST_LINES = 100
_WINDOW = 100


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

    def send(self, message: Message) -> Delivery:
        """One message, one transaction. The connection may be closed afterwards (`is_open`)."""
        try:
            sender, recipient = mailbox(message.sender.email), mailbox(message.recipient.email)
        except ValueError as error:
            return Delivery(message.message_id, Status.INVALID, RejectReason.INVALID, reply=str(error))
        content = message.raw
        is_utf8 = not (sender.isascii() and recipient.isascii())
        if is_utf8 and not {"SMTPUTF8", "8BITMIME"} <= self._features.keys():
            return Delivery(
                message.message_id,
                Status.INVALID,
                RejectReason.INVALID,
                reply="the server takes no addresses that are not ASCII (SMTPUTF8)",
            )
        limit = self._features.get("SIZE", "")
        if limit.isdigit() and 0 < int(limit) < len(content):
            return Delivery(
                message.message_id,
                Status.REJECTED,
                RejectReason.OTHER,
                reply=f"{len(content)} bytes, and the server takes {limit}",
            )
        parameters = f" SIZE={len(content)}" if "SIZE" in self._features else ""
        parameters += " BODY=8BITMIME SMTPUTF8" if is_utf8 else ""
        try:
            refusal = self._envelope(message, f"MAIL FROM:<{sender}>{parameters}", f"RCPT TO:<{recipient}>")
            if refusal is not None:
                return refusal
            self._write(_stuffed(content) + b".\r\n")
        except (_LostError, OSError) as error:
            # the final dot never went out
            self.close()
            return _lost(message, f"connection lost before the end of the message: {error}")
        try:
            self._socket.settimeout(self.server.data_timeout)
            reply = self._read()
            self._socket.settimeout(self.server.timeout)
        except (_LostError, OSError) as error:
            self.close()
            return Delivery(
                message.message_id,
                Status.UNKNOWN,
                reply=f"connection lost after the end of the message: {error}",
            )
        self.sent += 1
        if reply.code == 421:
            self.close()
        if 200 <= reply.code < 300:
            return Delivery(
                message.message_id,
                Status.SENT,
                provider_message_id=message.message_id,
                reply=str(reply)[:500],
            )
        return _refused(message, reply)

    def _envelope(self, message: Message, mail: str, rcpt: str) -> Delivery | None:
        """MAIL, RCPT and DATA; None if the server now waits for the message, otherwise why not."""
        commands = [mail, rcpt, "DATA"]
        replies: list[Reply] = []
        if "PIPELINING" in self._features:
            self._write("".join(command + "\r\n" for command in commands).encode())
            for _ in commands:
                replies.append(self._read())
                if replies[-1].code == 421:
                    break
        else:
            for command in commands:
                replies.append(self._command(command))
                if not replies[-1].is_ok:
                    break
        refusal = next((reply for reply in replies if not reply.is_ok), None)
        if refusal is None and replies[-1].code == 354:
            return None
        if refusal is None:
            raise _LostError(f"unexpected answer to DATA: {replies[-1]}")
        if refusal.code == 421:
            self.close()
        elif len(replies) == 3 and replies[2].code == 354:
            # it waits for data although nobody is to get it: an empty message ends that, then all begins anew
            self._write(b".\r\n")
            self._read()
            self._command("RSET")
        else:
            self._command("RSET")
        if refusal is replies[0] and not refusal.is_transient and refusal.code != 552:
            return Delivery(
                message.message_id, Status.FAILED, Reason.SENDER_REFUSED, reply=str(refusal)[:500]
            )
        return _refused(message, refusal)

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
        connections: at most so many at once; each has its own thread while a batch is sent.
    """

    name = "smtp"
    capabilities = Capabilities(dispatch_window=_WINDOW)

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> SmtpProvider:
        """The provider of the settings.

        Raises:
            SettingsError: no server is set, or it is no URL of one.
        """
        if settings.smtp_url is None:
            raise SettingsError(
                "Provider smtp needs a server, and MAILHOUSE_SMTP_URL is not set.",
                fix="Set it, like smtp://user:password@mail.example.com:587?tls=starttls.",
            )
        server = SmtpServer.parse(settings.smtp_url.get_secret_value())
        return cls(server, connections=settings.smtp_connections)

    def __init__(self, server: SmtpServer, *, connections: int = 4) -> None:
        if connections < 1:
            raise SettingsError(f"MAILHOUSE_SMTP_CONNECTIONS is {connections}.", fix="Set it to 1 or more.")
        self.server = server
        self.connections = connections
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
        if self._refused is not None:
            raise self._refused
        work = _Batch(batch)
        threads = [
            threading.Thread(target=self._work, args=(work,), name=f"smtp-{number}", daemon=True)
            for number in range(min(self.connections, len(batch)) - 1)
        ]
        for thread in threads:
            thread.start()
        self._work(work)
        for thread in threads:
            thread.join()
        if work.defect is not None:
            raise work.defect
        if not work.answers and work.error is not None:
            raise work.error
        # what no connection took was certainly not handed over
        return [
            work.answers.get(position)
            or _lost(message, str(work.error.message if work.error else "not tried"))
            for position, message in enumerate(batch)
        ]

    def _work(self, work: _Batch) -> None:
        connection: SmtpConnection | None = None
        try:
            while (position := work.take()) is not None:
                message = work.batch[position]
                if self._refused is not None:
                    work.answers[position] = Delivery(
                        message.message_id, Status.FAILED, Reason.SENDER_REFUSED, reply=self._refused.message
                    )
                    continue
                for fresh in (False, True):
                    if connection is None or not connection.is_open:
                        connection = self._connect(fresh)
                    was_used = connection.sent > 0
                    delivery = connection.send(message)
                    # a connection that was kept may have been closed at the other end meanwhile
                    if not (delivery.is_transient and was_used and not connection.is_open):
                        break
                work.answers[position] = delivery
                if delivery.reason == Reason.SENDER_REFUSED:
                    self._refused = ProviderRefusedError(
                        f"The SMTP server {self.server.label} refuses the sender {message.sender.email}: "
                        f"{delivery.reply}",
                        fix="Correct MAILHOUSE_FROM_EMAIL or the login in MAILHOUSE_SMTP_URL, then send again.",
                    )
        except (ProviderUnavailableError, ProviderRefusedError) as error:
            # the others may still have their connections
            work.error = work.error or error
        except BaseException as error:  # noqa: BLE001  (raised again by `send`)
            work.defect = error
        finally:
            if connection is not None and connection.is_open:
                self._idle.append(connection)

    def _connect(self, fresh: bool) -> SmtpConnection:
        while self._idle and not fresh:
            with contextlib.suppress(IndexError):
                connection = self._idle.pop()
                if connection.is_open:
                    return connection
        return SmtpConnection(self.server, self._context)

    def close(self) -> None:
        """Say goodbye on all connections."""
        while self._idle:
            self._idle.pop().quit()


class _Batch:
    """A batch that several connections work on."""

    def __init__(self, batch: Sequence[Message]) -> None:
        self.batch = batch
        self.answers: dict[int, Delivery] = {}
        self.error: ProviderUnavailableError | ProviderRefusedError | None = None
        self.defect: BaseException | None = None
        self._positions: queue.SimpleQueue[int] = queue.SimpleQueue()
        for position in range(len(batch)):
            self._positions.put(position)

    def take(self) -> int | None:
        """The next message that nobody works on."""
        with contextlib.suppress(queue.Empty):
            return self._positions.get_nowait()
        return None


def _stuffed(content: bytes) -> bytes:
    """Lines that begin with a dot get another one (RFC 5321 section 4.5.2)."""
    content = content.replace(b"\r\n.", b"\r\n..")
    return b"." + content if content.startswith(b".") else content


def _lost(message: Message, reply: str) -> Delivery:
    return Delivery(message.message_id, Status.FAILED, Reason.DEFERRED, reply=reply[:500], is_transient=True)


def _refused(message: Message, reply: Reply) -> Delivery:
    text = str(reply)[:500]
    if reply.is_transient:
        return Delivery(message.message_id, Status.FAILED, Reason.DEFERRED, reply=text, is_transient=True)
    return Delivery(message.message_id, Status.REJECTED, classify(reply), reply=text)


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
