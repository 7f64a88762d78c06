"""Triggers in real time: a micro-batch of events is judged at once, and what it fires is done on other threads.

`TriggerHandler` is a `BatchHandler` of the gateway's consumer: it judges all triggers, and writes what is to be done
into the ledger before it returns; `keep` writes events into `live.events` and decisions into the warehouse, behind it.
So a batch that comes again after a crash does nothing twice. Doing it is the business of lanes: a thread for each
provider, and one for all that is no message, each with a bounded queue. A provider that is slow or away holds up its
own lane alone; what finds no room waits in the ledger. What is due at once goes to its lane with the state that was
judged, so that acting asks the warehouse nothing. What became of it is written down by a thread of its own, first in
`campaigns.trigger_decisions`, then in the ledger: a crash in between does it again, which sends nothing twice.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx
import polars as pl

from campaigns import journey_requests
from campaigns.audience import Recipients
from campaigns.consents import consents_of
from campaigns.deciding import Decided, Decider, Decision, DecisionLog, decision_rows, firing_rows
from campaigns.live import MOVING_TYPES, SENT, SENT_COLUMNS, Ahead, Live, Needs
from campaigns.permissions import CHANNELS, PURPOSE, refusal
from campaigns.recent import NEWS_SECONDS
from campaigns.resolving import MESSAGE_COLUMNS, keyed_frame
from campaigns.specs import SendSpec
from campaigns.triggers import TriggerSpec, load_trigger, record_triggers
from senders.event_context import EVENT_COLUMN, event_text
from senders.firings import KIND, Firing, Firings
from senders.ledger import Ledger, Run
from senders.loopback import is_loopback
from senders.message import Reason, Status
from senders.pipeline import SendPlan
from senders.realtime import Parcel, RealtimeSender, Sent
from senders.rendering import PROFILE_COLUMNS, TemplateLibrary
from senders.retries import LONGEST_RETRY, is_retryable, parse_retry_after
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import InputError, MailhouseError, SettingsError
from warehouse.loads import load_events

_log = logging.getLogger("mailhouse.triggers")

QUEUE = 2_000
"""Firings that a lane holds at most; the others wait in the ledger."""
WINDOW = 1_000
"""Firings that a lane judges together at most."""
FIRST_RETRY = timedelta(seconds=30)
MOST_TRIES = 8
"""Tries of one firing, as of one message in the ledger."""
_ACTIONS_LANE = ""
_RECOVER_SECONDS, _CLEAR_SECONDS, _RELOAD_SECONDS = 30.0, 3600.0, 5.0
_CALL_SECONDS = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0
_LOOK_AROUND = 0.1  # seconds between looks whether something is to be asked in the background
_SCRIBE_PACE = 1.0  # seconds between two writings of what became of firings: each is a part and a commit
_ALWAYS = ("email", "is_deleted")  # columns of a profile that every firing needs
_FIRES = frozenset(("fired", "unknown", "failed"))  # outcomes that a cooldown counts
_SKIPPED = frozenset(
    ("no_consent", "suppressed", "invalid", "deleted", "restricted", "frequency_cap", "quiet_hours")
)

JourneyMoves = Callable[[Warehouse, pl.DataFrame], int]
"""`campaigns.journey_requests.request_moves`."""


def retry_wait(tries: int, retry_after: float | None = None) -> timedelta:
    """How long what was put off waits: 30 seconds, two minutes, eight ... four hours; what was asked for is a floor."""
    return max(min(FIRST_RETRY * 4 ** min(tries, 8), LONGEST_RETRY), timedelta(seconds=retry_after or 0.0))


def _always(spec: TriggerSpec) -> tuple[str, ...]:
    """Columns of a profile that a trigger needs whatever it does."""
    return (*_ALWAYS, "timezone") if spec.quiet_hours else _ALWAYS


def plan_of(spec: TriggerSpec) -> SendPlan:
    """What a trigger sends."""
    send = spec.send
    assert send is not None
    return SendPlan.of(
        send, spec.cap, kind=KIND, name=spec.name, version=spec.version, occurrence="",
        place=spec.place("send", "subject"),
    )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a firing.

    Attributes:
        outcome: one of `campaigns.deciding.OUTCOMES`.
        again_at: when it is looked at again; None if it is done.
    """

    outcome: str
    reason: str = ""
    again_at: datetime | None = None
    is_try: bool = False


@dataclass(frozen=True)
class Handed:
    """What is known of a firing that is due at once.

    Attributes:
        state: of its contact, as `TriggerHandler.people` returns it.
        since: on the monotonic clock, since when it may have changed unnoticed.
        received_at: of the event.
    """

    state: Mapping[str, Any]
    since: float
    received_at: datetime | None = None


@dataclass
class _Settled:
    """What became of firings, to be written down."""

    decisions: list[Decision]
    done: dict[int, str]
    unfired: set[int]
    again: list[tuple[dict[int, datetime], str, bool]]
    now: datetime


_Entry = tuple[Firing, TriggerSpec, Mapping[str, Any]]


class Performer:
    """Does what is due: judges `unless`, quiet hours, consent and cooldown, then acts. Used by one thread at a time."""

    def __init__(self, engine: TriggerHandler, lane: str) -> None:
        self.engine, self.lane = engine, lane
        self.sender: RealtimeSender | None = None
        self.templates: TemplateLibrary | None = None
        self._loaded = -1
        self._bounced: dict[str, tuple[float, bool]] = {}
        #: columns of a profile that triggers need, by name and version; None for all
        self.columns: dict[tuple[str, str], frozenset[str] | None] = {}
        # what a state must have so that they need ask nothing; None: they always ask
        self._wanted: dict[tuple[str, str], Set[str] | None] = {}
        self._wanted_of: object = None
        self._plans: dict[tuple[str, str], SendPlan] = {}

    def warm_up(self) -> bool:
        """Compile what the lane's triggers send, before the first is due; False if it is too early for that."""
        if not self.engine.live.columns():
            return False
        for spec in list(self.engine.decider.specs.values()):
            if spec.send is not None and self.engine.lane_of(spec) == self.lane:
                # what is wrong is said when it is due
                with contextlib.suppress(MailhouseError):
                    self.columns_of(spec)
        return True

    def columns_of(self, spec: TriggerSpec) -> frozenset[str] | None:
        """Columns of profiles that a trigger needs when it acts; None for all.

        Raises:
            MailhouseError: it cannot be sent.
        """
        key = (spec.name, spec.version)
        if spec.send is None:
            self.columns[key] = frozenset()
            return self.columns[key]
        templates = self._templates()
        if key not in self.columns:
            self.columns[key] = self._sender().columns(self._plan(spec), templates)
        return self.columns[key]

    def _plan(self, spec: TriggerSpec) -> SendPlan:
        """`plan_of`, once a version; ask for templates before, which forgets what has changed."""
        key = (spec.name, spec.version)
        if key not in self._plans:
            self._plans[key] = plan_of(spec)
        return self._plans[key]

    def _columns(self, specs: Iterable[TriggerSpec]) -> frozenset[str] | None:
        """Columns of profiles that triggers need when they act; None for all."""
        needed: set[str] = set()
        for spec in {spec.name: spec for spec in specs}.values():
            try:
                columns = self.columns_of(spec)
            except MailhouseError:
                continue
            if columns is None:
                return None
            needed |= columns
        return frozenset(needed)

    def close(self) -> None:
        """Give connections back."""
        if self.sender is not None:
            self.sender.close()

    def perform(self, firings: Sequence[Firing], handed: Mapping[int, Handed] | None = None) -> None:
        """Do firings that this run has taken; each ends done, or waits again.

        Args:
            handed: what is known of them, by row id.
        """
        engine = self.engine
        handed = handed or {}
        now = engine.clock()
        try:
            outcomes, values = self._outcomes(firings, handed, now)
        except MailhouseError as error:
            names = {one.name for one in firings}
            if len(names) > 1:
                # what is wrong with one trigger holds up no other
                for name in sorted(names):
                    self.perform([one for one in firings if one.name == name], handed)
                return
            _log.error("triggers could not be judged when due: %s", error.message)
            outcomes = {
                one.row_id: Outcome("put_off", error.message, now + retry_wait(one.tries), is_try=True)
                for one in firings
            }
            values = {}
        except Exception:  # noqa: BLE001  (a lane that dies would hold up its provider for ever)
            _log.exception("a defect in the lane %r of triggers", self.lane)
            outcomes = {
                one.row_id: Outcome(
                    "put_off", "a defect of Mailhouse", now + retry_wait(one.tries), is_try=True
                )
                for one in firings
            }
            values = {}
        self._settle(firings, outcomes, values, engine.clock())

    def _outcomes(
        self, firings: Sequence[Firing], handed: Mapping[int, Handed], now: datetime
    ) -> tuple[dict[int, Outcome], dict[int, dict[str, Any]]]:
        engine = self.engine
        specs = {one.row_id: engine.decider.specs.get(one.name) for one in firings}
        outcomes: dict[int, Outcome] = {
            row_id: Outcome("failed", "the trigger is no more")
            for row_id, spec in specs.items()
            if spec is None
        }
        values: dict[int, dict[str, Any]] = {}
        for one in firings:
            if one.tries >= MOST_TRIES and one.row_id not in outcomes:
                outcomes[one.row_id] = Outcome("failed", f"it was put off {one.tries} times")
        left = [one for one in firings if one.row_id not in outcomes]
        people = self._people(left, handed, now)
        asked = [one for one in left if one.row_id in people and one.row_id not in handed]
        called_off = engine.called_off(asked, [people[one.row_id] for one in asked], now) if asked else {}
        off = {asked[place].row_id: reason for place, reason in called_off.items()}
        for one in asked:
            known = people[one.row_id]
            people[one.row_id] = {name: known[name] for name in known if not name.startswith("unless ")}
        ready: list[_Entry] = []
        for one in left:
            spec, person = specs[one.row_id], people[one.row_id]
            assert spec is not None
            values[one.row_id] = {
                name: person[name] for name in ("is_suppressed", "has_marketing_consent", "consent_id")
            }
            if one.row_id in off:
                outcomes[one.row_id] = Outcome("unless", off[one.row_id])
            elif person.get("is_deleted"):
                outcomes[one.row_id] = Outcome("deleted")
            elif spec.send is None and person.get("restriction"):
                # messages say so in the ledger
                outcomes[one.row_id] = Outcome("restricted")
            elif spec.quiet_hours and (until := spec.quiet_hours.quiet_until(now, person.get("timezone"))):
                again = until if spec.quiet_hours.then == "wait" else None
                outcomes[one.row_id] = Outcome("quiet_hours", f"until {until:%Y-%m-%d %H:%M} UTC", again)
            else:
                ready.append((one, spec, person))
        if ready:
            done = self._acted(ready, now)
            outcomes |= done
            for one, _, _ in ready:
                if done[one.row_id].outcome == "fired" and one.row_id in handed:
                    engine.measure(handed[one.row_id])
        return outcomes, values

    def _people(
        self, firings: Sequence[Firing], handed: Mapping[int, Handed], now: datetime
    ) -> dict[int, Mapping[str, Any]]:
        """The state of each firing's contact: what was handed over if it is young enough, else as it is now."""
        engine = self.engine
        young = max(time.monotonic() - NEWS_SECONDS, engine.live.changed_at)
        people: dict[int, Mapping[str, Any]] = {}
        left: list[Firing] = []
        for one in firings:
            known = handed.get(one.row_id)
            if known is not None and known.since >= young and self._suffices(one, known.state):
                people[one.row_id] = known.state
            else:
                left.append(one)
        if left:
            columns = self._columns(engine.decider.specs[one.name] for one in left)
            found = engine.people(left, now, columns)
            people |= {one.row_id: person for one, person in zip(left, found, strict=True)}
        return people

    def _suffices(self, firing: Firing, state: Mapping[str, Any]) -> bool:
        """Whether a state has what the trigger, which may have changed meanwhile, needs."""
        spec = self.engine.decider.specs[firing.name]
        readable = self.engine.live.columns()
        if self._wanted_of is not readable:
            self._wanted_of, self._wanted = readable, {}
        key = (spec.name, spec.version)
        if key not in self._wanted:
            wanted = None
            if not (spec.unless_events or spec.unless_conditions):
                columns = self._columns([spec])
                wanted = readable.keys() if columns is None else readable.keys() & {*columns, *_always(spec)}
            self._wanted[key] = wanted
        wanted = self._wanted[key]
        return wanted is not None and wanted <= state.keys()

    def _acted(self, ready: Sequence[_Entry], now: datetime) -> dict[int, Outcome]:
        """Judge cooldowns and act: all messages together, everything else by trigger."""
        engine = self.engine
        sends = [entry for entry in ready if entry[1].send is not None]
        outcomes, parcels = self._parcels(sends, now) if sends else ({}, {})
        templates = self._templates() if parcels else None
        sent: list[tuple[list[_Entry], Parcel]] = []
        with engine.ledger.transaction():
            blocked = engine.firings.reserve(
                engine.run,
                [one for one, _, _ in ready],
                {spec.name: spec.cooldown for _, spec, _ in ready},
                now,
            )
            for name, parcel in parcels.items():
                entries = [entry for entry in sends if entry[0].name == name]
                kept = [at for at, (one, _, _) in enumerate(entries) if one.row_id not in blocked]
                if kept:
                    part = Parcel(
                        parcel.plan,
                        [parcel.people[at] for at in kept],
                        [parcel.occurrences[at] for at in kept],
                        [parcel.details[at] for at in kept],
                    )
                    sent.append(([entries[at] for at in kept], part))
            opened = (
                self._sender().claim(templates, [parcel for _, parcel in sent])
                if sent and templates is not None
                else []
            )
        if opened:
            answers = self._sender().deliver(opened, stop=engine.stop)
            for (entries, _), mine in zip(sent, answers, strict=True):
                for (one, _, _), answer in zip(entries, mine, strict=True):
                    outcomes[one.row_id] = _sent_outcome(answer, one, now)
        outcomes |= {
            row_id: Outcome("cooldown", f"it fired {moment:%Y-%m-%d %H:%M:%S} UTC")
            for row_id, moment in blocked.items()
        }
        by_trigger: dict[str, list[_Entry]] = {}
        for entry in ready:
            if entry[0].row_id not in outcomes:
                by_trigger.setdefault(entry[0].name, []).append(entry)
        for entries in by_trigger.values():
            spec = entries[0][1]
            act = getattr(self, f"_do_{spec.action}")
            try:
                outcomes |= act(spec, [(one, person) for one, _, person in entries], now)
            except MailhouseError as error:
                outcomes |= self._put_off(spec, entries, error, now)
        came_to_nothing = [
            one.row_id
            for one, _, _ in ready
            if one.row_id not in blocked
            and outcomes[one.row_id].again_at is None
            and outcomes[one.row_id].outcome not in _FIRES
        ]
        if came_to_nothing:
            # at once: the next firing may be judged before this one is written down
            engine.firings.let_go(engine.run, came_to_nothing)
        return outcomes

    @staticmethod
    def _put_off(
        spec: TriggerSpec, entries: Sequence[_Entry], error: MailhouseError, now: datetime
    ) -> dict[int, Outcome]:
        _log.error("trigger %s: %s", spec.name, error.message)
        return {
            one.row_id: Outcome("put_off", error.message, now + retry_wait(one.tries), is_try=True)
            for one, _, _ in entries
        }

    def _parcels(
        self, sends: Sequence[_Entry], now: datetime
    ) -> tuple[dict[int, Outcome], dict[str, Parcel]]:
        """What is to be sent, by trigger, and what is wrong with the rest."""
        engine = self.engine
        outcomes: dict[int, Outcome] = {}
        parcels: dict[str, Parcel] = {}
        by_trigger: dict[str, list[_Entry]] = {}
        for entry in sends:
            by_trigger.setdefault(entry[0].name, []).append(entry)
        for name, entries in by_trigger.items():
            spec = entries[0][1]
            send = spec.send
            assert send is not None
            try:
                sender = self._sender()
                if sender.breaker.is_open:
                    again = now + timedelta(seconds=sender.breaker.wait)
                    outcomes |= {
                        one.row_id: Outcome("put_off", "the provider is away", again) for one, _, _ in entries
                    }
                    continue
                templates = self._templates()
                plan = self._plan(spec)
                columns = sender.columns(plan, templates)
                items = (
                    engine.recommended({one.contact_id for one, _, _ in entries}, send.recommendations)
                    if send.recommendations
                    else {}
                )
                if not CHANNELS[send.channel].is_mail:
                    judged = self._judged_by_warehouse(send, entries)
                elif send.purpose not in (None, PURPOSE):
                    judged = self._consenting(send, entries)
                else:
                    judged = entries
            except MailhouseError as error:
                outcomes |= self._put_off(spec, entries, error, now)
                continue
            people: list[dict[str, Any]] = []
            details: list[dict[str, object]] = []
            for one, _, person in judged:
                row = dict(person)
                if "skip_reason" not in row:
                    row["skip_reason"] = self._skip_reason(send, person)
                if columns is None or EVENT_COLUMN in columns:
                    row[EVENT_COLUMN] = event_text(one.event)
                if items:
                    row["recommendations"] = items.get(one.contact_id)
                people.append(row)
                details.append(
                    {
                        "consent_id": person["consent_id"], "suppression_event_id": person["suppression_event_id"],
                        "trigger_event": {"event_id": one.event_id, "type": one.event["type"]},
                    }
                )  # fmt: skip
            parcels[name] = Parcel(plan, people, [one.event_id for one, _, _ in entries], details)
        return outcomes, parcels

    def _settle(
        self,
        firings: Sequence[Firing],
        outcomes: Mapping[int, Outcome],
        values: Mapping[int, Mapping[str, Any]],
        now: datetime,
    ) -> None:
        decisions = [
            Decision(
                one.name, one.version, one.contact_id, one.event_id, one.event["type"],
                outcomes[one.row_id].outcome, now, outcomes[one.row_id].reason, values.get(one.row_id, {}),
                outcomes[one.row_id].again_at, one.firing_id,
            )
            for one in firings
        ]  # fmt: skip
        done = {row_id: one.outcome for row_id, one in outcomes.items() if one.again_at is None}
        unfired = {row_id for row_id, outcome in done.items() if outcome not in _FIRES}
        again: list[tuple[dict[int, datetime], str, bool]] = []
        for is_try in (True, False):
            later = {
                row_id: one.again_at
                for row_id, one in outcomes.items()
                if one.again_at is not None and one.is_try == is_try
            }
            if later:
                reason = next(one.outcome for one in outcomes.values() if one.again_at is not None)
                again.append((later, reason, is_try))
        self.engine.settle(_Settled(decisions, done, unfired, again, now))

    # what is done

    def _judged_by_warehouse(self, send: SendSpec, entries: Sequence[_Entry]) -> list[_Entry]:
        """Consent and stops of channels that live state does not follow, as campaigns read them."""
        recipients = Recipients(self.engine.warehouse, send, clock=self.engine.clock)
        rows = recipients.judge({one.contact_id for one, _, _ in entries})
        found = {row["contact_id"]: row for row in rows.to_dicts()}
        kept = ("skip_reason", "consent_id", "suppression_event_id")
        judged: list[_Entry] = []
        for one, spec, person in entries:
            said = {name: found[one.contact_id][name] for name in kept}
            if not person["is_known"]:
                # whom marts do not have yet has no address of this channel
                said["skip_reason"] = Reason.INVALID
            judged.append((one, spec, {**person, **said}))
        return judged

    def _consenting(self, send: SendSpec, entries: Sequence[_Entry]) -> list[_Entry]:
        """Consent to another purpose than live state follows, as campaigns read it; stops as live state has them."""
        consents = consents_of(
            self.engine.warehouse, send.channel, send.purpose, {one.contact_id for one, _, _ in entries}
        )
        judged: list[_Entry] = []
        for one, spec, person in entries:
            consent_id, is_granted = consents.get(one.contact_id, ("", False))
            said = {CHANNELS[send.channel].consented: is_granted, "consent_id": consent_id}
            judged.append((one, spec, {**person, **said}))
        return judged

    def _skip_reason(self, send: SendSpec, person: Mapping[str, Any]) -> str:
        return refusal(
            send.channel,
            send.category,
            person,
            # an operational message may go to somebody who unsubscribed, never to a mailbox that does not exist
            lambda: (
                person["is_live_bounced"] or (person["is_suppressed"] and self._is_bounced(person["email"]))
            ),
        )

    def _is_bounced(self, email: str) -> bool:
        known = self._bounced.get(email)
        if known is None or time.monotonic() - known[0] > 600:
            found = self.engine.warehouse.value(
                "select count() from marts.suppressions where email = lower(trim({email:String})) and is_bounced",
                {"email": email},
            )
            if len(self._bounced) > 10_000:
                self._bounced.clear()
            known = self._bounced[email] = (time.monotonic(), bool(found))
        return known[1]

    def _sender(self) -> RealtimeSender:
        if self.sender is None:
            engine = self.engine
            self.sender = RealtimeSender(
                engine.settings, engine.ledger, engine.run, self.lane, clock=engine.clock
            )
            self.sender.recover()
        return self.sender

    def _templates(self) -> TemplateLibrary:
        if self.templates is None or self._loaded != self.engine.loads:
            settings = self.engine.settings
            columns = self.engine.live.columns() or PROFILE_COLUMNS
            self.templates = TemplateLibrary.load(
                settings.content_dir / "templates", columns, assets_url=settings.assets_url
            )
            self._loaded = self.engine.loads
            self.columns, self._wanted, self._plans = {}, {}, {}
            if self.sender is not None:
                self.sender.forget()
        return self.templates

    def _do_enter_journey(
        self, spec: TriggerSpec, entries: Sequence[tuple[Firing, Mapping[str, Any]]], now: datetime
    ) -> dict[int, Outcome]:
        return self._move(spec.enter_journey or "", "enter", spec, entries, now)

    def _do_leave_journey(
        self, spec: TriggerSpec, entries: Sequence[tuple[Firing, Mapping[str, Any]]], now: datetime
    ) -> dict[int, Outcome]:
        return self._move(spec.leave_journey or "", "leave", spec, entries, now)

    def _move(
        self,
        journey: str,
        action: str,
        spec: TriggerSpec,
        entries: Sequence[tuple[Firing, Mapping[str, Any]]],
        now: datetime,
    ) -> dict[int, Outcome]:
        frame = pl.DataFrame(
            {
                "request_id": [one.firing_id for one, _ in entries],
                "journey": journey,
                "contact_id": [one.contact_id for one, _ in entries],
                "action": action,
                "cause": [f"trigger {spec.name}, event {one.event_id}" for one, _ in entries],
                "requested_at": now,
            },
            schema_overrides={"contact_id": pl.Int64},
        ).with_columns(pl.col("requested_at").cast(pl.Datetime("ms", "UTC")))
        self.engine.request_moves(self.engine.warehouse, frame)
        return {one.row_id: Outcome("fired", f"{action} journey {journey}") for one, _ in entries}

    def _do_tag(
        self, spec: TriggerSpec, entries: Sequence[tuple[Firing, Mapping[str, Any]]], now: datetime
    ) -> dict[int, Outcome]:
        tag = spec.tag
        assert tag is not None
        # a tag hangs on an address: without one there is nothing that int_lists__identified could find
        tagged = [(one, person) for one, person in entries if person["email"]]
        if tagged:
            self.engine.warehouse.insert(
                "raw.list_members",
                pl.DataFrame(
                    {
                        "list": tag.add or tag.remove,
                        "source": "tag",
                        "email": [person["email"] for _, person in tagged],
                        "external_id": "",
                        "is_member": tag.add is not None,
                        "changed_at": [one.fired_at or now for one, _ in tagged],
                    }
                ).with_columns(pl.col("changed_at").cast(pl.Datetime("ms", "UTC"))),
            )
        word = f"{'put on' if tag.add else 'taken off'} {tag.add or tag.remove}"
        return {
            one.row_id: Outcome("fired", word) if person["email"] else Outcome("invalid")
            for one, person in entries
        }

    def _do_crm_task(
        self, spec: TriggerSpec, entries: Sequence[tuple[Firing, Mapping[str, Any]]], now: datetime
    ) -> dict[int, Outcome]:
        task = spec.crm_task
        assert task is not None
        load_events(
            self.engine.warehouse,
            pl.DataFrame(
                [
                    {
                        "event_id": f"crm.task_requested:{one.firing_id}",
                        "type": "crm.task_requested",
                        "source": "trigger",
                        "email": person["email"] or "",
                        "occurred_at": now,
                        "properties": json.dumps(
                            {
                                "contact_id": one.contact_id, "subject": task.subject, "note": task.note,
                                "owner": task.owner or "",
                                "due_at": (now + task.due_in).isoformat() if task.due_in else None,
                                "trigger": spec.name, "event_id": one.event_id,
                            }
                        ),
                    }
                    for one, person in entries
                ],
                schema_overrides={"occurred_at": pl.Datetime("ms", "UTC")},
            ),
            run_id="triggers",
        )  # fmt: skip
        return {one.row_id: Outcome("fired", f"task {task.subject!r}") for one, _ in entries}

    def _do_webhook(
        self, spec: TriggerSpec, entries: Sequence[tuple[Firing, Mapping[str, Any]]], now: datetime
    ) -> dict[int, Outcome]:
        assert spec.webhook is not None
        settings = self.engine.settings
        url, key = webhook_address(spec, settings), webhook_key(settings)
        outcomes: dict[int, Outcome] = {}
        with httpx.Client(timeout=_CALL_SECONDS, follow_redirects=False) as client:
            for place, (one, person) in enumerate(entries):
                outcome = self._call(client, url, key, spec, one, person, now)
                outcomes[one.row_id] = outcome
                if outcome.outcome == "put_off" and "does not answer" in outcome.reason:
                    # it is away: the others need not wait for it, too
                    outcomes |= {
                        other.row_id: Outcome(
                            "put_off", outcome.reason, now + retry_wait(other.tries), is_try=True
                        )
                        for other, _ in entries[place + 1 :]
                    }
                    break
        return outcomes

    @staticmethod
    def _call(
        client: httpx.Client, url: str, key: bytes, spec: TriggerSpec, one: Firing, person: Mapping[str, Any],
        now: datetime,
    ) -> Outcome:  # fmt: skip
        body = json.dumps(
            {
                "type": "trigger.fired",
                "timestamp": now.isoformat(),
                "data": {
                    "firing_id": one.firing_id, "trigger": spec.name, "version": spec.version,
                    "contact_id": one.contact_id, "email": person["email"],
                    "event": {
                        "event_id": one.event_id, "type": one.event["type"],
                        "occurred_at": one.event["occurred_at"],
                        "properties": json.loads(one.event.get("properties") or "{}"),
                    },
                },
            }
        ).encode()  # fmt: skip
        stamp = str(int(time.time()))
        signature = hmac.new(key, f"{one.firing_id}.{stamp}.".encode() + body, "sha256").digest()
        headers = {
            "content-type": "application/json", "webhook-id": one.firing_id, "webhook-timestamp": stamp,
            "webhook-signature": "v1," + base64.b64encode(signature).decode(),
        }  # fmt: skip
        again = now + retry_wait(one.tries)
        try:
            response = client.post(url, content=body, headers=headers)
        except httpx.HTTPError as error:
            # calling again is safe: webhook-id says that it is the same
            return Outcome(
                "put_off", f"{urlsplit(url).hostname} does not answer: {type(error).__name__}", again, True
            )
        if response.is_success:
            return Outcome("fired", f"{urlsplit(url).hostname} answered {response.status_code}")
        if is_retryable(response.status_code) or response.status_code >= 500:
            after = parse_retry_after(response.headers.get("retry-after", ""))
            return Outcome(
                "put_off", f"{urlsplit(url).hostname} answered {response.status_code}",
                now + retry_wait(one.tries, after), True,
            )  # fmt: skip
        return Outcome("failed", f"{urlsplit(url).hostname} answered {response.status_code}")


def webhook_address(spec: TriggerSpec, settings: SenderSettings) -> str:
    """Where a trigger's webhook goes.

    Raises:
        SettingsError: nowhere, or not by https.
    """
    assert spec.webhook is not None
    url = spec.webhook.url or settings.webhook_url
    parts = urlsplit(url)
    if not parts.hostname or (parts.scheme != "https" and not is_loopback(parts.hostname)):
        raise SettingsError(
            f"{spec.place('webhook')}: trigger {spec.name} calls {url or 'no address'}, which is no https address.",
            fix="Write webhook.url, or set MAILHOUSE_WEBHOOK_URL; http is for this machine only.",
        )
    return url


def webhook_key(settings: SenderSettings) -> bytes:
    """The key that signs webhooks, as the provider `webhook` reads it.

    Raises:
        SettingsError: there is none.
    """
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
    with contextlib.suppress(ValueError):
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        if len(key) >= 16:
            return key
    raise SettingsError(
        "Triggers sign their webhooks, and MAILHOUSE_WEBHOOK_SECRET is no secret of 16 bytes or more in base64.",
        fix="Set MAILHOUSE_WEBHOOK_SECRET; docs/providers.md tells how to make one.",
    )


def _sent_outcome(answer: Sent, firing: Firing, now: datetime) -> Outcome:
    if answer.is_put_off:
        if answer.reason == Reason.WARM_UP:
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            return Outcome("put_off", "the warm-up's limit of the day was reached", midnight)
        again = now + retry_wait(firing.tries, answer.retry_after)
        return Outcome("put_off", "the provider put it off", again, is_try=True)
    if answer.status in (Status.SENT, Status.QUEUED):
        return Outcome("fired", f"message {answer.message_id}")
    if answer.status == Status.SKIPPED:
        return Outcome(answer.reason if answer.reason in _SKIPPED else "failed", answer.reason)
    if answer.status in (Status.CLAIMED, Status.DISPATCHING):
        # another run holds it: it is looked at again when that run is done, or dead
        return Outcome("put_off", f"message {answer.message_id} is {answer.status}", now + FIRST_RETRY)
    words = {Status.UNKNOWN.value: "unknown", Status.INVALID.value: "invalid"}
    outcome = words.get(str(answer.status), "failed")
    return Outcome(outcome, f"message {answer.message_id}: {answer.status} {answer.reason}".rstrip())


class _Lane(threading.Thread):
    """One thread that does firings, oldest first."""

    def __init__(self, engine: TriggerHandler, name: str) -> None:
        super().__init__(name=f"triggers {name or 'actions'}", daemon=True)
        self.engine = engine
        self.performer = Performer(engine, name)
        self._warm = -1
        self._waiting: deque[tuple[Firing, Handed | None]] = deque()
        self._change = threading.Condition()

    @property
    def room(self) -> int:
        return QUEUE - len(self._waiting)

    def give(self, entries: Iterable[tuple[Firing, Handed | None]]) -> None:
        """Let firings wait here, no more than there is room for."""
        with self._change:
            self._waiting.extend(entries)
            self._change.notify()

    def _next(self, seconds: float) -> list[tuple[Firing, Handed | None]]:
        """What waits, as much as is judged together; nothing if nothing comes for so long."""
        with self._change:
            if not self._waiting:
                self._change.wait(seconds)
            return [self._waiting.popleft() for _ in range(min(WINDOW, len(self._waiting)))]

    def run(self) -> None:
        while not self.engine.stop.is_set():
            if self._warm != self.engine.loads:
                loads = self.engine.loads
                with contextlib.suppress(MailhouseError):
                    self._warm = loads if self.performer.warm_up() else self._warm
            entries = self._next(0.2)
            if not entries:
                continue
            firings = [one for one, _ in entries]
            handed = {one.row_id: known for one, known in entries if known is not None}
            try:
                self.performer.perform(firings, handed)
            except MailhouseError as error:
                # the ledger does not answer: what it holds is taken up again when this run is found dead, or by recover
                _log.error("firings could not be recorded: %s", error.message)
                self.engine.abandoned(firings)
        self.performer.close()


class _Scribe(threading.Thread):
    """Writes down what became of firings, for all lanes: they need not wait for the warehouse."""

    def __init__(self, engine: TriggerHandler) -> None:
        super().__init__(name="triggers scribe", daemon=True)
        self.engine = engine
        self.queue: queue.Queue[_Settled | None] = queue.Queue()

    def run(self) -> None:
        wait = _FIRST_WAIT
        items: list[_Settled] = []
        is_over = False
        not_before = 0.0
        while True:
            if not items:
                first = self.queue.get()
                items, is_over = ([first], False) if first is not None else ([], True)
            with contextlib.suppress(queue.Empty):
                while len(items) < WINDOW and not is_over:
                    one = self.queue.get(timeout=max(0.0, not_before - time.monotonic()))
                    if one is None:
                        is_over = True
                    else:
                        items.append(one)
            try:
                if items:
                    self.engine.write_down(items)
                items, wait, not_before = [], _FIRST_WAIT, time.monotonic() + _SCRIBE_PACE
            except Exception as error:  # noqa: BLE001 - what is not written down would be done again
                if isinstance(error, MailhouseError):
                    _log.error("what became of triggers could not be written down: %s", error.message)
                else:
                    _log.exception("what became of triggers could not be written down")
                if is_over:
                    return  # firings stay taken by a run that is over: the next one finds what became of them
                time.sleep(wait)
                wait = min(_LONGEST_WAIT, wait * 2)
            if is_over:
                return


@dataclass(eq=False)
class _Held:
    """A micro-batch that was judged, until it is kept.

    Attributes:
        events: that no trigger watches; nobody has looked yet whom they concern.
        resolved: the others, as `Live.take` returns them.
        decided: what came of it, and what was begun of that.
        decisions: the same as rows of `campaigns.trigger_decisions`; made by the thread that keeps it.
    """

    events: pl.DataFrame
    resolved: pl.DataFrame
    decided: tuple[Decided, list[Decision]] | None = None
    decisions: list[pl.DataFrame] = field(default_factory=list)

    @cached_property
    def event_ids(self) -> frozenset[str]:
        """Of all of its events."""
        return frozenset((*self.events["event_id"].to_list(), *self.resolved["event_id"].to_list()))

    def told(self) -> _Held:
        """The same with its decisions as rows."""
        if self.decided is None:
            return self
        decided, named = self.decided
        return _Held(self.events, self.resolved, None, [decision_rows(named), decided.rest])

    def only(self, is_wanted: pl.Expr) -> _Held:
        """The part of some events."""
        return _Held(
            self.events.filter(is_wanted),
            self.resolved.filter(is_wanted),
            None,
            [one.filter(is_wanted) for one in self.told().decisions],
        )


class TriggerHandler:
    """Judges micro-batches, and sees to what is due. A `BatchHandler`.

    Args:
        is_inline: do what is due in the calling thread rather than in lanes: for tests and commands.
        is_collecting: do nothing, leave all that is due to the gateways: for the clock.
        request_moves: how journeys are entered and left; left out, `campaigns.journey_requests.request_moves`.
        clock: the time, UTC; left out, that of the settings.
        observe: is told how many seconds it took from receiving an event to the message that it fired at once.

    A file that is wrong is logged and left aside, or stays as it was before; the other triggers go on.
    """

    def __init__(
        self,
        settings: SenderSettings,
        ledger: Ledger,
        warehouse: Warehouse,
        *,
        is_inline: bool = False,
        is_collecting: bool = False,
        request_moves: JourneyMoves | None = None,
        clock: Callable[[], datetime] | None = None,
        live: Live | None = None,
        observe: Callable[[float], None] | None = None,
    ) -> None:
        self.settings, self.ledger, self.warehouse = settings, ledger, warehouse
        self._observe = observe
        self.clock = clock or settings.now
        self.live = live or Live(warehouse)
        self.firings = Firings(ledger)
        self.log = DecisionLog(warehouse)
        self.decider = Decider(self._load({}).values(), self.live)
        self.request_moves = request_moves or journey_requests.request_moves
        self.is_inline, self.is_collecting = is_inline, is_collecting
        self.stop = threading.Event()
        self.loads = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._held: list[_Held] = []
        self._acting: dict[frozenset[str], Needs | None] = {}
        self._acting_of: tuple[object, object] = (None, None)
        self._lanes: dict[str, _Lane] = {}
        self._performers: dict[str, Performer] = {}
        self._lock = threading.Lock()
        self._is_prepared = False
        self._recovered = self._cleared = self._looked = -1e9
        self._stamp = self._files()
        self.run: Run = ledger.begin_run(KIND, "", "", self.clock())
        self._heart = threading.Thread(target=self._beat, name="triggers heartbeat", daemon=True)
        self._heart.start()
        self._scribe: _Scribe | None = None
        self._watch: threading.Thread | None = None
        if not is_inline and not is_collecting:
            self._scribe = _Scribe(self)
            self._scribe.start()
            self.live.follow()
            self._watch = threading.Thread(target=self._look_around, name="triggers watch", daemon=True)
            self._watch.start()

    def close(self) -> None:
        """Finish what is under way; what waits is for the next run."""
        self.stop.set()
        for lane in self._lanes.values():
            lane.join(timeout=30)
        if self._scribe is not None:
            self._scribe.queue.put(None)
            self._scribe.join(timeout=10)
        if self._watch is not None:
            self._watch.join(timeout=5)
        for performer in self._performers.values():
            performer.close()
        self._heart.join(timeout=5)
        self.ledger.end_run(self.run, "finished", self.clock())

    def __enter__(self) -> TriggerHandler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # BatchHandler

    def handle(self, events: pl.DataFrame, now: datetime) -> None:
        """Judge events by all triggers, and see that what they fire is done; `keep` them when `raw.events` has them.

        May be called again with the same events: what was decided stays decided.

        Args:
            events: columns of `warehouse.loads.EVENT_COLUMNS`.

        Raises:
            MailhouseError: nothing was lost; call again with the same events.
        """
        self.prepare()
        if events.is_empty():
            return
        types = MOVING_TYPES | self.decider.watched_types
        watched, others = events, events.clear()
        if not types.issuperset(events["type"].to_list()):
            is_watched = pl.col("type").is_in(list(types))
            watched, others = events.filter(is_watched), events.filter(~is_watched)
        held = _Held(others, pl.DataFrame({"event_id": pl.Series([], dtype=pl.String())}))
        if watched.height:
            types = set(watched["type"]) & self.decider.event_types
            more = self._acting_needs(types)
            needs = self.decider.needs(types) if types else None
            since = self.live.known_since()
            resolved, ahead = self.live.take(
                watched,
                self.messages(watched["message_id"].to_list()),
                needs=needs.and_also(more) if needs is not None and more is not None else needs,
            )
            held.resolved = resolved
            if types:
                decided = self.decide(resolved, now, more=more, ahead=ahead)
                received = dict(resolved.select("event_id", "received_at").iter_rows())
                handed = {
                    (one.trigger, one.event_id): Handed(one.state, since, received[one.event_id])
                    for one in decided.due
                    if one.state is not None
                }
                _, named = self._begin(decided.due, now, handed)
                held.decided = decided, named
        with self._lock:
            self._held.append(held)

    def keep(self, loads: pl.DataFrame) -> None:
        """Write events into `live.events`, and what was decided about them; may be called again with the same.

        Args:
            loads: see `BatchHandler.keep`.

        Raises:
            WarehouseError: nothing was lost; call again.
        """
        meant = set(loads["event_id"].to_list())
        is_meant = pl.col("event_id").is_in(loads["event_id"].implode())
        with self._lock:
            held = [one for one in self._held if not one.event_ids.isdisjoint(meant)]
        parts = [one.told() if one.event_ids <= meant else one.only(is_meant) for one in held]
        resolved = [one.resolved for one in parts if one.resolved.height]
        if others := [one.events for one in parts if one.events.height]:
            rest = pl.concat(others).unique("event_id", keep="first", maintain_order=True)
            resolved.append(self.live.resolved(rest, self.messages(rest["message_id"].to_list())))
        if resolved:
            whole = pl.concat(resolved).unique("event_id", keep="first", maintain_order=True)
            self.live.keep(whole, loads.drop_nulls("loaded_at"))
        if decisions := [rows for one in parts for rows in one.decisions if rows.height]:
            self.note(pl.concat(decisions))
        with self._lock:
            self._held = [
                one if one.event_ids.isdisjoint(meant) else one.only(~is_meant)
                for one in self._held
                if not one.event_ids <= meant
            ]

    def forget(self) -> None:
        """See `BatchHandler.forget`."""
        with self._lock:
            self._held.clear()
        self.live.flight.clear()

    def measure(self, handed: Handed) -> None:
        """Note how long it took to a message."""
        if self._observe is not None and handed.received_at is not None:
            self._observe(max(0.0, (self.clock() - handed.received_at).total_seconds()))

    def _acting_needs(self, types: Iterable[str]) -> Needs | None:
        """What acting at once on events of these types needs; None if nothing acts at once."""
        wanted = self.decider.event_types.intersection(types)
        readable = self.live.columns()
        if self._acting_of[0] is not self.decider or self._acting_of[1] is not readable:
            self._acting_of, self._acting = (self.decider, readable), {}
        if wanted in self._acting:
            return self._acting[wanted]
        known = readable.keys()
        columns: set[str] = set()
        has_proof = is_any = False
        is_ready = True
        for spec in self.decider.specs.values():
            if (
                not wanted.intersection(spec.event or ())
                or spec.wait
                or spec.unless_events
                or spec.unless_conditions
            ):
                continue
            performer = self._performer(self.lane_of(spec))
            key = (spec.name, spec.version)
            if performer is None or (not self.is_inline and key not in performer.columns):
                is_ready = False
                continue  # its lane has not got ready: it asks when it acts
            if self.is_inline:
                with contextlib.suppress(MailhouseError):
                    performer.columns_of(spec)
            needed = performer.columns.get(key, frozenset[str]())
            columns |= known if needed is None else known & {*needed, *_always(spec)}
            has_proof |= spec.send is not None and spec.send.category == "marketing"
            is_any = True
        needs = None
        if is_any:
            needs = Needs(frozenset(columns), has_permission=True, has_proof=has_proof)
        if is_ready and known and not self.is_inline:
            self._acting[wanted] = needs
        return needs

    def tick(self, now: datetime) -> None:
        """Take what is due by the clock, as far as lanes have room."""
        moment = time.monotonic()
        self.prepare()
        if moment - self._recovered >= _RECOVER_SECONDS:
            self._recovered = moment
            self.firings.recover(now)
            self.firings.revive(now)
        if moment - self._cleared >= _CLEAR_SECONDS:
            self._cleared = moment
            self.firings.clear(now, {name: spec.cooldown for name, spec in self.decider.specs.items()})
        if moment - self._looked >= _RELOAD_SECONDS:
            self._looked = moment
            self._reload()
        if not self.firings.has_due(now):
            return
        paused = self.ledger.paused(KIND)
        lanes: dict[str, list[str]] = {}
        for spec in self.decider.specs.values():
            lanes.setdefault(self.lane_of(spec), []).append(spec.name)
        for lane, names in lanes.items():
            while taken := self.firings.take(
                self.run, now, min(WINDOW, self._room(lane)), names=names, paused=paused
            ):
                self._give(lane, taken)

    # its steps

    def decide(
        self,
        stored: pl.DataFrame,
        now: datetime,
        *,
        names: Sequence[str] | None = None,
        more: Needs | None = None,
        ahead: Ahead | None = None,
    ) -> Decided:
        """What triggers make of events that `Live.take` has resolved; `more` and `ahead` as for `Decider.decide`."""
        sent = None
        if (self.decider.columns | (more.columns if more is not None else frozenset())) & SENT:
            sent = self.sent(stored["contact_id"].unique().to_list())
        return self.decider.decide(stored, now, sent=sent, names=names, more=more, ahead=ahead)

    def act(self, decided: Decided, now: datetime) -> list[Firing]:
        """Write what is to be done into the ledger, and begin with what is due; returns what was begun."""
        begun, named = self._begin(decided.due, now, {})
        self.note(pl.concat([decision_rows(named), decided.rest]))
        return begun

    def _begin(
        self, decisions: Sequence[Decision], now: datetime, handed: Mapping[tuple[str, str], Handed]
    ) -> tuple[list[Firing], list[Decision]]:
        """What was begun, and the decisions with the ids of their firings."""
        named: list[Decision] = []
        fired: dict[str, Firing] = {}
        for one in decisions:
            if one.due_at is not None:
                firing = Firing(one.trigger, one.version, one.contact_id, one.event_id, one.event, one.due_at)
                key = firing.firing_id
                fired[key] = firing
                named.append(one._replace(firing_id=key, state=None))
            else:
                named.append(one)
        begun: list[Firing] = []
        if fired:
            lanes = {
                name: self.lane_of(self.decider.specs[name]) for name in {one.name for one in fired.values()}
            }
            room = {lane: self._room(lane) for lane in set(lanes.values())}
            at_once: set[str] = set()
            with self.ledger.transaction():
                paused = self.ledger.paused(KIND)
                for key, one in fired.items():
                    lane = lanes[one.name]
                    if one.due_at <= now and one.name not in paused and room[lane] > 0:
                        room[lane] -= 1
                        at_once.add(key)
                begun = self.firings.add(self.run, fired, now, taken=at_once)
            by_lane: dict[str, list[Firing]] = {}
            for one in begun:
                by_lane.setdefault(lanes[one.name], []).append(one)
            for lane, mine in by_lane.items():
                self._give(lane, mine, handed)
        return begun, named

    def note(self, rows: pl.DataFrame) -> None:
        """Write decisions down, rows of `campaigns.trigger_decisions`, for `mailhouse why`, and count them."""
        self.log.write(rows)
        counted = rows.group_by("trigger", "outcome").len()
        with self._lock:
            self.counts.update(
                {(trigger, outcome): number for trigger, outcome, number in counted.iter_rows()}
            )

    def messages(self, message_ids: Iterable[str]) -> pl.DataFrame:
        """What the ledger knows of messages."""
        wanted = [one for one in dict.fromkeys(message_ids) if one]
        rows = self.ledger.about(wanted) if wanted else []
        return pl.DataFrame(rows, schema=MESSAGE_COLUMNS)

    def sent(self, contact_ids: Iterable[int]) -> pl.DataFrame:
        """Messages that the ledger has sent and not exported."""
        rows = self.ledger.sent_unexported([one for one in contact_ids if one])
        frame = pl.DataFrame(
            rows,
            schema={"message_id": pl.String, "contact_id": pl.Int64, "sent_at": pl.Datetime("us", "UTC")},
            orient="row",
        )
        return frame.select(pl.col(name).cast(dtype) for name, dtype in SENT_COLUMNS.items())

    def people(
        self, firings: Sequence[Firing], now: datetime, columns: frozenset[str] | None = None
    ) -> list[dict[str, Any]]:
        """The profile of each firing's contact as it is now, with permission, and what its `unless` says.

        Args:
            columns: of the profile, beside what conditions read; None for all.
        """
        conditions = {
            f"unless {name} {number}": predicate
            for name in {one.name for one in firings}
            for number, predicate in enumerate(self.decider.conditions(self.decider.specs[name]).unless)
        }
        needs = Needs.of(conditions.values(), has_permission=True)
        known = self.live.columns().keys()
        always = {name for one in firings for name in _always(self.decider.specs[one.name])}
        wanted = known if columns is None else known & {*columns, *needs.columns, *always}
        needs = replace(needs, columns=frozenset(wanted))
        rows = firing_rows(firings, now)
        sent = self.sent({one.contact_id for one in firings}) if needs.columns & SENT else None
        state = self.live.judge(rows, conditions, needs, sent=sent)
        return state.drop("row").to_dicts()

    def called_off(
        self, firings: Sequence[Firing], people: Sequence[Mapping[str, Any]], now: datetime
    ) -> dict[int, str]:
        """Of which firings, by place, what calls them off has happened, and what it was."""
        reasons: dict[int, str] = {}
        types: set[str] = set()
        for place, one in enumerate(firings):
            spec = self.decider.specs[one.name]
            types |= set(spec.unless_events)
            for number, text in enumerate(spec.unless_conditions):
                if people[place].get(f"unless {one.name} {number}"):
                    reasons[place] = text
        if not types:
            return reasons
        rows = pl.DataFrame(
            {
                "row": range(len(firings)),
                "contact_id": [one.contact_id for one in firings],
                "since": [datetime.fromisoformat(one.event["occurred_at"]) for one in firings],
                "until": [now for _ in firings],
            }
        ).with_columns(pl.col("since", "until").cast(pl.Datetime("ms", "UTC")))
        for place, kind, event_id, occurred_at in self.live.happened(rows, types).iter_rows():
            if (
                kind in self.decider.specs[firings[place].name].unless_events
                and event_id != firings[place].event_id
            ):
                reasons.setdefault(place, f"{kind} {occurred_at:%Y-%m-%d %H:%M:%S} UTC, event {event_id}")
        return reasons

    def recommended(self, contact_ids: Collection[int], number: int) -> dict[int, list[dict[str, Any]]]:
        """The products that are recommended to contacts, best first."""
        found = keyed_frame(
            self.warehouse,
            """
            select contact_id, product_id, product_name as name, price, ifNull(image_url, '') as image_url,
                ifNull(url, '') as url, reason::String as reason
            from marts.recommendations where contact_id in {keys}
            order by contact_id, rank limit {number:UInt64} by contact_id
            """,
            contact_ids,
            parameters={"number": number},
        )
        items: dict[int, list[dict[str, Any]]] = {}
        for row in found.iter_rows(named=True):
            items.setdefault(row.pop("contact_id"), []).append(row)
        return items

    def settle(self, settled: _Settled) -> None:
        """See that what became of firings is written down."""
        if self._scribe is not None:
            self._scribe.queue.put(settled)
        else:
            self.write_down([settled])

    def write_down(self, items: Sequence[_Settled]) -> None:
        """Write down what became of firings.

        Raises:
            MailhouseError: call again with the same.
        """
        # rows about it first: a crash in between tells it twice, never not at all
        self.note(decision_rows([one for item in items for one in item.decisions]))
        with self.ledger.transaction():
            for item in items:
                self.firings.finish(self.run, item.done, item.now, unfired=item.unfired)
                for later, reason, is_try in item.again:
                    self.firings.postpone(self.run, later, item.now, reason, is_try=is_try)

    def drain(self, now: datetime) -> None:
        """Do all that is due, in this thread: for tests and commands."""
        while True:
            paused = self.ledger.paused(KIND)
            names = list(self.decider.specs)
            taken = self.firings.take(self.run, now, WINDOW, names=names, paused=paused)
            if not taken:
                return
            self._perform(taken)

    def abandoned(self, firings: Sequence[Firing]) -> None:
        """Try once more to let wait what could not be recorded."""
        now = self.clock()
        with contextlib.suppress(MailhouseError):
            self.firings.postpone(
                self.run,
                {one.row_id: now + retry_wait(one.tries) for one in firings},
                now,
                "put_off",
                is_try=True,
            )

    # lanes

    def lane_of(self, spec: TriggerSpec) -> str:
        """The lane in which a trigger acts: its provider's, or that of all other actions."""
        return (spec.send.provider or self.settings.provider) if spec.send else _ACTIONS_LANE

    def _room(self, lane: str) -> int:
        if self.is_collecting:
            return 0
        if self.is_inline:
            return WINDOW
        return self._lanes[lane].room if lane in self._lanes else QUEUE

    def _give(
        self, lane: str, firings: Sequence[Firing], handed: Mapping[tuple[str, str], Handed] | None = None
    ) -> None:
        known = handed or {}
        if self.is_inline:
            by_row = {one.row_id: known[key] for one in firings if (key := (one.name, one.event_id)) in known}
            self._perform(firings, by_row)
            return
        self._start(lane)
        self._lanes[lane].give((one, known.get((one.name, one.event_id))) for one in firings)

    def _performer(self, lane: str) -> Performer | None:
        """Who acts in a lane, if there is anybody yet."""
        if not self.is_inline:
            return self._lanes[lane].performer if lane in self._lanes else None
        if lane not in self._performers:
            self._performers[lane] = Performer(self, lane)
        return self._performers[lane]

    def _start(self, lane: str) -> None:
        if lane not in self._lanes:
            self._lanes[lane] = _Lane(self, lane)
            self._lanes[lane].start()

    def _start_all(self) -> None:
        """Lanes that will be needed, so that they get ready before."""
        if not self.is_inline and not self.is_collecting:
            for lane in {self.lane_of(spec) for spec in self.decider.specs.values()}:
                self._start(lane)

    def _perform(self, firings: Sequence[Firing], handed: Mapping[int, Handed] | None = None) -> None:
        by_lane: dict[str, list[Firing]] = {}
        for one in firings:
            by_lane.setdefault(self.lane_of(self.decider.specs[one.name]), []).append(one)
        for lane, mine in by_lane.items():
            if (performer := self._performer(lane)) is not None:
                performer.perform(mine, handed)

    # housekeeping

    def prepare(self) -> None:
        """Make the tables that triggers need, and record their files; done once."""
        if self._is_prepared:
            return
        self.live.prepare()
        self.log.prepare()
        record_triggers(self.warehouse, self.decider.specs.values())
        self._is_prepared = True
        self._start_all()

    def _files(self) -> tuple[tuple[str, int], ...]:
        folders = [self.settings.content_dir / name for name in ("triggers", "templates")]
        paths = [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*"))]
        return tuple((str(path), path.stat().st_mtime_ns) for path in paths)

    def _load(self, known: Mapping[str, TriggerSpec]) -> dict[str, TriggerSpec]:
        """All triggers there are; one whose file is wrong as it was known, if it was."""
        specs: dict[str, TriggerSpec] = {}
        folder = self.settings.content_dir / "triggers"
        for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
            try:
                specs[path.stem] = load_trigger(path)
            except InputError as error:
                _log.error("a trigger was not taken in: %s", error)
                if path.stem in known:
                    specs[path.stem] = known[path.stem]
        return specs

    def _reload(self) -> None:
        """Take in files that have changed."""
        stamp = self._files()
        if stamp == self._stamp:
            return
        specs = self._load(self.decider.specs)
        record_triggers(self.warehouse, specs.values())
        self._stamp = stamp
        self.decider = Decider(specs.values(), self.live)
        self.loads += 1
        self._start_all()

    def _look_around(self) -> None:
        while not self.stop.wait(_LOOK_AROUND):
            try:
                self.live.refresh()
            except Exception as error:  # noqa: BLE001 - what is known gets old, and judging asks by itself
                if not isinstance(error, MailhouseError):
                    _log.exception("a defect in what is asked in the background")
                self.stop.wait(1.0)

    def _beat(self) -> None:
        while not self.stop.wait(self.settings.claim_lease / 4):
            with contextlib.suppress(MailhouseError):
                self.ledger.heartbeat(self.run)
