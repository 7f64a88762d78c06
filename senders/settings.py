"""Settings of the senders: who sends, through what, how fast, and the secret that signs links."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator

from warehouse.errors import SettingsError
from warehouse.settings import MailhouseSettings, secret_of

_WORTH_WORKERS = 5_000  # messages; a worker takes a second to start, in which one process sends as many


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
        send_workers: processes that render and hand over messages of one campaign; 0 keeps to one process. Unset
            means one for each core, for audiences that are worth starting them.
        send_parts, send_executor: Dagster sends a campaign in so many parts, each a step that the executor places:
            `in_process`, `multiprocess`, `celery`, `celery_kubernetes` or `kubernetes`. One part is one step.
        http_connections: connections kept open to a provider that speaks HTTP; so many calls are under way at once.
        sendgrid_key, sendgrid_url: API key with the permission Mail Send; the EU has its own address.
        sendgrid_webhook_key: the public key that checks its Event Webhook.
        mandrill_key, mandrill_webhook_key: API key of Mailchimp Transactional, and its webhook's key.
        mailchimp_key, mailchimp_audience: API key, and id of the audience.
        mailchimp_journey, mailchimp_step: numbers of a customer journey and of its step that starts by API.
        mailchimp_webhook_secret: signing secret of its webhooks, where Mailchimp shows one.
        bombbomb_token, bombbomb_video, bombbomb_template: key or access token, id of the video, id of a template.
        bombbomb_client_id, bombbomb_client_secret: OAuth client, if the token is a refresh token.
        twilio_account, twilio_token, twilio_from: account SID, auth token, and number or messaging service.
        twilio_url: address of its API: regions have their own.
        fcm_credentials: key file of a Firebase service account.
        slack_url, slack_signing_secret: address of an incoming webhook, and the app's signing secret.
        webhook_url, webhook_secret: where the provider `webhook` posts messages, and `whsec_...` that signs them.
        amazon_ses_topic: ARN of the SNS topic that reports events of Amazon SES.
        webhook_url_secret: ends the address that is told to vendors who sign nothing: `.../webhooks/NAME?secret=...`.
        rate_per_second: messages a second at most; 0 means no limit.
        rate_burst: messages that may go at once after a pause; 0 means one second's worth.
        default_cap_messages, default_cap_days: marketing messages one person gets at most within so many days,
            where the campaign states no cap; 0 messages means no cap.
        bounce_address: where bounces of mail sent by SMTP go: `bounce@mail.example.com` makes the return path
            `bounce+MESSAGE_ID@mail.example.com` (VERP), so that each names its message; empty: the sender's address.
        bounce_folder: a folder or maildir into which bounces and complaints are delivered.
        bounce_imap_url: `imaps://user:password@host/INBOX` of the mailbox that gets them.
        bounce_soft_limit, bounce_soft_days: an address that bounces softly on so many days within so many days is
            given up; 0 means never.
        track_clicks, track_opens: categories whose links lead through the gateway, and whose HTML has a pixel that
            tells of an open: `marketing`, `transactional`, both with a comma, or empty; a campaign may say otherwise.
        utm_source, utm_medium: added to web links as utm_source and utm_medium, with utm_campaign the campaign's
            name; no source means none of them.
        assets_url: where published pictures are served from; `asset:` in templates becomes an address below it.
        assets_store: where `mailhouse assets publish` puts them: a folder, `s3://bucket/path`, `gs://bucket/path`.
        dkim_key, dkim_selector: a private key (RSA 2048 or Ed25519; PEM, or the path of a PEM file) that signs what
            goes out by SMTP, and the name of its record in DNS; no key means no signature of ours, and the selector is
            then that of the provider's, for the check of the sender's domain.
        dkim_second_key, dkim_second_selector: another one, usually Ed25519 beside RSA.
        dkim_domain: signs for this domain; empty means the sender's.
        preflight_network: the checks before a send may ask for links and look up the sender's domain in DNS.
        spamd_url: `tcp://host:port` or `unix:///path` of SpamAssassin's daemon, which then judges before a send.
        spam_limit: points of SpamAssassin at which a campaign is not sent.
        litmus_key, litmus_clients: key of Litmus' Instant API, and the mail programs there, with commas, that
            `mailhouse preview --litmus` shows a message in.
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
    smtp_connections: int = 10
    send_workers: int | None = None
    send_parts: int = 1
    send_executor: str = "in_process"
    http_connections: int = 4
    sendgrid_key: SecretStr | None = None
    sendgrid_url: str = "https://api.sendgrid.com"
    sendgrid_webhook_key: str = ""
    mandrill_key: SecretStr | None = None
    mandrill_webhook_key: SecretStr | None = None
    mailchimp_key: SecretStr | None = None
    mailchimp_audience: str = ""
    mailchimp_journey: int = 0
    mailchimp_step: int = 0
    mailchimp_webhook_secret: SecretStr | None = None
    bombbomb_token: SecretStr | None = None
    bombbomb_video: str = ""
    bombbomb_template: str = ""
    bombbomb_client_id: str = ""
    bombbomb_client_secret: SecretStr | None = None
    twilio_account: str = ""
    twilio_token: SecretStr | None = None
    twilio_from: str = ""
    twilio_url: str = "https://api.twilio.com"
    fcm_credentials: Path | None = None
    slack_url: SecretStr | None = None
    slack_signing_secret: SecretStr | None = None
    webhook_url: str = ""
    webhook_secret: SecretStr | None = None
    amazon_ses_topic: str = ""
    webhook_url_secret: SecretStr | None = None
    rate_per_second: float = 0.0
    rate_burst: int = 0
    default_cap_messages: int = 0
    default_cap_days: float = 7.0
    bounce_address: str = ""
    bounce_folder: Path | None = None
    bounce_imap_url: SecretStr | None = None
    bounce_soft_limit: int = 5
    bounce_soft_days: float = 30.0
    track_clicks: str = ""
    track_opens: str = ""
    utm_source: str = ""
    utm_medium: str = "email"
    dkim_key: SecretStr | None = None
    dkim_selector: str = ""
    dkim_second_key: SecretStr | None = None
    dkim_second_selector: str = ""
    dkim_domain: str = ""
    assets_url: str = ""
    assets_store: str = ""
    preflight_network: bool = False
    spamd_url: str = ""
    spam_limit: float = 5.0
    litmus_key: SecretStr | None = None
    litmus_clients: str = ""
    claim_lease: float = 60.0

    @field_validator("send_parts")
    @classmethod
    def _some_parts(cls, value: int) -> int:
        if not 1 <= value <= 1_000:
            raise ValueError("is no number of parts; write one from 1 to 1000")
        return value

    @field_validator("track_clicks", "track_opens")
    @classmethod
    def _known_categories(cls, value: str) -> str:
        unknown = set(value.replace(",", " ").split()) - {"marketing", "transactional"}
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]!r} is no category; there are marketing and transactional")
        return value

    def tracks(self, what: Literal["clicks", "opens"], category: str) -> bool:
        """Whether clicks or opens of a category are tracked."""
        categories = self.track_clicks if what == "clicks" else self.track_opens
        return category in categories.replace(",", " ").split()

    @property
    def maildir(self) -> Path:
        """Where the maildir provider delivers."""
        return self.home / "maildir"

    def workers_for(self, messages: int) -> int:
        """How many worker processes so many messages are worth."""
        if messages < _WORTH_WORKERS:
            return 0
        return (os.cpu_count() or 1) if self.send_workers is None else self.send_workers

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
        return secret_of(
            self.secret_key,
            self.home / "secret_key",
            setting="MAILHOUSE_SECRET_KEY",
            purpose="of signed links",
            lost="links in mail already sent need it. If none was sent, delete it.",
        )


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
