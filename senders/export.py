"""From the ledger to `raw.messages`, and from `raw.events` back into the ledger.

The ledger marks a change as exported after the warehouse has it. A crash between the two leaves rows that the
warehouse has and the ledger thinks it has not; so every batch leaves out what is there already, by message and number
of the change. One export runs at a time: a second one finds the first at work and leaves it the job. What a provider's
refusal tells of an address becomes an event on the way: a mailbox or number that does not exist has bounced, a number
that opted out has unsubscribed, a device that is no more has lost its token.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import polars as pl

from campaigns.permissions import ADDRESS_COLUMNS
from senders.bounces import bounce_class_of
from senders.ledger import Ledger
from senders.message import EventType, RejectReason, Status
from warehouse.client import Warehouse
from warehouse.loads import load_events

BATCH_ROWS = 10_000

#: What an event says about a message whose outcome is unknown. It was accepted if anything happened to it later.
SETTLED_BY: dict[EventType, Status] = {
    EventType.FAILED: Status.FAILED,
    EventType.REJECTED: Status.REJECTED,
    EventType.QUEUED: Status.QUEUED,
    **dict.fromkeys(
        (
            EventType.SENT, EventType.DEFERRED, EventType.DELIVERED, EventType.BOUNCED, EventType.AUTORESPONDED,
            EventType.OPENED, EventType.CLICKED, EventType.COMPLAINED, EventType.UNSUBSCRIBED,
        ),
        Status.SENT,
    ),
}  # fmt: skip
_UTC_MS = pl.Datetime("ms", "UTC")
_NAMESPACE = uuid.UUID("0f1b3a52-5f5e-5d0b-8f57-6a1c9b1f2c33")
_SMTP_REPLY = re.compile(r"5\d\d[ -]")


def export_messages(ledger: Ledger, warehouse: Warehouse, *, now: datetime | None = None) -> int:
    """Copy to `raw.messages` what it lacks; returns the rows added. Safe to repeat, also after a crash.

    Raises:
        WarehouseError, LedgerError: what was copied until then stays copied.
    """
    moment = now or datetime.now(UTC)
    run = ledger.begin_run("export", "raw.messages", "", moment)
    added = 0
    try:
        if not ledger.is_first(run):
            return 0
        while changes := ledger.changes_to_export(BATCH_ROWS):
            frame = pl.DataFrame(changes, infer_schema_length=None)
            added += _copy(warehouse, frame.drop("change_id"))
            _load_refusals(warehouse, changes)
            ledger.mark_exported(frame["change_id"].to_list())
            ledger.heartbeat(run)
            if len(changes) < BATCH_ROWS:
                break
    finally:
        ledger.end_run(run, "finished", moment)
    return added


def _load_refusals(warehouse: Warehouse, changes: list[dict[str, Any]]) -> None:
    """What a provider's refusal tells of an address is an event, like one that comes back later."""
    rows = [
        {
            "event_id": str(uuid.uuid5(_NAMESPACE, f"{change['message_id']} {change['sequence']}")),
            "source": change["provider"], "occurred_at": change["changed_at"], "email": "", "message_id": "",
            **told, "properties": json.dumps(told["properties"]),
        }
        for change in changes
        if change["status"] == Status.REJECTED and (told := _told_by_refusal(change))
    ]  # fmt: skip
    if rows:
        load_events(
            warehouse,
            pl.DataFrame(rows).with_columns(pl.col("occurred_at").cast(pl.Datetime("ms")).cast(_UTC_MS)),
        )


def _told_by_refusal(change: dict[str, Any]) -> dict[str, Any] | None:
    """Type, properties and whom it is about; None if a refusal says nothing of the address.

    A recipient that a mail server refused at once has bounced; HTTP providers of mail tell of theirs by events of their
    own. A number that has opted out or does not exist, and a token of a device that is no more, nobody tells of later.
    """
    reason, reply = change["reason"], change["provider_reply"]
    about: dict[str, Any] = {"reject_reason": reason, "diagnostic": reply}
    if change["channel"] not in ADDRESS_COLUMNS:
        if reason not in (RejectReason.INVALID, RejectReason.BOUNCED) or not _SMTP_REPLY.match(reply):
            return None
        return {
            "type": EventType.BOUNCED.value, "email": change["email"].lower(), "message_id": change["message_id"],
            "properties": {"bounce_class": bounce_class_of(reply), **about, "is_permanent": "true"},
        }  # fmt: skip
    address = json.loads(change["details"] or "{}").get("address")
    if not address:
        return None
    if change["channel"] == "push":
        gone = {"push_token": address, "provider": change["provider"], **about}
        return {"type": "push.unregistered", "properties": gone} if reason == RejectReason.BOUNCED else None
    about |= {"phone": address, "provider": change["provider"], "is_machine": False}
    if reason == RejectReason.UNSUBSCRIBED:
        return {"type": EventType.UNSUBSCRIBED.value, "properties": about}
    if reason == RejectReason.INVALID:
        return {
            "type": EventType.BOUNCED.value, "message_id": change["message_id"],
            "properties": {**about, "bounce_class": "hard"},
        }  # fmt: skip
    return None


def _copy(warehouse: Warehouse, frame: pl.DataFrame) -> int:
    keys = frame.select("message_id", pl.col("sequence").cast(pl.Int64))
    stored = warehouse.frame(
        "select message_id, toInt64(sequence) as sequence from raw.messages "
        "where (message_id, sequence) in (select message_id, sequence from keys)",
        external={"keys": keys},
    )
    frame = frame.with_columns(
        pl.col("sequence").cast(pl.Int64),
        pl.col("changed_at").cast(pl.Int64).cast(pl.Datetime("ms")).cast(_UTC_MS),
    )
    if stored.height:
        frame = frame.join(
            stored.with_columns(pl.col("sequence").cast(pl.Int64)), on=["message_id", "sequence"], how="anti"
        )
    return warehouse.insert("raw.messages", frame.with_columns(pl.col("sequence").cast(pl.UInt32)))


def settle_from_events(ledger: Ledger, warehouse: Warehouse, now: datetime) -> Counter[str]:
    """Settle messages of unknown outcome by the mail events that have come in since; returns how, counted."""
    settled: Counter[str] = Counter()
    unknown = ledger.unknown_message_ids()
    for start in range(0, len(unknown), BATCH_ROWS):
        keys = pl.DataFrame({"message_id": unknown[start : start + BATCH_ROWS]})
        rows = warehouse.frame(
            "select message_id, groupUniqArray(toString(type)) as types from raw.events "
            "where message_id in (select message_id from keys) group by message_id",
            external={"keys": keys},
        )
        outcomes: dict[str, Status] = {}
        for message_id, types in rows.iter_rows():
            statuses = {SETTLED_BY[EventType(name)] for name in types if name in SETTLED_BY}
            # what says most: it was delivered, though it was deferred or queued before
            for status in (Status.SENT, Status.REJECTED, Status.FAILED, Status.QUEUED):
                if status in statuses:
                    outcomes[message_id] = status
                    break
        settled += ledger.settle(outcomes, now, reply="settled by the provider's events")
    return settled
