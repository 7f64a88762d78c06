"""Events of tracked links: that a message was opened, or a link in it clicked."""

from __future__ import annotations

import uuid
from typing import Literal

import orjson

from gateway.events import Event, is_unicode, milliseconds
from senders.ledger import Ledger, LedgerError
from senders.links import Click, Links
from senders.settings import SenderSettings

#: A picture of one transparent pixel, GIF89a.
PIXEL = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)

_LONGEST_AGENT = 500
_UNKNOWN: tuple[str, int | None] = ("", None)


class Clicks:
    """Reads tracked links, and says what happened. Safe to share between threads."""

    def __init__(self, settings: SenderSettings, ledger: Ledger) -> None:
        self.settings, self.ledger = settings, ledger
        self._links = Links(settings.signing_key(), settings.base_url)

    def resolve(self, path: str) -> Click | None:
        """What a link leads to, from what stands behind `/c/`; None if we did not make it."""
        return self._links.resolve(path)

    def opened(self, token: str) -> str | None:
        """The message of a pixel's token; None if we did not make it."""
        return self._links.opened(token)

    def event(
        self,
        type_: Literal["clicked", "opened"],
        message_id: str,
        *,
        agent: str,
        click: Click | None = None,
        method: str = "GET",
    ) -> Event:
        """The event; asks the ledger whose message it is.

        Args:
            agent: the caller's User-Agent, shortened; the warehouse's rules tell machines by it.
        """
        now = milliseconds(self.settings.now())
        try:
            email, contact_id = self.ledger.recipient_of(message_id) or _UNKNOWN
        except LedgerError:
            # the message id is what counts: the warehouse knows whose it is
            email, contact_id = _UNKNOWN
        properties: dict[str, object] = {
            "provider": "mailhouse", "user_agent": agent[:_LONGEST_AGENT].replace("\0", ""),
            # nobody's mail program asks only for the head of what a link leads to
            "is_machine": method == "HEAD",
        }  # fmt: skip
        if contact_id is not None:
            properties["contact_id"] = contact_id
        if click is not None:
            properties |= {"url": click.url if is_unicode(click.url) else "", "position": click.index}
        return Event(
            f"gateway:{type_}:{message_id}:{uuid.uuid4().hex}", type_, now, now, "gateway", email,
            message_id=message_id, properties=orjson.dumps(properties).decode(),
        )  # fmt: skip
