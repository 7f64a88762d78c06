"""Storing that a message was opened or a link in it clicked."""

from __future__ import annotations

import uuid
from typing import Literal

from gateway.storing import store_event
from senders.ledger import Ledger, LedgerError
from senders.links import Click, Links
from senders.settings import SenderSettings
from warehouse.client import Warehouse

#: A picture of one transparent pixel, GIF89a.
PIXEL = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)

_LONGEST_AGENT = 500
_UNKNOWN: tuple[str, int | None] = ("", None)


class Clicks:
    """Reads tracked links, and stores what happened. Safe to share between threads."""

    def __init__(self, settings: SenderSettings, ledger: Ledger, warehouse: Warehouse) -> None:
        self.settings, self.ledger, self.warehouse = settings, ledger, warehouse
        self._links = Links(settings.signing_key(), settings.base_url)

    def resolve(self, path: str) -> Click | None:
        """What a link leads to, from what stands behind `/c/`; None if we did not make it."""
        return self._links.resolve(path)

    def opened(self, token: str) -> str | None:
        """The message of a pixel's token; None if we did not make it."""
        return self._links.opened(token)

    def store(
        self,
        type_: Literal["clicked", "opened"],
        message_id: str,
        *,
        agent: str,
        click: Click | None = None,
        method: str = "GET",
    ) -> None:
        """Store one event; returns when the warehouse has it.

        Args:
            agent: the caller's User-Agent, shortened; the warehouse's rules tell machines by it.

        Raises:
            WarehouseError: it did not take it.
        """
        now = self.settings.now()
        try:
            email, contact_id = self.ledger.recipient_of(message_id) or _UNKNOWN
        except LedgerError:
            # the message id is what counts: the warehouse knows whose it is
            email, contact_id = _UNKNOWN
        properties: dict[str, object] = {
            "provider": "mailhouse", "user_agent": agent[:_LONGEST_AGENT],
            # nobody's mail program asks only for the head of what a link leads to
            "is_machine": method == "HEAD",
        }  # fmt: skip
        if contact_id is not None:
            properties["contact_id"] = contact_id
        if click is not None:
            properties |= {"url": click.url, "position": click.index}
        store_event(
            self.warehouse,
            f"gateway:{type_}:{message_id}:{uuid.uuid4().hex}",
            type_,
            message_id,
            email,
            now,
            properties,
        )
