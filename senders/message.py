"""What every provider is handed and what it answers, in django-anymail's vocabulary.

A `Message` is ready to go: rendered, addressed, with the headers that every channel must carry. A `Delivery` is a
provider's answer about one message. The ledger knows two more states of its own, `claimed` and `dispatching`
(`senders.ledger`), and `skipped`, a message that was deliberately not sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from campaigns.reasons import RETRYABLE, Reason

if TYPE_CHECKING:
    from senders.attachments import Attachment
    from senders.dkim import DkimSigner


class Status(StrEnum):
    """Where a message stands. The last three are ours, the others django-anymail's.

    `sent`: the provider accepted it. `queued`: the provider accepted it for later. `invalid`: no usable address.
    `rejected`: the provider refused this recipient or content for good. `failed`: it certainly did not go, and a
    later run may try again where `Reason` is in `RETRYABLE`. `unknown`: it may have gone; only the provider's own
    word settles that, never a second try.
    """

    SENT = "sent"
    QUEUED = "queued"
    INVALID = "invalid"
    REJECTED = "rejected"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"
    CLAIMED = "claimed"
    DISPATCHING = "dispatching"


#: Statuses that count as mail a person may have received: for frequency caps, and for 'never twice'.
DELIVERABLE = (Status.CLAIMED, Status.DISPATCHING, Status.SENT, Status.QUEUED, Status.UNKNOWN)


class EventType(StrEnum):
    """Types of mail events, provider-neutral; `raw.events.type` holds them as they are."""

    QUEUED = "queued"
    SENT = "sent"
    REJECTED = "rejected"
    FAILED = "failed"
    BOUNCED = "bounced"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    AUTORESPONDED = "autoresponded"
    OPENED = "opened"
    CLICKED = "clicked"
    COMPLAINED = "complained"
    UNSUBSCRIBED = "unsubscribed"
    SUBSCRIBED = "subscribed"
    INBOUND = "inbound"
    UNKNOWN = "unknown"


class RejectReason(StrEnum):
    """Why a provider refused a message or a recipient."""

    INVALID = "invalid"
    BOUNCED = "bounced"
    TIMED_OUT = "timed_out"
    BLOCKED = "blocked"
    SPAM = "spam"
    UNSUBSCRIBED = "unsubscribed"
    OTHER = "other"


class Address(NamedTuple):
    """A mailbox: `email` as `local@domain`, `name` for people, empty if there is none."""

    email: str
    name: str = ""


@dataclass(frozen=True)
class Message:
    """One rendered message to one person.

    Attributes:
        message_id: derived, see `campaigns.identity`; makes a second delivery of the same thing recognisable.
        headers: further header fields in order, unfolded and unencoded (List-Unsubscribe and the like).
        signer: signs `raw`, if we and not the provider are to.
        sent_at: the Date header.
        address: where it goes on a channel other than mail: telephone number, device token.
        deliver_at: the provider holds it back until then; None means no longer than it takes.
        is_tracked: the provider shall count opens and clicks.
        pieces: `html` and `text` as their template wrote them, constants and values in turn; None where nobody knows.
    """

    message_id: str
    contact_id: int
    sender: Address
    recipient: Address
    subject: str
    html: str
    text: str
    sent_at: datetime
    reply_to: Address | None = None
    headers: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    signer: DkimSigner | None = field(default=None, repr=False)
    address: str = ""
    deliver_at: datetime | None = None
    is_tracked: bool = False
    pieces: tuple[Sequence[str], Sequence[str]] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def composed(
        cls,
        raw: bytes,
        *,
        message_id: str,
        contact_id: int,
        sender: Address,
        recipient: Address,
        subject: str,
        sent_at: datetime,
    ) -> Message:
        """A message that is written already (`senders.composing`): `raw` is all there is of HTML and text."""
        # what a frozen class does field by field, at a third of the cost
        message = object.__new__(cls)
        message.__dict__.update(
            message_id=message_id, contact_id=contact_id, sender=sender, recipient=recipient, subject=subject, html="",
            text="", sent_at=sent_at, raw=raw, is_stuffed=True,
        )  # fmt: skip
        return message

    @classmethod
    def in_pieces(cls, html: Sequence[str], text: Sequence[str], **fields: Any) -> Message:
        """A message whose HTML and text are joined only if somebody reads them: 40 KB that most calls never need."""
        message = object.__new__(cls)
        message.__dict__.update(fields, pieces=(html, text))
        return message

    def __getattr__(self, name: str) -> str:
        pieces = self.__dict__.get("pieces")
        if pieces is None or name not in ("html", "text"):
            raise AttributeError(name)
        joined = self.__dict__[name] = "".join(pieces[name == "text"])
        return joined

    @cached_property
    def is_stuffed(self) -> bool:
        """Whether no line of `raw` begins with a dot, so that SMTP need not double any; False where nobody knows."""
        return False

    @cached_property
    def raw(self) -> bytes:
        """The message as it goes over the wire: RFC 5322, CRLF line ends, 7-bit unless an address is not ASCII."""
        from senders.mime import build

        made = build(self)
        return made if self.signer is None else self.signer.sign(made)


class Delivery(NamedTuple):
    """A provider's answer about one message.

    Attributes:
        reason: a `RejectReason` or `Reason`, empty when all went well.
        provider_message_id: the provider's own id, for matching its events.
        reply: the provider's own words, shortened to 500 characters.
        is_transient: certainly not accepted now, and worth another try.
        retry_after: seconds that the provider asked us to wait, None if it did not say.
    """

    message_id: str
    status: Status
    reason: str = ""
    provider_message_id: str = ""
    reply: str = ""
    is_transient: bool = False
    retry_after: float | None = None


__all__ = [
    "DELIVERABLE", "RETRYABLE", "Address", "Delivery", "EventType", "Message", "Reason", "RejectReason", "Status",
]  # fmt: skip
