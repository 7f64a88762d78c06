"""Storing that a recipient unsubscribed: one event, once, and only then an answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Literal

import orjson

from gateway.events import Event, frame_of, milliseconds
from gateway.streams import StreamError
from senders.ledger import Ledger, LedgerError
from senders.settings import SenderSettings
from senders.unsubscribe import verify_token
from warehouse.client import Warehouse
from warehouse.errors import WarehouseError
from warehouse.loads import load_events

Method = Literal["one_click", "form", "preferences"]
#: Adds events to the stream, for triggers.
Tell = Callable[[Sequence[Event]], None]
_log = logging.getLogger("mailhouse.gateway")


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
    """Finds recipients by their link, and stores that they unsubscribed. Safe to share between threads.

    Args:
        tell: adds events to the stream, once the warehouse has them.
    """

    def __init__(self, settings: SenderSettings, ledger: Ledger, warehouse: Warehouse, tell: Tell) -> None:
        self.settings, self.ledger, self.warehouse = settings, ledger, warehouse
        self._tell = tell
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
                event_id = f"gateway:unsubscribed:{recipient.message_id}"
                if again := self._subscribed_since(recipient):
                    event_id += f":{again}"
                self.store(recipient, event_id, "unsubscribed", method)
        except WarehouseError as error:
            raise NotStoredError(str(error)) from error

    def _subscribed_since(self, recipient: Recipient) -> str:
        """What took the last unsubscribe by this link back: an old link works again after a new consent."""
        return str(
            self.warehouse.value(
                """
                select argMax(id, at) from (
                    select consent_id as id, occurred_at as at from raw.consents
                    where lower(trim(email)) = {email:String} and is_granted
                    union all
                    select event_id as id, occurred_at as at from raw.events
                    where type = 'subscribed' and lower(trim(email)) = {email:String}
                )
                where at > (
                    select max(occurred_at) from raw.events
                    where type = 'unsubscribed' and message_id = {id:String} having count() > 0
                )
                """,
                {"email": recipient.email.strip().lower(), "id": recipient.message_id},
            )
            or ""
        )

    def store(
        self,
        recipient: Recipient,
        event_id: str,
        type_: Literal["unsubscribed", "subscribed"],
        method: Method,
    ) -> None:
        """Store one event of a recipient, once by its id, then tell the stream.

        Raises:
            WarehouseError: it is not stored.
        """
        properties = {
            "method": method, "purpose": "marketing", "contact_id": recipient.contact_id, "is_machine": False,
            "provider": "mailhouse",
        }  # fmt: skip
        now = milliseconds(self.settings.now())
        event = Event(
            event_id, type_, now, now, "gateway", recipient.email, message_id=recipient.message_id,
            properties=orjson.dumps(properties).decode(),
        )  # fmt: skip
        result = load_events(self.warehouse, frame_of([event]), run_id="gateway")
        if not result.loaded:
            # as it was stored, so that the consumer finds it
            at = self.warehouse.value(
                "select toUnixTimestamp64Milli(min(occurred_at)) from raw.events where event_id = {id:String}",
                {"id": event_id},
            )
            event = event._replace(occurred_at=int(at), received_at=int(at))
        try:
            self._tell([event])
        except StreamError as error:
            # it holds; only triggers may not learn of it
            _log.error("the stream was not told of %s: %s", type_, error.message)
