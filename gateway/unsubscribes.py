"""Storing that a recipient unsubscribed: one event, once, and only then an answer."""

from __future__ import annotations

import threading
from typing import Literal

from gateway.storing import store_event
from senders.ledger import Ledger, LedgerError
from senders.settings import SenderSettings
from senders.unsubscribe import verify_token
from warehouse.client import Warehouse
from warehouse.errors import WarehouseError

Method = Literal["one_click", "form"]


class NotStoredError(Exception):
    """The event could not be stored; the recipient must not be told otherwise."""


class Recipient:
    """Who a message was for.

    Attributes:
        email: the address it went to; empty if the person has been erased since.
    """

    __slots__ = ("contact_id", "email", "message_id")

    def __init__(self, message_id: str, email: str, contact_id: int) -> None:
        self.message_id, self.email, self.contact_id = message_id, email, contact_id


class Unsubscribes:
    """Finds recipients by their link, and stores that they unsubscribed. Safe to share between threads."""

    def __init__(self, settings: SenderSettings, ledger: Ledger, warehouse: Warehouse) -> None:
        self.settings, self.ledger, self.warehouse = settings, ledger, warehouse
        self._key = settings.signing_key()
        # two clicks at once must not both find the event missing
        self._lock = threading.Lock()

    def recipient(self, token: str, purpose: str) -> Recipient | None:
        """Who holds the link; None if we did not make it.

        Raises:
            NotStoredError: neither ledger nor warehouse can be asked, or neither knows the message.
        """
        message_id = verify_token(self._key, token, purpose)
        if message_id is None:
            return None
        try:
            found = self.ledger.recipient_of(message_id)
            if found is not None:
                return Recipient(message_id, *found)
            rows = self.warehouse.frame(
                "select email, contact_id from raw.messages where message_id = {id:String} limit 1",
                {"id": message_id},
            )
        except (LedgerError, WarehouseError) as error:
            raise NotStoredError(str(error)) from error
        if not rows.height:
            # our signature, so the message was ours: better no answer than a false one
            raise NotStoredError(f"message {message_id} is in neither ledger nor warehouse")
        return Recipient(message_id, str(rows["email"][0]), int(rows["contact_id"][0]))

    def unsubscribe(self, recipient: Recipient, method: Method) -> None:
        """Store the event, unless it is stored; returns when the warehouse has it.

        Raises:
            NotStoredError: the warehouse did not take it.
        """
        try:
            with self._lock:
                self._store(recipient, method)
        except WarehouseError as error:
            raise NotStoredError(str(error)) from error

    def _store(self, recipient: Recipient, method: Method) -> None:
        now = self.settings.now()
        event_id = f"gateway:unsubscribed:{recipient.message_id}"
        # an old link still works for somebody who has consented again since
        consent = self.warehouse.value(
            """
            select argMax(consent_id, occurred_at) from raw.consents
            where lower(trim(email)) = {email:String} and channel = 'email' and purpose = 'marketing' and is_granted
                and occurred_at > (
                    select max(occurred_at) from raw.events
                    where type = 'unsubscribed' and message_id = {id:String} having count() > 0
                )
            """,
            {"email": recipient.email.strip().lower(), "id": recipient.message_id},
        )
        if consent:
            event_id += f":{consent}"
        properties = {
            "method": method, "purpose": "marketing", "contact_id": recipient.contact_id, "is_machine": False,
            "provider": "mailhouse",
        }  # fmt: skip
        store_event(
            self.warehouse,
            event_id,
            "unsubscribed",
            recipient.message_id,
            recipient.email,
            now,
            properties,
        )
