"""Asks SpamAssassin's daemon what it thinks of a message.

A client of its protocol, SPAMC/1.5: one request a connection, a header of lines as in HTTP, then the message.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from campaigns.checks import CheckResult
from deliverability.samples import Sample
from warehouse.errors import MailhouseError, SettingsError

__all__ = ["SpamScore", "Spamd", "SpamdError", "check_spam"]

_NAME = "spam_score"
_PORT = 783
_LONGEST_ANSWER = 1 << 20
_STATUS = re.compile(r"SPAMD/\d+\.\d+\s+(\d+)\s+(\S.*)?")
_SPAM = re.compile(r"(?:True|False|Yes|No)\s*;\s*(-?\d+(?:\.\d+)?)\s*/\s*(-?\d+(?:\.\d+)?)", re.IGNORECASE)


class SpamdError(MailhouseError):
    """spamd does not answer, or not in its protocol."""


@dataclass(frozen=True)
class SpamScore:
    """What SpamAssassin makes of a message.

    Attributes:
        points: the sum of its rules' points.
        threshold: from which spamd itself is set to call it spam.
        rules: names of the rules that were hit.
    """

    points: float
    threshold: float
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Spamd:
    """Where spamd listens.

    Attributes:
        host, port: a TCP socket, unless `path` is set.
        path: a unix socket.
        seconds: limit for connecting, and for each part of the answer; with network tests spamd takes some.
    """

    host: str = ""
    port: int = _PORT
    path: str = ""
    seconds: float = 60.0

    @classmethod
    def parse(cls, url: str, *, seconds: float = 60.0) -> Spamd:
        """Parse `tcp://host:port` (port 783 if left out) or `unix:///path/of/socket`.

        Raises:
            SettingsError: it is neither.
        """
        with suppress(ValueError):
            parts = urlsplit(url)
            port = parts.port or _PORT
            if parts.scheme == "tcp" and parts.hostname and parts.path in ("", "/"):
                return cls(host=parts.hostname, port=port, seconds=seconds)
            if parts.scheme == "unix" and not parts.netloc and parts.path:
                return cls(path=parts.path, seconds=seconds)
        raise SettingsError(
            f"MAILHOUSE_SPAMD_URL {url!r} is no address of spamd.",
            fix="Write it as tcp://127.0.0.1:783 or unix:///run/spamd.sock.",
        )

    @property
    def place(self) -> str:
        """The address, for messages."""
        return self.path or f"{self.host}:{self.port}"

    def score(self, message: bytes) -> SpamScore:
        """Have a whole message judged.

        Raises:
            SpamdError: spamd cannot be reached or answers something else.
        """
        head = f"SYMBOLS SPAMC/1.5\r\nContent-length: {len(message)}\r\n\r\n".encode("ascii")
        try:
            with self._connect() as connection:
                connection.sendall(head + message)
                connection.shutdown(socket.SHUT_WR)
                answer = _read(connection)
        except OSError as error:
            raise self._error(f"does not answer: {error.strerror or type(error).__name__}") from None
        return self._parse(answer)

    def _connect(self) -> socket.socket:
        if not self.path:
            return socket.create_connection((self.host, self.port), timeout=self.seconds)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self.seconds)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection

    def _parse(self, answer: bytes) -> SpamScore:
        head, mark, body = answer.decode("utf-8", "replace").partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        status = _STATUS.fullmatch(first)
        if not status or not mark:
            raise self._error("does not speak its protocol")
        if int(status[1]) != 0:
            raise self._error(f"refused the message: {status[2] or status[1]}")
        fields = {
            name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
        }
        found = _SPAM.fullmatch(fields.get("spam", ""))
        if not found:
            raise self._error("answered without points")
        return SpamScore(float(found[1]), float(found[2]), tuple(re.findall(r"[^,\s]+", body)))

    def _error(self, what: str) -> SpamdError:
        return SpamdError(
            f"spamd at {self.place} {what}.", fix="Start it, or correct MAILHOUSE_SPAMD_URL or leave it out."
        )


def _read(connection: socket.socket) -> bytes:
    answer = bytearray()
    while len(answer) < _LONGEST_ANSWER and (piece := connection.recv(65536)):
        answer += piece
    return bytes(answer)


def check_spam(
    samples: Sequence[Sample], score: Callable[[bytes], SpamScore], *, limit: float = 5.0
) -> CheckResult:
    """`spam_score`: SpamAssassin gives the message fewer points than a limit, in every locale.

    Args:
        score: judges a whole message, as `Spamd.score`.
        limit: points at which it fails.
    """
    try:
        scores = [(score(sample.raw), sample.locale) for sample in samples]
    except SpamdError as error:
        return CheckResult(_NAME, False, f"Not judged: {error.message} {error.fix}", {"limit": limit})
    worst, locale = max(scores, key=lambda one: one[0].points)
    rules = ", ".join(worst.rules)
    label = f" in {locale}" if locale else ""
    return CheckResult(
        _NAME,
        worst.points < limit,
        f"SpamAssassin gives the message{label} {worst.points:.1f} points, and from {limit:g} on it is held back"
        + (f"; rules hit: {rules}." if rules else "."),
        {"points": worst.points, "limit": limit, "rules": rules, "spamd_threshold": worst.threshold},
    )
