"""The ways out for messages, by name. A new one is a file here and a line in `PROVIDERS`."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from senders.providers.base import Provider
from senders.settings import SenderSettings
from warehouse.errors import SettingsError


def _maildir(settings: SenderSettings) -> Provider:
    from senders.providers.maildir import MaildirProvider

    return MaildirProvider(settings.maildir)


def _smtp(settings: SenderSettings) -> Provider:
    from senders.providers.smtp import SmtpProvider, SmtpServer

    if settings.smtp_url is None:
        raise SettingsError(
            "Provider smtp needs a server, and MAILHOUSE_SMTP_URL is not set.",
            fix="Set it, like smtp://user:password@mail.example.com:587?tls=starttls.",
        )
    server = SmtpServer.parse(settings.smtp_url.get_secret_value())
    return SmtpProvider(server, connections=settings.smtp_connections)


PROVIDERS: dict[str, Callable[[SenderSettings], Provider]] = {"maildir": _maildir, "smtp": _smtp}


def get_provider(settings: SenderSettings, name: str = "") -> Provider:
    """The provider of that name, or of the settings.

    Raises:
        SettingsError: no provider has the name, or its own settings are missing; names what is allowed.
    """
    name = name or settings.provider
    make = PROVIDERS.get(name)
    if make is None:
        near = difflib.get_close_matches(name, PROVIDERS, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise SettingsError(
            f"There is no provider {name!r}.", fix=f"{hint}Providers are: {', '.join(sorted(PROVIDERS))}."
        )
    return make(settings)
