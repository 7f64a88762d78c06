"""Why somebody got a message, or did not: answered from stored rows, never guessed.

The ledger holds the decision and the provider's answer, `raw.messages` the same for the analyst, `raw.consents` the
proof of consent, `raw.events` what happened since. Rows that were never exported, or have been cleared from the ledger,
are found in the other place.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from campaigns.experiments import assignment_lines
from senders.ledger import Ledger
from senders.message import Reason, Status
from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError

_SKIPPED = {
    Reason.SUPPRESSED: "the address is suppressed (unsubscribed, complained or bounced)",
    Reason.NO_CONSENT: "there is no consent to marketing by {channel}",
    Reason.DELETED: "the contact has been deleted",
    Reason.RESTRICTED: "processing of the contact's data is restricted",
    Reason.INVALID: "the address is not one",
    Reason.HOLDOUT: "the contact is in the group that gets nothing, for comparison",
    Reason.QUIET_HOURS: "it was night where the contact lives",
    Reason.FREQUENCY_CAP: "the contact had got as many messages as the frequency cap allows",
    Reason.LEFT_AUDIENCE: "the contact had left the audience before an interrupted send went on",
}
_MEANING = {
    Status.SENT: "It was sent: the provider accepted it.",
    Status.QUEUED: "It was sent: the provider queued it.",
    Status.INVALID: "It was not sent: the address is not usable.",
    Status.REJECTED: "It was not sent: the provider refused it.",
    Status.FAILED: "It was not sent.",
    Status.UNKNOWN: "Whether it was sent is unknown: the sender died while the provider was called.",
    Status.CLAIMED: "It has not been sent yet: a sender holds it, or was stopped before it.",
    Status.DISPATCHING: "It is being handed to the provider, or the sender died just then.",
}


@dataclass(frozen=True)
class Explanation:
    """All that is stored about one message.

    Attributes:
        message: the newest state: columns of `raw.messages`.
        changes: every status it went through, oldest first: sequence, status, reason, provider_reply, changed_at.
        consent: the row of `raw.consents` of its channel that allowed or forbade it, None if there is none.
        suppression: the event that forbade it, None if none did.
        events: mail events about it, oldest first: type, occurred_at, properties.
        path: for messages of journeys, the moves that led to it and what followed it, oldest first: entered_at,
            previous_step, outcome, cause, step, ending.
        notes: what could not be read, and why.
        assignment: how the contact came to the experiment's variant, as it was settled.
    """

    message_id: str
    message: Mapping[str, Any]
    changes: Sequence[Mapping[str, Any]]
    consent: Mapping[str, Any] | None = None
    suppression: Mapping[str, Any] | None = None
    events: Sequence[Mapping[str, Any]] = ()
    path: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    assignment: Sequence[str] = ()

    @property
    def details(self) -> Mapping[str, Any]:
        """What the decision was based on, as it was stored with it."""
        return self.message["details"]

    @property
    def answer(self) -> str:
        """One sentence: sent or not, and why."""
        status, reason = Status(self.message["status"]), self.message["reason"]
        if status == Status.SKIPPED:
            because = str(_SKIPPED.get(reason, reason)).format(channel=self.message["channel"])
            return f"It was not sent, on purpose: {because}."
        if status == Status.FAILED and reason == Reason.QUIET_HOURS:
            return "It has not been sent yet: it was night where the contact lives, and it waits for the morning."
        because = f" Reason: {reason.replace('_', ' ')}." if reason else ""
        return _MEANING[status] + because

    def lines(self) -> list[str]:
        """The explanation as text, a line a fact."""
        message, details = self.message, self.details
        lines = [
            f"Message {self.message_id} to {self._address} (contact {message['contact_id']})",
            self.answer,
            _fact(
                message["kind"].replace("_", " ").capitalize(),
                f"{message['name']}, version {message['version'] or 'none'}, occurrence {message['occurrence']}",
            ),
        ]
        if message["segment"]:
            lines.append(
                _fact("Segment", f"{message['segment']}, version {message['segment_version'] or 'unknown'}")
            )
        lines.append(
            _fact(
                "Template",
                f"{message['template']}, version {message['template_version']}; {message['category']}",
            )
        )
        if message["subject"]:
            lines.append(_fact("Subject", message["subject"]))
        if message["experiment"] or message["variant"]:
            lines.append(
                _fact(
                    "Experiment", f"{message['experiment'] or 'none'}, variant {message['variant'] or 'none'}"
                )
            )
            lines += [_fact("Assigned", line) for line in self.assignment]
        if details.get("recommendation_version"):
            lines.append(_fact("Recommendations", f"model version {details['recommendation_version']}"))
        lines.append(_fact("Consent", self._consent_text()))
        if self.suppression is not None:
            what = self.suppression
            lines.append(
                _fact("Suppressed by", f"event {what['event_id']}: {what['type']} {_at(what['occurred_at'])}")
            )
        elif details.get("suppression_event_id"):
            lines.append(_fact("Suppressed by", f"event {details['suppression_event_id']}"))
        if cap := details.get("cap"):
            days = cap["seconds"] / 86_400
            lines.append(_fact("Frequency cap", f"{cap['messages']} marketing messages in {days:g} days"))
        for move in self.path:
            lines.append(_fact(_at(move["entered_at"]), move_text(move)))
        for change in self.changes:
            reply = f": {change['provider_reply']}" if change["provider_reply"] else ""
            reason = f" ({change['reason']})" if change["reason"] else ""
            lines.append(
                _fact(
                    _at(change["changed_at"]),
                    f"{change['status']}{reason}, provider {message['provider']}{reply}",
                )
            )
        for event in self.events:
            lines.append(
                _fact(_at(event["occurred_at"]), f"{event['type']}{_event_text(event['properties'])}")
            )
        if not self.events and self.message["status"] in (Status.SENT, Status.QUEUED):
            lines.append(_fact("Since then", "no event has come in"))
        return [*lines, *(f"Note: {note}" for note in self.notes)]

    @property
    def _address(self) -> str:
        """Where it goes; of a device's token the beginning alone."""
        address = str(self.details.get("address") or self.message["email"])
        return f"{address[:16]}... by push" if self.message["channel"] == "push" else address

    def _consent_text(self) -> str:
        if self.consent is not None:
            row = self.consent
            version = f", text version {row['text_version']}" if row["text_version"] else ""
            return (
                f"{'given' if row['is_granted'] else 'withdrawn'} {_at(row['occurred_at'])} through "
                f"{row['source'] or 'an unnamed source'}, basis {row['basis']}{version} (consent {row['consent_id']}"
                f" to {row['purpose']} by {row['channel']})"
            )
        if consent_id := self.details.get("consent_id"):
            return f"consent {consent_id}"
        if self.message["category"] != "marketing":
            return "not needed, transactional"
        if self.message["channel"] == "push" and self.message["reason"] != Reason.NO_CONSENT:
            return "the platform's: it was allowed on the device, and nobody has withdrawn it"
        return "none found"


def why(message_id: str, ledger: Ledger, warehouse: Warehouse) -> Explanation:
    """Explain one message.

    Raises:
        InputError: neither ledger nor warehouse knows the message.
    """
    message_id = message_id.strip().lower()
    notes: list[str] = []
    stored, problem = _warehouse_rows(warehouse, message_id)
    if problem:
        notes.append(problem)
    found = ledger.find(message_id)
    if found is not None:
        message: dict[str, Any] = dict(found.values)
        changes: list[Mapping[str, Any]] = list(found.changes)
        if not problem and len(stored) < len(changes):
            notes.append(f"{len(changes) - len(stored)} changes are not in the warehouse yet.")
    elif stored:
        message = dict(stored[-1])
        changes = stored
        notes.append("The ledger no longer has this message; this is what the warehouse keeps.")
    else:
        raise _unknown(message_id, problem)
    details = message["details"]
    consent = suppression = None
    events: list[dict[str, Any]] = []
    path: list[dict[str, Any]] = []
    assignment: list[str] = []
    if not problem:
        if message["kind"] == "journey":
            path = journey_path(
                warehouse, str(message["name"]).partition(".")[0], message["contact_id"],
                int(str(message["occurrence"]).partition(".")[0]),
            )  # fmt: skip
        if message["experiment"]:
            assignment = assignment_lines(
                warehouse,
                message["experiment"],
                message["variant"],
                message["occurrence"],
                message["contact_id"],
            )
        if details.get("consent_id"):
            consent = _one(warehouse, _CONSENT, details["consent_id"])
        if details.get("suppression_event_id"):
            suppression = _one(warehouse, _SUPPRESSION, details["suppression_event_id"])
        events = warehouse.frame(_EVENTS, {"id": message_id}).to_dicts()
        for event in events:
            event["properties"] = json.loads(event["properties"] or "{}")
    return Explanation(message_id, message, changes, consent, suppression, events, path, notes, assignment)


def journey_path(
    warehouse: Warehouse, journey: str, contact_id: int, entry: int | None = None
) -> list[dict[str, Any]]:
    """The moves of one contact in a journey, oldest first, in one stay or in all; none if journeys never ran."""
    if not warehouse.value(
        "select count() from system.tables where database = 'campaigns' and name = 'journey_steps'"
    ):
        return []
    only = "" if entry is None else "and entry = {entry:UInt32}"
    return warehouse.frame(
        f"""
        select entry, toString(version) as version, toString(previous_step) as previous_step,
            toString(outcome) as outcome, cause, toString(step) as step, toString(ending) as ending, entered_at, due_at
        from campaigns.journey_steps
        where journey = {{journey:String}} and contact_id = {{contact_id:Int64}} {only}
        order by sequence limit 1 by sequence
        """,  # noqa: S608
        {"journey": journey, "contact_id": contact_id, **({} if entry is None else {"entry": entry})},
    ).to_dicts()


def move_text(move: Mapping[str, Any]) -> str:
    """One move of a journey as a line."""
    where = f"to {move['step']}" if move["step"] else f"out of the journey ({move['ending']})"
    start = f"{move['previous_step']}: {move['outcome']}" if move["previous_step"] else str(move["outcome"])
    cause = f" ({move['cause']})" if move["cause"] else ""
    return f"{start}{cause}, {where}"


def _warehouse_rows(warehouse: Warehouse, message_id: str) -> tuple[list[Mapping[str, Any]], str]:
    try:
        rows = warehouse.frame(_MESSAGES, {"id": message_id}).to_dicts()
    except WarehouseError as error:
        return [], f"The warehouse could not be asked, so events and consent are missing: {error.message}"
    for row in rows:
        row["details"] = json.loads(row["details"] or "{}")
    return list(rows), ""


def _one(warehouse: Warehouse, sql: str, key: str) -> dict[str, Any] | None:
    rows = warehouse.frame(sql, {"id": key}).to_dicts()
    return rows[0] if rows else None


def _unknown(message_id: str, problem: str) -> InputError:
    try:
        uuid.UUID(message_id)
    except ValueError:
        return InputError(
            f"{message_id!r} is no message id.",
            fix="It looks like 0b6f0c5e-7a0e-5b0e-8a53-2d6a3c1c7d10: the part before @ of the Message-ID header.",
        )
    return InputError(
        f"No message {message_id} is known{', and the warehouse does not answer' if problem else ''}.",
        fix="Copy the id from the Message-ID header, or find it in marts.messages by the contact's email.",
    )


def _fact(label: str, text: str) -> str:
    return f"  {label + ':':<24}{text}"


def _at(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _event_text(properties: Mapping[str, Any]) -> str:
    parts = [
        str(properties[name]) for name in ("url", "bounce_class", "reject_reason") if properties.get(name)
    ]
    if properties.get("is_machine"):
        parts.append("by a machine, not a person")
    return f": {', '.join(parts)}" if parts else ""


_MESSAGES = """
    select message_id, sequence, toString(status) as status, toString(reason) as reason, toString(kind) as kind,
        toString(name) as name, version, occurrence, contact_id, email, toString(channel) as channel,
        toString(provider) as provider, toString(category) as category, toString(template) as template,
        template_version, toString(segment) as segment, segment_version, toString(experiment) as experiment,
        toString(variant) as variant, subject, provider_message_id, provider_reply, changed_at,
        toJSONString(details) as details
    from raw.messages where message_id = {id:String} order by sequence limit 1 by sequence
"""
_CONSENT = """
    select consent_id, toString(source) as source, is_granted, toString(basis) as basis, text_version, occurred_at,
        toString(purpose) as purpose, toString(channel) as channel
    from raw.consents where consent_id = {id:String} limit 1
"""
_SUPPRESSION = """
    select event_id, toString(type) as type, occurred_at from raw.events where event_id = {id:String} limit 1
"""
_EVENTS = """
    select event_id, toString(type) as type, occurred_at, toJSONString(properties) as properties
    from raw.events where message_id = {id:String} order by occurred_at, event_id limit 1 by event_id
"""
