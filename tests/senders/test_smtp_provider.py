"""The SMTP client against a real server (aiosmtpd), and against one that hangs up at the worst moment."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from senders.message import Address, Delivery, Message, Reason, RejectReason, Status
from senders.providers.base import NotSupportedError, ProviderRefusedError, ProviderUnavailableError
from senders.providers.smtp import Reply, SmtpProvider, SmtpServer, classify
from warehouse.embedded.launcher import free_port
from warehouse.errors import SettingsError


class Sink:
    """What the server took, and how it answers: by the local part of the recipient."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.sender_reply = ""
        self.tries: Counter[str] = Counter()
        self.sessions: set[int] = set()

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.sender_reply:
            return self.sender_reply
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 ok"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        local = address.partition("@")[0]
        self.tries[address] += 1
        self.sessions.add(id(session))
        if local.startswith("nobody"):
            return "550 5.1.1 no such user"
        if local.startswith("full"):
            return "452 4.2.2 mailbox full"
        if local.startswith("gray") and self.tries[address] == 1:
            return "451 4.7.1 come back later"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        local = envelope.rcpt_tos[0].partition("@")[0]
        if local.startswith("spam"):
            return "554 5.7.1 looks like spam"
        if local.startswith("later"):
            return "451 4.3.0 try again"
        content = envelope.original_content or b""
        self.taken.append((envelope.rcpt_tos[0], content))
        if local.startswith("goodbye"):
            return "421 4.3.2 taken nothing, going down" if local == "goodbye0" else "250 ok"
        return "250 2.0.0 queued as 42"


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Sink, int]]]:
    controllers: list[Controller] = []

    def start(**more: Any) -> tuple[Sink, int]:
        sink = Sink()
        controller = Controller(sink, hostname="127.0.0.1", port=0, **more)
        # port 0 would have the controller connect to port 0 to see whether it runs
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            controller.port = probe.getsockname()[1]
        controller.start()
        controllers.append(controller)
        return sink, controller.port

    yield start
    for controller in controllers:
        controller.stop()


def message(email: str, number: int = 0, *, text: str = "Hello", sender: str = "shop@example.com") -> Message:
    return Message(
        message_id=f"00000000-0000-5000-8000-{number:012d}", contact_id=number, sender=Address(sender),
        recipient=Address(email), subject="Hi", html="<p>Hello</p>", text=text,
        sent_at=datetime(2026, 6, 27, tzinfo=UTC),
    )  # fmt: skip


def provider(port: int, url: str = "smtp://127.0.0.1:{}", connections: int = 1) -> SmtpProvider:
    return SmtpProvider(SmtpServer.parse(url.format(port)), connections=connections)


def test_messages_arrive_as_they_were_made(serve: Callable[..., tuple[Sink, int]]) -> None:
    sink, port = serve()
    batch = [message(f"p{n}@example.com", n, text=".\n..dots\n.end") for n in range(50)]
    with provider(port, connections=4) as smtp:
        answers = smtp.send(batch)
        assert [answer.message_id for answer in answers] == [one.message_id for one in batch]
        assert {(answer.status, answer.reply) for answer in answers} == {
            (Status.SENT, "250 2.0.0 queued as 42")
        }
        assert smtp.send([]) == []
        assert {answer.status for answer in smtp.send(batch[:3])} == {Status.SENT}
    assert sorted(sink.taken[:50]) == sorted((one.recipient.email, one.raw) for one in batch)
    assert 1 <= len(sink.sessions) <= 4


def test_large_messages_go_out_in_pieces(serve: Callable[..., tuple[Sink, int]]) -> None:
    sink, port = serve()
    batch = [message(f"p{n}@example.com", n, text=f"{n} and more " * 300_000) for n in range(3)]
    with provider(port, connections=2) as smtp:
        assert {answer.status for answer in smtp.send(batch)} == {Status.SENT}
    assert sorted(sink.taken) == sorted((one.recipient.email, one.raw) for one in batch)


def test_messages_are_made_when_their_turn_comes(serve: Callable[..., tuple[Sink, int]]) -> None:
    sink, port = serve()
    batch = [message(f"p{n}@example.com", n) for n in range(100)]
    taken_before: list[int] = []

    def make(position: int) -> Message | Delivery:
        taken_before.append(len(sink.taken))
        one = batch[position]
        return Delivery(one.message_id, Status.FAILED, Reason.NOT_RENDERED) if position % 10 == 3 else one

    with provider(port, connections=2) as smtp:
        answers = smtp.send_each([one.message_id for one in batch], make)
    assert [answer.message_id for answer in answers] == [one.message_id for one in batch]
    assert [answer.status == Status.FAILED for answer in answers] == [n % 10 == 3 for n in range(100)]
    assert sorted(email for email, _ in sink.taken) == sorted(
        f"p{n}@example.com" for n in range(100) if n % 10 != 3
    )
    # each once, the last long after the first have gone
    assert len(taken_before) == 100
    assert taken_before[0] == 0
    assert taken_before[-1] > 50


def test_refusals_by_recipient_and_by_content(serve: Callable[..., tuple[Sink, int]]) -> None:
    sink, port = serve()
    people = ["a@example.com", "nobody@example.com", "spam@example.com", "full@example.com", "later@example.com",
              "not an address", "b@example.com"]  # fmt: skip
    with provider(port) as smtp:
        answers = smtp.send([message(email, n) for n, email in enumerate(people)])
    assert [(answer.status, answer.reason, answer.is_transient) for answer in answers] == [
        (Status.SENT, "", False),
        (Status.REJECTED, RejectReason.INVALID, False),
        (Status.REJECTED, RejectReason.BLOCKED, False),
        (Status.FAILED, Reason.DEFERRED, True),
        (Status.FAILED, Reason.DEFERRED, True),
        (Status.INVALID, RejectReason.INVALID, False),
        (Status.SENT, "", False),
    ]
    assert answers[1].reply == "550 5.1.1 no such user"
    assert [email for email, _ in sink.taken] == ["a@example.com", "b@example.com"]


def test_a_refused_sender_stops_the_run(serve: Callable[..., tuple[Sink, int]]) -> None:
    sink, port = serve()
    sink.sender_reply = "550 5.7.1 not your domain"
    with provider(port) as smtp:
        answers = smtp.send([message(f"p{n}@example.com", n) for n in range(3)])
        assert {(answer.status, answer.reason) for answer in answers} == {
            (Status.FAILED, Reason.SENDER_REFUSED)
        }
        with pytest.raises(ProviderRefusedError, match="not your domain"):
            smtp.send([message("p@example.com")])
    assert not sink.taken


def test_addresses_beyond_ascii(serve: Callable[..., tuple[Sink, int]]) -> None:
    plain, plain_port = serve(enable_SMTPUTF8=False)
    able, able_port = serve(enable_SMTPUTF8=True)
    batch = [message("jürgen@example.com"), message("ann@exämple.com", 1)]
    with provider(plain_port) as smtp:
        assert [answer.status for answer in smtp.send(batch)] == [Status.INVALID, Status.SENT]
    with provider(able_port) as smtp:
        assert [answer.status for answer in smtp.send(batch)] == [Status.SENT, Status.SENT]
    assert [email for email, _ in plain.taken] == ["ann@xn--exmple-cua.com"]
    assert [email for email, _ in able.taken] == ["jürgen@example.com", "ann@xn--exmple-cua.com"]


def test_size_limit(serve: Callable[..., tuple[Sink, int]]) -> None:
    sink, port = serve(data_size_limit=2000)
    with provider(port) as smtp:
        answers = smtp.send([message("a@example.com", text="x" * 3000), message("b@example.com", 1)])
    assert [answer.status for answer in answers] == [Status.REJECTED, Status.SENT]
    assert len(sink.taken) == 1


def test_421_after_the_data_means_not_taken(serve: Callable[..., tuple[Sink, int]]) -> None:
    _, port = serve()
    with provider(port) as smtp:
        answers = smtp.send([message("goodbye0@example.com"), message("goodbye1@example.com", 1)])
    assert [(answer.status, answer.is_transient) for answer in answers] == [
        (Status.FAILED, True),
        (Status.SENT, False),
    ]


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    made, key = folder / "cert.pem", folder / "key.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(made), "-keyout", str(key)],
            check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl is not on this machine")
    return made, key


def test_encryption_and_login(serve: Callable[..., tuple[Sink, int]], tmp_path: Path) -> None:
    made, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made, key)

    def check(_: object, __: object, ___: object, ____: object, data: LoginPassword) -> AuthResult:
        return AuthResult(handled=False, success=data.login == b"ann" and data.password == b"p@ss/word")

    sink, port = serve(tls_context=context, auth_required=True, authenticator=check)
    good = "smtp://ann:p%40ss%2Fword@localhost:{}?tls=starttls&ca=" + str(made)
    with provider(port, good) as smtp:
        assert smtp.send([message("a@example.com")])[0].status == Status.SENT
    assert len(sink.taken) == 1
    for url, said in (
        (good.replace("word", "wrong"), "refuses the login of 'ann'"),
        (good.partition("&ca")[0], "No TLS"),
        ("smtp://localhost:{}", "refuses the sender|Authentication"),
    ):
        with provider(port, url) as smtp, pytest.raises(ProviderRefusedError, match=said) as caught:
            smtp.send([message("a@example.com")])
            smtp.send([message("a@example.com")])
        assert "wrong" not in str(caught.value)
    assert len(sink.taken) == 1


def test_no_starttls_offered_is_refused(serve: Callable[..., tuple[Sink, int]]) -> None:
    _, port = serve()
    with (
        provider(port, "smtp://127.0.0.1:{}?tls=starttls") as smtp,
        pytest.raises(ProviderRefusedError, match="STARTTLS"),
    ):
        smtp.send([message("a@example.com")])
    with provider(port, "smtp://127.0.0.1:{}?tls=opportunistic") as smtp:
        assert smtp.send([message("a@example.com")])[0].status == Status.SENT


class Script:
    """A server that follows a script: for each connection a list of answers; None hangs up."""

    def __init__(self, *connections: list[str | None], pipelining: bool = False, features: str = "") -> None:
        self.connections = list(connections)
        self.features = "PIPELINING" if pipelining else features
        self.bodies: list[bytes] = []
        self.lines: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        for answers in self.connections:
            connection, _ = self.listener.accept()
            with connection, connection.makefile("rb") as lines:
                connection.sendall(b"220 ready\r\n")
                todo = iter(answers)
                while line := lines.readline():
                    self.lines.append(line)
                    if line.startswith(b"EHLO"):
                        offered = f"250-here\r\n250 {self.features}\r\n" if self.features else "250 here\r\n"
                        connection.sendall(offered.encode())
                        continue
                    if (answer := next(todo, "250 ok")) is None:
                        break
                    if answer == "354":
                        connection.sendall(b"354 go\r\n")
                        body = b""
                        while not body.endswith(b"\r\n.\r\n") and body != b".\r\n":
                            got = lines.readline()
                            if not got:
                                break
                            body += got
                        self.bodies.append(body)
                        if (after := next(todo, "250 ok")) is None:
                            break
                        connection.sendall(after.encode() + b"\r\n")
                        continue
                    connection.sendall(answer.encode() + b"\r\n")

    def stop(self) -> None:
        self.thread.join(5)
        self.listener.close()


def scripted(
    *connections: list[str | None], count: int = 1, pipelining: bool = False
) -> tuple[list[Delivery], Script]:
    script = Script(*connections, pipelining=pipelining)
    with provider(script.port) as smtp:
        answers = smtp.send([message(f"p{n}@example.com", n) for n in range(count)])
    script.stop()
    return answers, script


@pytest.mark.parametrize("pipelining", [False, True])
def test_lost_after_the_final_dot_is_unknown(pipelining: bool) -> None:
    answers, script = scripted(
        ["250 ok", "250 ok", "354", None],
        ["250 ok", "250 ok", "354", "250 ok"],
        count=2,
        pipelining=pipelining,
    )
    assert [(answer.status, answer.is_transient) for answer in answers] == [
        (Status.UNKNOWN, False),
        (Status.SENT, False),
    ]
    assert len(script.bodies) == 2


@pytest.mark.parametrize("answers", [[None], ["250 ok", None], ["250 ok", "250 ok", None]])
def test_lost_before_the_data_may_be_tried_again(answers: list[str | None]) -> None:
    found, script = scripted(answers)
    assert [(answer.status, answer.is_transient) for answer in found] == [(Status.FAILED, True)]
    assert not script.bodies


def test_a_kept_connection_that_was_closed_is_opened_anew() -> None:
    answers, script = scripted(
        ["250 ok", "250 ok", "354", "250 first", "421 idle too long"],
        ["250 ok", "250 ok", "354", "250 second"],
        count=2,
    )
    assert [answer.reply for answer in answers] == ["250 first", "250 second"]
    assert len(script.bodies) == 2


def test_pipelined_data_for_nobody_is_empty() -> None:
    refused = ["250 ok", "550 5.1.1 no", "354", "554 no recipients", "250 reset"]
    answers, script = scripted([*refused, "250 ok", "250 ok", "354", "250 ok"], count=2, pipelining=True)
    assert [answer.status for answer in answers] == [Status.REJECTED, Status.SENT]
    assert script.bodies[0] == b".\r\n"


def test_bounces_name_their_message() -> None:
    script = Script(["250 ok", "250 ok", "354", "250 ok"], features="DSN")
    server = SmtpServer.parse(f"smtp://127.0.0.1:{script.port}")
    with SmtpProvider(server, connections=1, bounce_address="bounce@mail.example.com") as smtp:
        (answer,) = smtp.send([message("p@example.com", 7)])
    script.stop()
    assert answer.status == Status.SENT
    envelope = [line.decode().strip() for line in script.lines[1:3]]
    assert envelope == [
        f"MAIL FROM:<bounce+{answer.message_id}@mail.example.com> RET=HDRS ENVID={answer.message_id}",
        "RCPT TO:<p@example.com> NOTIFY=FAILURE,DELAY",
    ]
    with pytest.raises(SettingsError, match="MAILHOUSE_BOUNCE_ADDRESS"):
        SmtpProvider(server, bounce_address="nobody")


def test_garbage_is_no_answer() -> None:
    answers, _ = scripted(["250 ok", "hello there"])
    assert answers[0].is_transient
    answers, _ = scripted(["250 ok", "250 ok", "354", "hello there"])
    assert answers[0].status == Status.UNKNOWN


def test_nobody_answers() -> None:
    port = free_port()
    with (
        provider(port) as smtp,
        pytest.raises(ProviderUnavailableError, match=f"127.0.0.1:{port} does not answer"),
    ):
        smtp.send([message("a@example.com")])


def test_urls() -> None:
    assert SmtpServer.parse("smtps://a:b%20c@mail.example.com") == SmtpServer(
        "mail.example.com", 465, "implicit", "a", "b c"
    )
    assert SmtpServer.parse("smtp://mail.example.com").tls == "starttls"
    assert SmtpServer.parse("smtp://127.0.0.1:1025") == SmtpServer("127.0.0.1", 1025, "none")
    for url, said in (
        ("http://x", "no smtp"), ("smtp://", "no smtp"), ("smtp://h:99999999", "no URL"), ("smtp://h?tsl=none", "tsl"),
        ("smtp://h?tls=maybe", "tls=maybe"), ("smtps://h?tls=none", "tls=none"),
        ("smtp://user:hunter2@mail.example.com?tls=none", "password to mail.example.com"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=said) as caught:
            SmtpServer.parse(url)
        assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(SmtpServer.parse("smtps://user:hunter2@mail.example.com"))
    assert SmtpProvider(SmtpServer.parse("smtps://mail.example.com")).capabilities.reaches_people
    assert not SmtpProvider(SmtpServer.parse("smtp://localhost")).capabilities.reaches_people


def test_codes_decide_not_words() -> None:
    assert classify(Reply(550, "5.1.1 spam spam")) == RejectReason.INVALID
    assert classify(Reply(550, "5.7.1 no such user")) == RejectReason.BLOCKED
    assert classify(Reply(552, "5.2.2 full")) == RejectReason.BOUNCED
    assert classify(Reply(550, "no such user")) == RejectReason.INVALID
    assert classify(Reply(554, "no")) == RejectReason.OTHER


def test_what_smtp_cannot_do_is_said() -> None:
    smtp = provider(1)
    assert not smtp.capabilities.has_webhooks
    assert not smtp.capabilities.can_look_up
    for call in (
        lambda: smtp.lookup(["a"]),
        lambda: smtp.parse_webhook(b"", {}),
        lambda: smtp.verify_signature(b"", {}),
    ):
        with pytest.raises(NotSupportedError, match="smtp"):
            call()
