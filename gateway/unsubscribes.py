"""Storing that a recipient unsubscribed: one event, once, and only then an answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
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

Method = Literal["one_click", "form", "preferences", "subscription"]
#: Adds events to the stream, for triggers.
Tell = Callable[[Sequence[Event]], None]
_log = logging.getLogger("mailhouse.gateway")


class NotStoredError(Exception):
    """The event could not be stored; the recipient must not be told otherwise."""


class Recipient:
    """Who a message was for.

    Attributes:
        email: the address it went to; empty if the person has been erased since.
        phone: the number that it went to as a text message; empty if it was none.
    """

    __slots__ = ("contact_id", "email", "message_id", "phone")

    def __init__(self, message_id: str, email: str, contact_id: int, phone: str = "") -> None:
        self.message_id, self.email, self.contact_id, self.phone = message_id, email, contact_id, phone

    @property
    def shown(self) -> str:
        """The address in parts: the link may be in somebody else's hands."""
        if self.phone:
            return f"{self.phone[:3]}•••{self.phone[-2:]}"
        local, _, domain = self.email.rpartition("@")
        return f"{local[:1]}•••@{domain}" if local else "your address"


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
            found = self.ledger.find(message_id)
            if found is not None:
                known = found.values
                phone = known["details"].get("address", "") if known["channel"] == "sms" else ""
                return Recipient(message_id, known["email"], known["contact_id"], phone)
            rows = self.warehouse.frame(
                """
                select email, contact_id,
                    if(channel = 'sms', ifNull(details.address::Nullable(String), ''), '') as phone
                from raw.messages where message_id = {id:String} limit 1
                """,
                {"id": message_id},
            )
        except (LedgerError, WarehouseError) as error:
            raise NotStoredError(str(error)) from error
        if not rows.height:
            # our signature, so the message was ours: better no answer than a false one
            raise NotStoredError(f"message {message_id} is in neither ledger nor warehouse")
        return Recipient(message_id, str(rows["email"][0]), int(rows["contact_id"][0]), str(rows["phone"][0]))

    def unsubscribe(self, recipient: Recipient, method: Method) -> None:
        """Store the event, unless it is stored; returns when the warehouse has it.

        A link stops the channel of the message that it stood in: mail, or text messages to that number. The page of
        preferences (`preferences`) stops all channels.

        Raises:
            NotStoredError: the warehouse did not take it.
        """
        try:
            with self._lock:
                event_id = f"gateway:unsubscribed:{recipient.message_id}"
                if method == "preferences":
                    event_id += ":all"
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
                    where type = 'subscribed' and (
                        ({email:String} != '' and lower(trim(email)) = {email:String})
                        or ({phone:String} != '' and properties.phone::Nullable(String) = {phone:String})
                    )
                )
                where at > (
                    select max(occurred_at) from raw.events
                    where type = 'unsubscribed' and message_id = {id:String} having count() > 0
                )
                """,
                {
                    "email": recipient.email.strip().lower(),
                    "phone": recipient.phone,
                    "id": recipient.message_id,
                },
            )
            or ""
        )

    def store(
        self,
        recipient: Recipient,
        event_id: str,
        type_: Literal["unsubscribed", "subscribed"],
        method: Method,
        at: datetime | None = None,
    ) -> None:
        """Store one event of a recipient, once by its id, then tell the stream.

        Args:
            at: when it happened; left out, now.

        Raises:
            WarehouseError: it is not stored.
        """
        is_of_number = bool(recipient.phone) and method != "preferences"
        channel = "all" if method == "preferences" else "sms" if is_of_number else "email"
        properties = {
            "method": method, "purpose": "marketing", "contact_id": recipient.contact_id, "is_machine": False,
            "provider": "mailhouse", "channel": channel, **({"phone": recipient.phone} if is_of_number else {}),
        }  # fmt: skip
        email = "" if is_of_number else recipient.email
        now = milliseconds(self.settings.now())
        event = Event(
            event_id, type_, milliseconds(at) if at else now, now, "gateway", email, message_id=recipient.message_id,
            properties=orjson.dumps(properties).decode(),
        )  # fmt: skip
        result = load_events(self.warehouse, frame_of([event]), run_id="gateway")
        if not result.loaded:
            # as it was stored, so that the consumer finds it
            stored = self.warehouse.value(
                "select toUnixTimestamp64Milli(min(occurred_at)) from raw.events where event_id = {id:String}",
                {"id": event_id},
            )
            event = event._replace(occurred_at=int(stored), received_at=int(stored))
        try:
            self._tell([event])
        except StreamError as error:
            # it holds; only triggers may not learn of it
            _log.error("the stream was not told of %s: %s", type_, error.message)
