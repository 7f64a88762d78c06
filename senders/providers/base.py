"""The protocol of a provider, and the errors that it may raise.

A provider is one file: a class derived from `Provider` with a `capabilities`, registered in `senders.providers`.
One that speaks HTTP derives from `senders.providers.http.HttpProvider`. What it cannot do is found by
`require_capabilities` before anything is sent.

`send` answers for every message it was given. It may raise only before anything of the batch was handed over:
`ProviderUnavailableError` if the provider cannot be reached, `ProviderRefusedError` if it will not have us at all.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from campaigns.permissions import MAIL_CHANNELS, MARKETING_CHANNELS
from senders.message import Delivery, Message, Status
from warehouse.errors import MailhouseError, SettingsError

if TYPE_CHECKING:
    from senders.journal import Marks
    from senders.settings import SenderSettings


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
        channel: `email`, `video` (mail with a video in it), `journey` (mail that the provider writes), `sms`, `push`,
            `chat`, `webhook`.
        dispatch_window: messages handed over between two commits of the ledger. A crash leaves some windows `unknown`,
            unless `can_look_up`; one that leaves the machine running leaves fewer messages so, if it `marks_each`.
        most_per_call: messages that one call carries at most.
        wants_raw: takes the message as RFC 5322 bytes, so the pipeline makes those beforehand.
        has_list_unsubscribe: its mail carries List-Unsubscribe, ours or its own; marketing mail must.
        can_attach: takes attachments.
        can_invite: takes calendar files that ask for an answer, whose content type has a parameter.
        can_track: counts opens and clicks itself.
        longest_hold: how long it holds messages back before delivery; zero where it cannot.
        can_cancel: `cancel` stops messages that it still holds back.
        can_look_up: `lookup` tells whether a message was accepted.
        has_webhooks: `parse_webhook` and `verify_signature` work.
        marks_each: `marks` is told of each message, so that a crash leaves only those `unknown` that were on their way.
        reaches_people: what is sent leaves this machine, so a rehearsal must not use it.
    """

    channel: str = "email"
    dispatch_window: int = 1000
    most_per_call: int = 1
    wants_raw: bool = True
    has_list_unsubscribe: bool = True
    can_attach: bool = False
    can_invite: bool = False
    can_track: bool = False
    longest_hold: timedelta = timedelta(0)
    can_cancel: bool = False
    can_look_up: bool = False
    has_webhooks: bool = False
    marks_each: bool = False
    reaches_people: bool = True


@dataclass(frozen=True, slots=True)
class Needs:
    """What a campaign asks of its provider; the fields of `Capabilities`, from the other side."""

    channel: str = "email"
    category: str = "transactional"
    has_attachments: bool = False
    has_invitation: bool = False
    is_tracked: bool = False
    hold: timedelta = timedelta(0)
    is_cancellable: bool = False


def unmet_needs(capabilities: Capabilities, needs: Needs) -> list[str]:
    """What the provider cannot do of what is asked, each as a clause behind 'the provider'; empty if it can all."""
    unmet: list[str] = []
    if needs.channel != capabilities.channel:
        unmet.append(f"sends {capabilities.channel}, not {needs.channel}")
    if needs.category == "marketing" and needs.channel not in MARKETING_CHANNELS:
        unmet.append(f"may not send marketing: consent for {needs.channel} is not kept")
    elif (
        needs.category == "marketing"
        and needs.channel in MAIL_CHANNELS
        and not capabilities.has_list_unsubscribe
    ):
        unmet.append("cannot send marketing: its mail carries no List-Unsubscribe (RFC 8058)")
    if needs.has_attachments and not capabilities.can_attach:
        unmet.append("takes no attachments")
    elif needs.has_invitation and not capabilities.can_invite:
        unmet.append("takes no calendar files that ask for an answer (METHOD:REQUEST and the like)")
    if needs.is_tracked and not capabilities.can_track:
        unmet.append("counts no opens and clicks (provider_tracking)")
    if needs.hold and not capabilities.longest_hold:
        unmet.append("cannot hold messages back (hold)")
    elif needs.hold > capabilities.longest_hold:
        unmet.append(f"holds messages back for {capabilities.longest_hold} at most, not {needs.hold}")
    if needs.is_cancellable and not capabilities.can_cancel:
        unmet.append("cannot cancel what was handed over (cancellable)")
    elif needs.is_cancellable and not needs.hold:
        unmet.append("can cancel only what it holds back, and no hold is given")
    return unmet


def require_capabilities(name: str, capabilities: Capabilities, needs: Needs, *, place: str = "") -> None:
    """Refuse to begin what the provider cannot do; called by `senders.pipeline.send` and for campaign files.

    Args:
        place: file and line that ask for it.

    Raises:
        SettingsError: names the provider and the first thing it cannot do.
    """
    unmet = unmet_needs(capabilities, needs)
    if unmet:
        raise SettingsError(
            f"{place + ': ' if place else ''}Provider {name} {unmet[0]}.",
            fix="Name another provider in the campaign, or do without; docs/providers.md has what each can do.",
        )


#: From a place in a batch to the message that stands there, or to what became of one that cannot be made.
Make = Callable[[int], "Message | Delivery"]


def unanswered(message_id: str) -> Delivery:
    """What became of a message of which the provider said nothing."""
    return Delivery(message_id, Status.UNKNOWN, reply="the provider gave no answer")


class WebhookReader:
    """Reads the calls by which a provider reports what became of messages.

    `senders.providers.webhooks.receive` does it all in order: signature, age, replay, rows.

    Attributes:
        signed_headers: headers that are signed with the body, in small letters: two calls that differ in them are two.
    """

    name: str
    signed_headers: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> Self:
        """One that is set up as the settings say.

        Raises:
            SettingsError: a setting that it needs is missing or not usable.
        """
        raise NotImplementedError

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Rows of `raw.events` that a webhook call carries, each with the provider's own payload in `esp_event`.

        Args:
            headers: names in any case.
            url: the address that was called.
            now: when it came in; left out, the time by the clock. Stands in where an event says no time.

        Raises:
            WebhookError: the body is nothing that the provider sends.
            NotSupportedError: the provider calls no webhooks.
        """
        del headers, url, now
        raise NotSupportedError(
            f"Provider {self.name} has no webhooks, so {len(body)} bytes cannot be its call."
        )

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """Whether a webhook call comes from the provider, and not long ago where it says when.

        Args:
            url: the address that was called, as the provider was told it, query and all: some sign that, too.

        Raises:
            NotSupportedError: the provider calls no webhooks.
            SettingsError: the key to check it with is not set.
        """
        del headers, url, now
        raise NotSupportedError(
            f"Provider {self.name} signs no webhooks, so {len(body)} bytes cannot be its call."
        )

    def acknowledgement(self, body: bytes) -> tuple[bytes, bytes] | None:
        """What the caller wants to hear once this call is stored: body and content type; None if the status will do."""
        del body
        return None


class Provider(WebhookReader, ABC):
    """One way out for messages. Made once a run, used by one thread at a time, closed at the end.

    Attributes:
        marks: notes that outlive this process, of the messages that `send` is given; set by whoever sends.
    """

    capabilities: Capabilities
    marks: Marks | None = None

    @classmethod
    def maker(cls, settings: SenderSettings) -> Callable[[], Provider]:
        """What makes the provider of the settings in another process; can be pickled.

        Raises:
            SettingsError: a setting that it needs is missing or not usable.
        """
        return functools.partial(cls.from_settings, settings)

    @abstractmethod
    def send(self, batch: Sequence[Message]) -> list[Delivery]:
        """Hand messages over; one answer for each, in their order.

        Raises:
            ProviderUnavailableError, ProviderRefusedError: nothing of this batch was handed over.
        """

    def send_each(self, message_ids: Sequence[str], make: Make) -> list[Delivery]:
        """As `send`, of messages that need not be made before their turn comes.

        Args:
            make: from a place in the batch to the message, or to what became of one that cannot be made; called once
                each, in any order.

        Raises:
            ProviderUnavailableError, ProviderRefusedError: nothing of this batch was handed over.
        """
        made = [make(position) for position in range(len(message_ids))]
        messages = [one for one in made if isinstance(one, Message)]
        found: dict[str, Delivery] = {}
        if messages:
            if self.marks is not None and not self.capabilities.marks_each:
                self.marks.all_handed_over()
            found = {delivery.message_id: delivery for delivery in self.send(messages)}
        return [
            found.get(message_id) or unanswered(message_id) if isinstance(one, Message) else one
            for message_id, one in zip(message_ids, made, strict=True)
        ]

    def lookup(self, message_ids: Sequence[str]) -> Mapping[str, Delivery]:
        """What became of messages: `sent` where the provider has them, `failed` where it certainly has not.

        Raises:
            NotSupportedError: the provider keeps no record that we can ask.
        """
        raise NotSupportedError(
            f"Provider {self.name} cannot tell what became of {len(message_ids)} messages."
        )

    def cancel(self, batch_id: str) -> None:
        """Stop what the provider still holds back of a batch; the id stands in the ledger's `provider_reply`.

        Raises:
            NotSupportedError: the provider cannot.
            ProviderError: it refuses, or does not answer: the messages may go out.
        """
        raise NotSupportedError(f"Provider {self.name} cannot cancel anything, batch {batch_id} neither.")

    def close(self) -> None:
        """Give connections back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
