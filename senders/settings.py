"""Settings of the senders: who sends, through what, how fast, and the secret that signs links."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from warehouse.errors import SettingsError
from warehouse.settings import MailhouseSettings

_SECRET_BYTES = 32


class SenderSettings(MailhouseSettings):
    """Settings of rendering, ledger and providers.

    Attributes:
        ledger_url: SQLAlchemy URL of the ledger; unset means SQLite at `home/ledger.db`.
        secret_key: signs unsubscribe links; unset means `home/secret_key`, made on first use. Keep it: links in
            mail that has gone out are only good under the key that signed them.
        base_url: where the gateway is reached from outside; begins every unsubscribe link.
        from_email, from_name: the sender, unless a campaign names its own.
        company_name, postal_address: shown in every marketing message; the law of most countries asks for both.
        provider: name of the provider that sends, unless a campaign names its own.
        smtp_url: `smtp://user:password@host:port?tls=starttls` (`tls` is `none`, `starttls`, `implicit` or
            `opportunistic`; `smtps://` means implicit).
        smtp_connections: connections kept open to the SMTP server.
        rate_per_second: messages a second at most; 0 means no limit.
        rate_burst: messages that may go at once after a pause; 0 means one second's worth.
        redis_url: `redis://user:password@host:port/database`: rate limits are shared by all senders; unset, each
            process keeps its own.
        default_cap_messages, default_cap_days: marketing messages one person gets at most within so many days,
            where the campaign states no cap; 0 messages means no cap.
        bounce_folder: a folder or maildir into which bounces and complaints are delivered.
        bounce_imap_url: `imaps://user:password@host/INBOX` of the mailbox that gets them.
        bounce_soft_limit, bounce_soft_days: an address that bounces softly on so many days within so many days is
            given up; 0 means never.
        claim_lease: seconds without a heartbeat after which a sender on another machine counts as dead.
    """

    ledger_url: SecretStr | None = None
    secret_key: SecretStr | None = None
    base_url: str = "http://127.0.0.1:18124"
    from_email: str = ""
    from_name: str = ""
    company_name: str = ""
    postal_address: str = ""
    provider: str = "maildir"
    smtp_url: SecretStr | None = None
    smtp_connections: int = 4
    rate_per_second: float = 0.0
    rate_burst: int = 0
    redis_url: SecretStr | None = None
    default_cap_messages: int = 0
    default_cap_days: float = 7.0
    bounce_folder: Path | None = None
    bounce_imap_url: SecretStr | None = None
    bounce_soft_limit: int = 5
    bounce_soft_days: float = 30.0
    claim_lease: float = 60.0

    @property
    def maildir(self) -> Path:
        """Where the maildir provider delivers."""
        return self.home / "maildir"

    @property
    def ledger_address(self) -> str:
        """The ledger's SQLAlchemy URL, secrets and all: never print it."""
        if self.ledger_url is not None:
            return self.ledger_url.get_secret_value()
        return f"sqlite:///{(self.home / 'ledger.db').absolute()}"

    def signing_key(self) -> bytes:
        """The key of signed links; made once, readable by its owner only, if no setting gives it.

        Raises:
            SettingsError: the key is too short to be a secret, or its file cannot be made or read.
        """
        if self.secret_key is not None:
            key = self.secret_key.get_secret_value().encode()
            if len(key) < 16:
                raise SettingsError(
                    "MAILHOUSE_SECRET_KEY is shorter than 16 bytes.",
                    fix="Make one with: python -c 'import secrets; print(secrets.token_hex(32))'",
                )
            return key
        path = self.home / "secret_key"
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _write_once(path, secrets.token_hex(_SECRET_BYTES).encode())
            key = path.read_bytes().strip()
        except OSError as error:
            raise SettingsError(
                f"The key of signed links at {path} cannot be made or read: {error.strerror}.",
                fix="Make its folder writable, or set MAILHOUSE_SECRET_KEY.",
            ) from error
        if len(key) < 16:
            raise SettingsError(
                f"{path} holds no key: it is shorter than 16 bytes.",
                fix="Put the key back from a backup; links in mail already sent need it. If none was sent, delete it.",
            )
        return key


def _write_once(path: Path, content: bytes) -> None:
    """Create a file with mode 0600 whole or not at all; the first of several processes wins."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine: `localhost`, 127.0.0.0/8 or ::1."""
    if host.lower().rstrip(".") == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def require_identity(settings: SenderSettings, *, category: str, from_email: str = "") -> None:
    """Refuse to send mail that would not say who sent it and how to stop it.

    Raises:
        SettingsError: names the first setting that is missing or not usable.
    """
    if not (from_email or settings.from_email):
        raise SettingsError(
            "There is no sender address.", fix="Set MAILHOUSE_FROM_EMAIL, or `from_email` in the campaign."
        )
    if category != "marketing":
        return
    for name in ("company_name", "postal_address"):
        if not getattr(settings, name).strip():
            raise SettingsError(
                f"Marketing mail must state the sender's {name.replace('_', ' ')}, and none is set.",
                fix=f"Set MAILHOUSE_{name.upper()}.",
            )
    parts = urlsplit(settings.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingsError(
            f"MAILHOUSE_BASE_URL {settings.base_url!r} is not a web address, so nobody could unsubscribe.",
            fix="Set it to the gateway's public address, such as https://mail.example.com.",
        )


def require_rehearsal_safe(settings: SenderSettings, *, reaches_people: bool) -> None:
    """Refuse real delivery while the clock is shifted, and plain-http unsubscribe links to real people.

    Raises:
        SettingsError: a rehearsal would reach people, or one-click unsubscribe (RFC 8058) would not work without https.
    """
    if not reaches_people:
        return
    if settings.clock_offset:
        raise SettingsError(
            "The clock is shifted (MAILHOUSE_CLOCK_OFFSET): this is a rehearsal, but the provider would reach people.",
            fix="Use provider maildir or an SMTP server on this machine, or unset MAILHOUSE_CLOCK_OFFSET.",
        )
    if urlsplit(settings.base_url).scheme != "https":
        raise SettingsError(
            f"MAILHOUSE_BASE_URL is {settings.base_url}, but one-click unsubscribe (RFC 8058) needs https.",
            fix="Set it to the gateway's public https address.",
        )
