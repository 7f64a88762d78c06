"""The ways out for messages, by name. A new one is a file here and a line in `PROVIDERS`."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from senders.providers.base import Capabilities, NotSupportedError, Provider, WebhookReader
from warehouse.errors import SettingsError

if TYPE_CHECKING:
    from senders.settings import SenderSettings

#: Name -> class; it is imported when it is first asked for.
PROVIDERS: dict[str, str] = {
    "maildir": "senders.providers.maildir:MaildirProvider",
    "smtp": "senders.providers.smtp:SmtpProvider",
    "sendgrid": "senders.providers.sendgrid:SendGridProvider",
    "mandrill": "senders.providers.mandrill:MandrillProvider",
    "mailchimp": "senders.providers.mailchimp:MailchimpProvider",
    "bombbomb": "senders.providers.bombbomb:BombBombProvider",
    "twilio": "senders.providers.twilio:TwilioProvider",
    "fcm": "senders.providers.fcm:FcmProvider",
    "slack": "senders.providers.slack:SlackProvider",
    "webhook": "senders.providers.webhook:WebhookProvider",
}

#: Those that report by webhook what became of messages which went out another way, by SMTP.
WEBHOOK_READERS: dict[str, str] = {
    "amazon_ses": "senders.providers.amazon_ses:AmazonSesEvents",
    "postmark": "senders.providers.postmark:PostmarkEvents",
}


def provider_class(name: str) -> type[Provider]:
    """The class of a provider.

    Raises:
        SettingsError: no provider has the name; names what is allowed.
    """
    if name not in PROVIDERS:
        raise _unknown(name, "provider", "Providers", list(PROVIDERS))
    return _load(PROVIDERS[name])


def get_capabilities(name: str) -> Capabilities:
    """What the provider of that name can do, whether or not it is set up here.

    Raises:
        SettingsError: no provider has the name.
    """
    return provider_class(name).capabilities


def get_provider(settings: SenderSettings, name: str = "") -> Provider:
    """The provider of that name, or of the settings.

    Raises:
        SettingsError: no provider has the name, or its own settings are missing; names what is allowed.
    """
    return provider_class(name or settings.provider).from_settings(settings)


def get_webhook_reader(settings: SenderSettings, name: str) -> WebhookReader:
    """What reads the webhook calls of the provider of that name.

    Raises:
        SettingsError: no provider has the name, or its own settings are missing.
        NotSupportedError: the provider calls no webhooks.
    """
    if name in WEBHOOK_READERS:
        return _load(WEBHOOK_READERS[name]).from_settings(settings)
    if name not in PROVIDERS:
        raise _unknown(name, "provider", "Providers", [*PROVIDERS, *WEBHOOK_READERS])
    if not get_capabilities(name).has_webhooks:
        raise NotSupportedError(f"Provider {name} calls no webhooks.")
    return provider_class(name).from_settings(settings)


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _unknown(name: str, kind: str, kinds: str, known: list[str]) -> SettingsError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return SettingsError(
        f"There is no {kind} {name!r}.", fix=f"{hint}{kinds} are: {', '.join(sorted(known))}."
    )
