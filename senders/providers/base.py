"""The protocol of a provider, and the errors that it may raise.

A provider is one file: a class derived from `Provider` with a `capabilities`, registered in `senders.providers`.
`send` answers for every message it was given. It may raise only before anything of the batch was handed over:
`ProviderUnavailableError` if the provider cannot be reached, `ProviderRefusedError` if it will not have us at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from senders.message import Delivery, Message
from warehouse.errors import MailhouseError


class ProviderError(MailhouseError):
    """A provider cannot be used as it is set up, or now."""


class ProviderUnavailableError(ProviderError):
    """The provider does not answer; certainly nothing of the batch was handed over, so it may be tried again.

    Attributes:
        retry_after: seconds that the provider asked us to wait, None if it did not say.
    """

    def __init__(self, message: str, *, fix: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, fix=fix)
        self.retry_after = retry_after


class ProviderRefusedError(ProviderError):
    """The provider refuses us (credentials, sender address); trying again changes nothing."""


class NotSupportedError(ProviderError):
    """The provider cannot do this; `capabilities` says so too."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do.

    Attributes:
        dispatch_window: messages handed over between two commits of the ledger. A crash leaves at most so many
            `unknown`, unless `can_look_up`.
        can_look_up: `lookup` tells whether a message was accepted.
        has_webhooks: `parse_webhook` and `verify_signature` work.
        reaches_people: what is sent leaves this machine, so a rehearsal must not use it.
    """

    channel: str = "email"
    dispatch_window: int = 1000
    can_look_up: bool = False
    has_webhooks: bool = False
    reaches_people: bool = True


class Provider(ABC):
    """One way out for messages. Made once a run, used by one thread at a time, closed at the end."""

    name: str
    capabilities: Capabilities

    @abstractmethod
    def send(self, batch: Sequence[Message]) -> list[Delivery]:
        """Hand messages over; one answer for each, in their order.

        Raises:
            ProviderUnavailableError, ProviderRefusedError: nothing of this batch was handed over.
        """

    def lookup(self, message_ids: Sequence[str]) -> Mapping[str, Delivery]:
        """What became of messages: `sent` where the provider has them, `failed` where it certainly has not.

        Raises:
            NotSupportedError: the provider keeps no record that we can ask.
        """
        raise NotSupportedError(
            f"Provider {self.name} cannot tell what became of {len(message_ids)} messages."
        )

    def parse_webhook(self, body: bytes, headers: Mapping[str, str]) -> list[dict[str, Any]]:  # noqa: ARG002
        """Rows of `raw.events` that a webhook call carries.

        Raises:
            NotSupportedError: the provider calls no webhooks.
        """
        raise NotSupportedError(
            f"Provider {self.name} has no webhooks, so {len(body)} bytes cannot be its call."
        )

    def verify_signature(self, body: bytes, headers: Mapping[str, str]) -> bool:  # noqa: ARG002
        """Whether a webhook call comes from the provider.

        Raises:
            NotSupportedError: the provider calls no webhooks.
        """
        raise NotSupportedError(
            f"Provider {self.name} signs no webhooks, so {len(body)} bytes cannot be its call."
        )

    def close(self) -> None:  # noqa: B027  (most providers keep nothing open)
        """Give connections back."""

    def __enter__(self) -> Provider:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
