"""The ledger: who was sent what, decided before anything is sent.

A message goes through `claimed` (this run alone may send it), `dispatching` (the provider call may have begun) and an
outcome. Each step is committed before the next begins, so that after a crash the ledger knows what is certain:

- `claimed` and its owner dead: the provider was certainly not called; the next run takes the message over.
- `dispatching` and its owner dead: it may have gone. The provider is asked where it can tell
  (`Provider.lookup`); otherwise the message becomes `unknown` and waits for the provider's events (`settle`).

Rows are inserted in send order under a counting key, because a random key costs ten times as much; the derived
`message_id` is unique beside it and makes a second claim of the same thing impossible. What all messages of a run
share is one row of `plans`. Every outcome is also appended to `message_changes`, with the provider's words, from which
`senders.export` copies to `raw.messages`.

The SQL is portable between SQLite (WAL, every commit on disk before it counts) and PostgreSQL (READ COMMITTED, commits
flushed). A transaction that claims first updates a row of `locks`, so claims are one after another on either, and
frequency caps cannot be overrun by two senders at once. A transaction that decides by what it read holds the rows
until it is done: SQLite by its one write lock, PostgreSQL by `for update`, in the order of their keys.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import re
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from campaigns.reasons import AWAITED, SCHEDULED, listed
from senders.liveness import own_process, process_started_at
from senders.message import DELIVERABLE, RETRYABLE, Delivery, Reason, Status
from senders.plan import Cap
from senders.settings import SenderSettings
from senders.tables import message_changes, messages, metadata, pauses, plans, runs
from warehouse.errors import MailhouseError

HEAD = "0007"
_T = TypeVar("_T")
_ACTIVE: dict[str, set[int]] = {}
_CHUNK = 1000  # ids in one IN list, rows in one transaction
_REPLY = 500  # characters of a provider's reply that are kept
TRIES = 8  # runs that may try one message; each of them tries several times itself
_LOCK_SECONDS = 30
_CACHE_KIBIBYTES = 16 << 10
_WAL_PAGES = 4000  # 16 MB
_MIGRATIONS = 7_246_453_108  # any number that no other lock of the database has
_DELIVERABLE = ", ".join(f"'{status.value}'" for status in DELIVERABLE)

#: What is the same for every message of a run: the columns of `plans`.
PLAN_COLUMNS = (
    "kind", "name", "version", "occurrence", "channel", "provider", "category", "template", "template_version",
    "segment", "segment_version", "experiment",
)  # fmt: skip
_OCCURRENCE = PLAN_COLUMNS.index("occurrence")


class LedgerError(MailhouseError):
    """The ledger's database cannot be read or written; nothing was sent that it does not know of."""


@dataclass(frozen=True, slots=True)
class Run:
    """One sender at work on one thing; the owner of its claims."""

    run_id: int
    kind: str
    name: str
    occurrence: str


@dataclass(frozen=True)
class Claim:
    """What to claim, column by column, one entry a message.

    Attributes:
        plan: the columns of `PLAN_COLUMNS`.
        skip_reasons: empty where the message may be sent.
        details: JSON texts: consent, suppression, caps and whatever else explains the decision.
        occurrences: each message's own, where they differ; else that of the plan.
    """

    plan: Mapping[str, str]
    message_ids: Sequence[str]
    contact_ids: Sequence[int]
    emails: Sequence[str]
    skip_reasons: Sequence[str]
    details: Sequence[str]
    variants: Sequence[str] = ()
    occurrences: Sequence[str] = ()


@dataclass
class Claimed:
    """The answer to a claim.

    Attributes:
        rows: position in the claim -> ledger row id, for each message that this run alone may now send.
        skipped: messages recorded as skipped now, by reason.
        already_claimed: messages that were decided before, or that another live run holds.
    """

    rows: dict[int, int] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    already_claimed: int = 0


class Outcome(NamedTuple):
    """What became of one dispatched row."""

    row_id: int
    status: Status
    reason: str = ""
    provider_message_id: str = ""
    reply: str = ""
    subject: str = ""

    @classmethod
    def of(cls, row_id: int, delivery: Delivery, subject: str = "") -> Outcome:
        """The outcome that a provider's answer means."""
        return cls(
            row_id, delivery.status, delivery.reason, delivery.provider_message_id, delivery.reply, subject
        )

    @classmethod
    def of_all(
        cls, row_ids: Sequence[int], deliveries: Sequence[Delivery], subjects: Sequence[str]
    ) -> list[Outcome]:
        """`of` for many, in their order."""
        if not deliveries:
            return []
        _, statuses, reasons, ids, replies, *_ = zip(*deliveries, strict=True)
        # `_make` without counting the fields
        make = functools.partial(tuple.__new__, cls)
        return list(map(make, zip(row_ids, statuses, reasons, ids, replies, subjects, strict=True)))


@dataclass(frozen=True, slots=True)
class LedgerMessage:
    """One row of `messages` with its plan and the newest of the provider's words; UTC datetimes, details parsed."""

    values: Mapping[str, Any]
    changes: tuple[Mapping[str, Any], ...]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True, slots=True)
class Deferred:
    """Messages of one thing that wait for another try.

    Attributes:
        waits_for: `warm_up`: the next day's allowance; `quiet_hours`: their end; empty: a provider that put them off.
    """

    kind: str
    name: str
    occurrence: str
    waits_for: str
    messages: int
    last_tried_at: datetime


def milliseconds(moment: datetime) -> int:
    """Whole milliseconds since 1970 UTC."""
    return round(moment.timestamp() * 1000)


def moment(value: int) -> datetime:
    """The datetime, UTC, of so many milliseconds since 1970."""
    return datetime.fromtimestamp(value / 1000, UTC)


class _Joined(threading.local):
    """The transaction that a thread has open."""

    connection: sa.Connection | None = None


class Ledger:
    """The ledger of one database; safe to share between threads, never across a fork."""

    def __init__(self, engine: sa.Engine, *, place: str, lease: float = 60.0) -> None:
        self._engine = engine
        self._place = place
        self._lease = lease
        # runs of this very process, which end without the process ending; shared by all its ledgers of one database
        self._active = _ACTIVE.setdefault(place, set())
        self._joined = _Joined()
        self._turn = threading.Lock()

    @classmethod
    def open(cls, settings: SenderSettings) -> Ledger:
        """Open the ledger of the settings and bring its tables up to date.

        Raises:
            LedgerError: the database cannot be opened, is damaged, or is newer than this Mailhouse.
        """
        try:
            url = sa.make_url(settings.ledger_address)
            is_sqlite = url.get_backend_name() == "sqlite"
            place = url.database or "memory" if is_sqlite else url.render_as_string(hide_password=True)
            options: dict[str, Any] = (
                {"connect_args": {"timeout": _LOCK_SECONDS}}
                if is_sqlite
                else {"pool_pre_ping": True, "isolation_level": "READ COMMITTED"}
            )
            engine = sa.create_engine(url, **options)
            if engine.dialect.name not in ("sqlite", "postgresql"):
                raise ValueError(engine.dialect.name)
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError):
            raise LedgerError(
                "MAILHOUSE_LEDGER_URL is no URL of a SQLite or PostgreSQL database whose driver is installed.",
                fix="Write it like postgresql+psycopg://user:password@host/mailhouse (the driver comes with "
                "mailhouse[postgresql]) or sqlite:////var/lib/mailhouse/ledger.db, or unset it for the default.",
            ) from None
        if is_sqlite:
            _prepare_sqlite(engine)
            # file:... is a URI of SQLite's own and no path: it would be made as a folder where we stand
            if url.database and not url.database.startswith("file:"):
                with contextlib.suppress(OSError):
                    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        else:
            _prepare_postgresql(engine)
        ledger = cls(engine, place=place, lease=settings.claim_lease)
        ledger._migrate()
        return ledger

    @property
    def place(self) -> str:
        """Where it is, without the password."""
        return self._place

    @property
    def engine(self) -> sa.Engine:
        """Connections to the ledger's database, for what else is kept in it; SQLite's transactions take its lock."""
        return self._engine

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # runs

    def begin_run(self, kind: str, name: str, occurrence: str, now: datetime) -> Run:
        """Register this process as a sender of one thing."""
        machine, process_id, started_at = own_process()
        with self._writing() as connection:
            result = connection.execute(
                runs.insert().values(
                    kind=kind,
                    name=name,
                    occurrence=occurrence,
                    host=machine,
                    process_id=process_id,
                    process_started_at=started_at,
                    started_at=milliseconds(now),
                    heartbeat_at=time.time(),
                )
            )
            key = result.inserted_primary_key
            assert key is not None
            run = Run(key[0], kind, name, occurrence)
        self._active.add(run.run_id)
        return run

    def heartbeat(self, run: Run) -> None:
        """Say that the run lives; senders on other machines believe it for the lease."""
        with self._writing() as connection:
            connection.execute(
                runs.update().where(runs.c.run_id == run.run_id).values(heartbeat_at=time.time())
            )

    def end_run(self, run: Run, outcome: str, now: datetime) -> None:
        """Close the run; what it left `claimed` may be taken over at once."""
        self._active.discard(run.run_id)
        with self._writing() as connection:
            connection.execute(
                runs.update()
                .where(runs.c.run_id == run.run_id)
                .values(finished_at=milliseconds(now), outcome=outcome)
            )

    def is_first(self, run: Run) -> bool:
        """Whether no older live run does the same thing."""
        with self._reading() as connection:
            older = connection.execute(
                sa.select(runs.c.run_id).where(
                    runs.c.finished_at.is_(None),
                    runs.c.kind == run.kind,
                    runs.c.name == run.name,
                    runs.c.occurrence == run.occurrence,
                    runs.c.run_id < run.run_id,
                )
            ).scalars()
            return not (set(older) & self._live(connection))

    def pause(self, kind: str, name: str, now: datetime) -> bool:
        """Hold back what is not under way yet; False if it was paused already."""
        with self._writing() as connection:
            known = sa.select(pauses.c.name).where(pauses.c.kind == kind, pauses.c.name == name)
            if connection.execute(known).first() is not None:
                return False
            connection.execute(pauses.insert().values(kind=kind, name=name, paused_at=milliseconds(now)))
            return True

    def resume(self, kind: str, name: str) -> bool:
        """Let it go again; False if it was not paused."""
        with self._writing() as connection:
            gone = pauses.delete().where(pauses.c.kind == kind, pauses.c.name == name)
            return connection.execute(gone).rowcount > 0

    def paused(self, kind: str) -> set[str]:
        """Names that are paused."""
        with self._reading() as connection:
            return set(connection.execute(sa.select(pauses.c.name).where(pauses.c.kind == kind)).scalars())

    def live_runs(self) -> set[int]:
        """Numbers of the runs whose process is alive, here or elsewhere."""
        with self._reading() as connection:
            return self._live(connection)

    def _live(self, connection: sa.Connection) -> set[int]:
        rows = connection.execute(
            sa.select(
                runs.c.run_id, runs.c.host, runs.c.process_id, runs.c.process_started_at, runs.c.heartbeat_at
            ).where(runs.c.finished_at.is_(None))
        ).all()
        own_host, own_pid, own_start = own_process()
        live: set[int] = set()
        for run_id, machine, process_id, started_at, heartbeat_at in rows:
            if machine != own_host:
                is_alive = time.time() - heartbeat_at < self._lease
            elif (process_id, started_at) == (own_pid, own_start):
                is_alive = run_id in self._active
            else:
                is_alive = process_started_at(process_id) == started_at != ""
            if is_alive:
                live.add(run_id)
        return live

    # claim, dispatch, record

    def claim(self, run: Run, claim: Claim, now: datetime, *, cap: Cap | None = None) -> Claimed:
        """Claim messages for this run, in one transaction.

        A message that nobody had is inserted, `claimed` or `skipped`. One that a dead owner left `claimed`, or that
        failed in a way that is safe to repeat, is taken over under the plan, address and decision of now.
        """
        return self.claim_all(run, [(claim, cap)], now)[0]

    def claim_all(self, run: Run, claims: Sequence[tuple[Claim, Cap | None]], now: datetime) -> list[Claimed]:
        """`claim` for several things at once, in one transaction; one answer a claim.

        A frequency cap counts what the claims before it have claimed.
        """
        answers = [Claimed() for _ in claims]
        free = [at for at, (claim, cap) in enumerate(claims) if claim.message_ids and cap is None]
        capped = [at for at, (claim, cap) in enumerate(claims) if claim.message_ids and cap is not None]
        if not free and not capped:
            return answers
        with self._writing(lock="claims") as connection:
            for group in ([free] if free else []) + [[at] for at in capped]:
                mine = [claims[at][0] for at in group]
                cap = claims[group[0]][1]
                self._claim(connection, run, mine, [answers[at] for at in group], now, cap)
        return answers

    def _claim(
        self,
        connection: sa.Connection,
        run: Run,
        claims: Sequence[Claim],
        answers: Sequence[Claimed],
        now: datetime,
        cap: Cap | None,
    ) -> None:
        """Claim things that no cap holds back, or one that a cap does; under the lock of claims."""
        at = milliseconds(now)
        counts = self._recent(connection, claims[0], now, cap) if cap else {}
        ((mark,),) = _directly(connection, _NEWEST)
        plan_ids = self._plan_ids(
            connection,
            dict.fromkeys(
                (place, occurrence)
                for place, claim in enumerate(claims)
                for occurrence in (claim.occurrences or [claim.plan.get("occurrence", "")])
            ),
            [claim.plan for claim in claims],
        )
        rows: list[list[tuple[Any, ...]]] = []
        places: dict[str, tuple[int, int]] = {}
        for place, claim in enumerate(claims):
            reasons = [
                reason
                or (Reason.FREQUENCY_CAP.value if cap and counts.get(contact, 0) >= cap.messages else "")
                for reason, contact in zip(claim.skip_reasons, claim.contact_ids, strict=True)
            ]
            emails = claim.emails
            if "\0" in "".join(emails):
                emails = [_storable(email) for email in emails]
            variants = claim.variants or [""] * len(reasons)
            occurrences = claim.occurrences or [claim.plan.get("occurrence", "")] * len(reasons)
            rows.append(
                [
                    (message_id, contact_id, email, variant, details, "skipped" if reason else "claimed",
                     reason, 1 if reason else 0, not reason, run.run_id, plan_ids[place, occurrence], at, at)
                    for message_id, contact_id, email, variant, reason, details, occurrence in zip(
                        claim.message_ids, claim.contact_ids, emails, variants, reasons, claim.details,
                        occurrences, strict=True,
                    )
                ]
            )  # fmt: skip
            places |= {one: (place, position) for position, one in enumerate(claim.message_ids)}
        _insert(
            connection,
            messages,
            _COLUMNS,
            [row for part in rows for row in part],
            "on conflict (message_id) do nothing",
        )
        created = _directly(connection, _CREATED, run_id=run.run_id, mark=mark)
        for row_id, message_id, status, reason in created:
            place, position = places[message_id]
            if status == "claimed":
                answers[place].rows[position] = row_id
            else:
                answers[place].skipped[reason] += 1
        if any(answer.skipped for answer in answers):
            connection.execute(_SKIPPED_CHANGES, {"run_id": run.run_id, "mark": mark})
        missing = places.keys() - {message_id for _, message_id, _, _ in created}
        for place, (claim, answer) in enumerate(zip(claims, answers, strict=True)):
            mine = [one for one in claim.message_ids if one in missing] if missing else []
            if mine:
                positions = {message_id: position for position, message_id in enumerate(claim.message_ids)}
                is_marketing = claim.plan.get("category") == "marketing"
                self._take_over(
                    connection,
                    run,
                    dict.fromkeys(mine),
                    positions,
                    rows[place],
                    counts,
                    cap,
                    now,
                    answer,
                    is_marketing=is_marketing,
                )
            answer.already_claimed = len(claim.message_ids) - len(answer.rows) - answer.skipped.total()

    def _plan_ids(
        self, connection: sa.Connection, wanted: Iterable[tuple[int, str]], given: Sequence[Mapping[str, str]]
    ) -> dict[tuple[int, str], int]:
        """The row for each plan, by its place, and occurrence, made where there is none; under the lock of claims."""
        rows: dict[tuple[int, str], tuple[str, ...]] = {}
        shared: dict[int, tuple[list[str], list[str], Any, bytes]] = {}
        for place, occurrence in wanted:
            if place not in shared:
                # triggers have as many occurrences as messages: what they share is put together and hashed once
                columns = [given[place].get(name, "") for name in PLAN_COLUMNS]
                before, after = columns[:_OCCURRENCE], columns[_OCCURRENCE + 1 :]
                head = json.dumps(before, ensure_ascii=False)[:-1] + ", "
                tail = ", " + json.dumps(after, ensure_ascii=False)[1:]
                shared[place] = before, after, hashlib.sha256(head.encode()), tail.encode()
            before, after, hashed, rest = shared[place]
            digest = hashed.copy()
            digest.update(json.dumps(occurrence, ensure_ascii=False).encode() + rest)
            rows[place, occurrence] = (digest.hexdigest(), *before, occurrence, *after)
        found: dict[str, int] = {}
        for is_last in (False, True):
            missing = {row[0]: row for row in rows.values() if row[0] not in found}
            if is_last and missing:
                _insert(connection, plans, ("digest", *PLAN_COLUMNS), list(missing.values()))
            for digests in _chunks(list(missing)):
                found.update((one.digest, one.plan_id) for one in _with_ids(connection, _PLANS, digests))
        return {key: found[row[0]] for key, row in rows.items()}

    def _recent(
        self, connection: sa.Connection, claim: Claim, now: datetime, cap: Cap | None
    ) -> dict[int, int]:
        """How many marketing messages each contact was sent, or may be about to be sent, within the cap's window."""
        assert cap is not None
        counts: dict[int, int] = {}
        for contacts in _chunks(list(dict.fromkeys(claim.contact_ids))):
            counts.update(_directly(connection, _RECENT, contacts, since=milliseconds(now - cap.within)))
        return counts

    def _take_over(
        self,
        connection: sa.Connection,
        run: Run,
        message_ids: Iterable[str],
        positions: Mapping[str, int],
        rows: Sequence[tuple[Any, ...]],
        counts: Mapping[int, int],
        cap: Cap | None,
        now: datetime,
        answer: Claimed,
        *,
        is_marketing: bool,
    ) -> None:
        existing = [
            row for ids in _chunks(list(message_ids)) for row in _with_ids(connection, _EXISTING, ids)
        ]
        open_claims = any(row.status == Status.CLAIMED for row in existing)
        live = self._live(connection) | {run.run_id} if open_claims else set()
        takes: list[dict[str, Any]] = []
        for row in existing:
            is_left = row.status == Status.CLAIMED and row.run_id not in live
            is_retry = row.status == Status.FAILED and row.reason in RETRYABLE
            # failed too often: a dead letter, until somebody revives it
            is_retry = is_retry and not (row.reason == Reason.DEFERRED and row.tries >= TRIES)
            if not (is_left or is_retry):
                continue
            values = dict(zip(_COLUMNS, rows[positions[row.message_id]], strict=True))
            if cap and values["reason"] in ("", Reason.FREQUENCY_CAP):
                # a claim of advertising that a dead run left was itself counted, if it is recent
                is_counted = is_marketing and is_left and row.claimed_at > milliseconds(now - cap.within)
                used = counts.get(row.contact_id, 0) - is_counted
                values["reason"] = Reason.FREQUENCY_CAP.value if used >= cap.messages else ""
                values["status"] = "skipped" if values["reason"] else "claimed"
                values["is_open"] = not values["reason"]
            takes.append(
                {**values, "id": row.id, "old_status": row.status, "old_run": row.run_id,
                 "sequence": row.sequence + (1 if values["reason"] else 0)}
            )  # fmt: skip
        if not takes:
            return
        connection.execute(_TAKE_OVER, takes)
        skipped: list[int] = []
        for ids in _chunks([take["id"] for take in takes]):
            for row in _with_ids(connection, _TAKEN, ids, run_id=run.run_id):
                if row.status == Status.CLAIMED:
                    answer.rows[positions[row.message_id]] = row.id
                else:
                    skipped.append(row.id)
                    answer.skipped[row.reason] += 1
        self._append_changes(connection, skipped)

    def dispatch(self, run: Run, row_ids: Sequence[int], now: datetime) -> set[int]:
        """Commit that the provider is about to be called for these rows; returns those that may go now.

        A row that another run took over in the meantime, because this one seemed dead, is not among them.
        """
        granted: set[int] = set()
        at = milliseconds(now)
        with self._writing() as connection:
            for ids in _chunks(row_ids):
                granted.update(
                    row[0] for row in _directly(connection, _DISPATCH, ids, run_id=run.run_id, at=at)
                )
        return granted

    def record(
        self, run: Run, outcomes: Sequence[Outcome], now: datetime, *, release: Sequence[int] = ()
    ) -> None:
        """Record what became of dispatched rows.

        Args:
            release: dispatched rows that were certainly not accepted and shall be tried again: back to
                `claimed`.
        """
        with self._writing() as connection:
            self._record(connection, run, outcomes, "dispatching", now)
            for ids in _chunks(release):
                _with_ids(connection, _RELEASE, ids, run_id=run.run_id, at=milliseconds(now))

    def fail_claimed(self, run: Run, outcomes: Sequence[Outcome], now: datetime) -> None:
        """Record outcomes of claimed rows that never reached the provider, such as one that would not render."""
        with self._writing() as connection:
            self._record(connection, run, outcomes, "claimed", now)

    def _record(
        self, connection: sa.Connection, run: Run, outcomes: Sequence[Outcome], before: str, now: datetime
    ) -> None:
        if not outcomes:
            return
        at = milliseconds(now)
        sequences: dict[int, int] = {}
        for ids in _chunks([outcome.row_id for outcome in outcomes]):
            sequences.update(_directly(connection, _OWNED, ids, run_id=run.run_id, before=before))
        # what another run has taken over, or was recorded before, is left alone
        mine: dict[int, Outcome] = {one.row_id: one for one in outcomes if one.row_id in sequences}
        if not mine:
            return
        row_ids, statuses, reasons, ids, replies, subjects = zip(*mine.values(), strict=True)
        words = [
            ended
            for (status, reason), same in itertools.groupby(zip(statuses, reasons, strict=True))
            for ended in [(str(status), str(reason)[:100])] * sum(1 for _ in same)
        ]
        alike: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for row_id, ended in zip(row_ids, words, strict=True):
            alike[ended].append(row_id)
        changes = [
            (row_id, sequences[row_id] + 1, *ended, subject, provider_message_id[:250], reply[:_REPLY], at)
            for row_id, ended, subject, provider_message_id, reply in zip(
                row_ids, words, subjects, ids, replies, strict=True
            )
        ]
        if "\0" in "".join([text for change in changes for text in change[4:7]]):
            changes = [(*row[:4], *map(_storable, row[4:7]), row[7]) for row in changes]
        for (status, reason), row_ids in alike.items():
            is_open = status in _OPEN_STATUSES
            for ids in _chunks(row_ids):
                _directly(connection, _RECORD, ids, status=status, reason=reason, at=at, is_open=is_open)
        if changes:
            _insert(connection, message_changes, _CHANGE_COLUMNS, changes)

    def _append_changes(self, connection: sa.Connection, row_ids: Sequence[int]) -> None:
        """Append the rows' state of now, of which a provider had nothing to say."""
        for ids in _chunks(row_ids):
            _with_ids(connection, _CHANGES, ids)

    # after a crash

    def recover(
        self,
        now: datetime,
        *,
        provider: str = "",
        lookup: Callable[[Sequence[str]], Mapping[str, Delivery]] | None = None,
        notes: Mapping[tuple[int, int], Delivery] | None = None,
    ) -> Counter[str]:
        """Settle what dead runs left `dispatching`, and what is `unknown` at a provider that can tell.

        Args:
            provider: the provider that `lookup` asks.
            lookup: message ids -> deliveries; `sent` where the provider has it, `failed` where it certainly never had
                it (the message goes back to `claimed`, to be sent by the next claim), absent where it cannot tell.
            notes: what dead senders themselves noted, by run and row, in the same words; see `senders.journal`.

        Returns:
            rows by what became of them: `sent`, `claimed`, `unknown` and so on.
        """
        settled: Counter[str] = Counter()
        with self._reading() as connection:
            live = self._live(connection)
            left = [
                row
                for row in connection.execute(_OPEN).all()
                if row.run_id not in live and (row.status == Status.DISPATCHING or row.provider == provider)
            ]
        for part in _chunks(left):
            known = lookup([row.message_id for row in part if row.provider == provider]) if lookup else {}
            changes: list[dict[str, Any]] = []
            for row in part:
                delivery = known.get(row.message_id) if row.provider == provider else None
                if delivery is None and notes and row.status == Status.DISPATCHING:
                    delivery = notes.get((row.run_id, row.id))
                if delivery is None:
                    status, reason = Status.UNKNOWN, Reason.CRASHED.value
                elif delivery.status == Status.FAILED:
                    status, reason = Status.CLAIMED, ""
                else:
                    status, reason = delivery.status, delivery.reason
                if status != row.status:
                    changes.append(
                        {
                            "id": row.id, "status": status.value, "reason": reason, "old_status": row.status,
                            "old_run": row.run_id, "at": milliseconds(now),
                            "is_open": status in _OPEN_STATUSES, "steps": 0 if status == Status.CLAIMED else 1,
                            "provider_message_id": delivery.provider_message_id[:250] if delivery else "",
                            "provider_reply": _storable(delivery.reply[:_REPLY]) if delivery else "",
                        }
                    )  # fmt: skip
            settled += self._settle(changes)
        return settled

    def settle(self, outcomes: Mapping[str, Status], now: datetime, *, reply: str = "") -> Counter[str]:
        """Settle `unknown` messages by what the provider's events say; others are left alone.

        Args:
            outcomes: message id -> status.
        """
        settled: Counter[str] = Counter()
        for ids in _chunks(list(outcomes)):
            with self._reading() as connection:
                rows = [row for row in _with_ids(connection, _EXISTING, ids) if row.status == Status.UNKNOWN]
            settled += self._settle(
                [
                    {
                        "id": row.id, "status": outcomes[row.message_id].value, "reason": "",
                        "old_status": row.status, "old_run": row.run_id, "at": milliseconds(now),
                        "is_open": outcomes[row.message_id] in _OPEN_STATUSES, "steps": 1,
                        "provider_message_id": "", "provider_reply": _storable(reply[:_REPLY]),
                    }
                    for row in rows
                ]
            )  # fmt: skip
        return settled

    def _settle(self, changes: list[dict[str, Any]]) -> Counter[str]:
        settled: Counter[str] = Counter()
        if not changes:
            return settled
        with self._writing() as connection:
            # one by one, and only if nobody was quicker: these are few
            for change in sorted(changes, key=lambda one: one["id"]):
                if connection.execute(_SETTLE, change).rowcount == 1:
                    settled[change["status"]] += 1
                    if change["steps"]:
                        connection.execute(_SETTLED_CHANGE, change)
        return settled

    def abandon(self, run: Run, now: datetime) -> int:
        """Skip what dead runs of the same thing left claimed, when the whole audience has been through.

        The persons are no longer in the audience: they unsubscribed, or left the segment. Returns how many.
        """
        with self._writing(lock="claims") as connection:
            live = self._live(connection) | {run.run_id}
            rows = connection.execute(
                _set_statement(_LEFT, connection.dialect.name),
                {"kind": run.kind, "name": run.name, "occurrence": run.occurrence},
            ).all()
            left = [row.id for row in rows if row.run_id not in live]
            for ids in _chunks(left):
                _with_ids(connection, _ABANDON, ids, at=milliseconds(now))
            self._append_changes(connection, left)
        return len(left)

    # reading

    def unknown_message_ids(self) -> list[str]:
        """Messages whose outcome only the provider's events can tell, oldest first."""
        with self._reading() as connection:
            return list(connection.execute(_UNKNOWN).scalars())

    def counts(self, kind: str, name: str, occurrence: str) -> Counter[str]:
        """Messages of one thing by status."""
        with self._reading() as connection:
            rows = connection.execute(_COUNTS, {"kind": kind, "name": name, "occurrence": occurrence})
            return Counter({str(row[0]): int(row[1]) for row in rows})

    def find(self, message_id: str) -> LedgerMessage | None:
        """One message with its changes, oldest first; None if the ledger does not have it."""
        with self._reading() as connection:
            row = (
                connection.execute(
                    sa.select(messages, *(plans.c[name] for name in PLAN_COLUMNS))
                    .join(plans, plans.c.plan_id == messages.c.plan_id)
                    .where(messages.c.message_id == message_id)
                )
                .mappings()
                .first()
            )
            if row is None:
                return None
            changes = [
                {**change, "changed_at": moment(change["changed_at"])}
                for change in connection.execute(
                    message_changes.select()
                    .where(message_changes.c.message_row == row["id"])
                    .order_by(message_changes.c.sequence)
                ).mappings()
            ]
        newest = changes[-1] if changes else {}
        words = {name: newest.get(name, "") for name in ("subject", "provider_message_id", "provider_reply")}
        return LedgerMessage(
            {
                **row, **words, "claimed_at": moment(row["claimed_at"]), "changed_at": moment(row["changed_at"]),
                "details": json.loads(row["details"]),
            },
            tuple(changes),
        )  # fmt: skip

    def recipient_of(self, message_id: str) -> tuple[str, int] | None:
        """Address and contact a message was meant for."""
        with self._reading() as connection:
            row = connection.execute(
                sa.select(messages.c.email, messages.c.contact_id).where(messages.c.message_id == message_id)
            ).first()
            return (row[0], row[1]) if row else None

    def standing(self, message_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Status and reason of messages, of those that the ledger has."""
        with self._reading() as connection:
            return {
                row.message_id: (row.status, row.reason)
                for ids in _chunks(message_ids)
                for row in _with_ids(connection, _STANDING, ids)
            }

    def about(self, message_ids: Sequence[str]) -> list[dict[str, Any]]:
        """What messages are: message_id, contact_id, email, kind, name, template, occurrence; of those that it has."""
        with self._reading() as connection:
            return [
                dict(row)
                for ids in _chunks(message_ids)
                for row in _with_ids(connection, _ABOUT, ids).mappings()
            ]

    def sent_unexported(self, contact_ids: Sequence[int]) -> list[tuple[str, int, datetime]]:
        """Messages of contacts that were accepted and of which the warehouse may not know: id, contact, when."""
        with self._reading() as connection:
            return [
                (row.message_id, row.contact_id, moment(row.changed_at))
                for ids in _chunks(contact_ids)
                for row in _with_ids(connection, _SENT_UNEXPORTED, ids)
            ]

    # allowances

    def take_allowance(self, name: str, day: str, wanted: int, allowed: int) -> int:
        """Use up to so much of a day's allowance; returns how much was left to take. Negative gives back."""
        key = {"name": name, "day": day}
        with self._writing() as connection:
            connection.execute(_ALLOWANCE, key)
            # the update of nothing holds the row until we are done, on PostgreSQL too
            connection.execute(_USE, {**key, "taken": 0})
            used = connection.execute(_USED, key).scalar_one()
            taken = max(min(wanted, allowed - used), 0) if wanted > 0 else max(wanted, -used)
            connection.execute(_USE, {**key, "taken": taken})
        return taken

    # what failed

    def dead_letters(self, limit: int = 1000, *, name: str = "") -> list[dict[str, Any]]:
        """Messages that did not go and wait for a person, newest first, with the last words about them.

        Args:
            name: of a campaign, journey or trigger; empty for all.

        Returns:
            message_id, kind, name, occurrence, email, status, reason, tries, provider_reply, changed_at.
        """
        with self._reading() as connection:
            rows = connection.execute(_DEAD, {"name": name, "limit": limit, "tries": TRIES}).mappings()
            return [{**row, "changed_at": moment(row["changed_at"])} for row in rows]

    def revive(self, message_ids: Sequence[str], now: datetime) -> int:
        """Let the next run of their campaign try dead letters again; returns how many there were to revive.

        Only what certainly did not go: `rejected`, `invalid` and `failed`, never `unknown`.
        """
        revived: list[int] = []
        with self._writing() as connection:
            for ids in _chunks(message_ids):
                revived += _with_ids(connection, _REVIVE, ids, at=milliseconds(now)).scalars()
            self._append_changes(connection, revived)
        return len(revived)

    def deferred(self) -> list[Deferred]:
        """What a later run shall try again, the longest waiting first."""
        with self._reading() as connection:
            return [
                Deferred(row.kind, row.name, row.occurrence, row.waits_for, row.number, moment(row.newest))
                for row in connection.execute(_DEFERRED, {"tries": TRIES})
            ]

    # the outbox

    def changes_to_export(self, limit: int) -> list[dict[str, Any]]:
        """Changes that the warehouse may not have, oldest first: the columns of `raw.messages` and `change_id`."""
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(_TO_EXPORT, {"limit": limit}).mappings()]

    def mark_exported(self, change_ids: Sequence[int]) -> None:
        """Note that the warehouse has these changes."""
        with self._writing() as connection:
            for ids in _chunks(change_ids):
                _with_ids(connection, _EXPORTED, ids)

    # plumbing

    def _migrate(self) -> None:
        with self._reading() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                version = None
            else:
                version = connection.execute(sa.text("select version_num from alembic_version")).scalar()
        if version == HEAD:
            return
        # Alembic takes a quarter of a second to import, and is needed once
        from alembic import command
        from alembic.config import Config
        from alembic.script.revision import ResolutionError
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._writing() as connection:
            if connection.dialect.name == "postgresql":
                # several senders may start at once; SQLite's write lock makes them take turns by itself
                connection.execute(sa.text(f"select pg_advisory_xact_lock({_MIGRATIONS})"))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except (CommandError, ResolutionError) as error:
                raise LedgerError(
                    f"The ledger at {self._place} was made by a newer Mailhouse (its schema is {version}).",
                    fix="Update Mailhouse, or point MAILHOUSE_LEDGER_URL at another ledger.",
                ) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Let all that this thread reads and writes here meanwhile be one transaction: one commit to disk.

        What fails takes all of it back; do not go on in it after an error. Locks are taken in the order of the calls:
        `triggers` before `claims`, everywhere.
        """
        if self._joined.connection is not None:
            yield
            return
        with self._errors(), self._in_turn(), self._engine.begin() as connection:
            self._joined.connection = connection
            try:
                yield
            finally:
                self._joined.connection = None

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One writing thread at a time on SQLite, which has one write lock: whoever waits for that sleeps longer and
        longer between looks, where this process knows at once.
        """
        if self._engine.dialect.name != "sqlite":
            yield
            return
        # another process may hold the file, which BEGIN finds out and says
        is_mine = self._turn.acquire(timeout=_LOCK_SECONDS)
        try:
            yield
        finally:
            if is_mine:
                self._turn.release()

    @contextlib.contextmanager
    def _writing(self, *, lock: str = "") -> Iterator[sa.Connection]:
        """A transaction that writes; SQLite takes its write lock at once, so that it cannot fail half way for it."""
        with self.transaction():
            connection = self._joined.connection
            assert connection is not None
            with self._errors():
                if lock:
                    connection.execute(_LOCK, {"name": lock})
                yield connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        if self._joined.connection is not None:
            with self._errors():
                yield self._joined.connection
            return
        with self._errors(), self._engine.connect().execution_options(is_reading=True) as connection:
            yield connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise self._translated(error.orig if isinstance(error, DBAPIError) else None, error) from error
        except self._engine.dialect.loaded_dbapi.Error as error:
            # of `_directly`
            raise self._translated(error, error) from error

    def _translated(self, original: BaseException | None, error: Exception) -> LedgerError:
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        state = getattr(original, "sqlstate", None) or ""
        where = f"The ledger at {self._place}"
        if code == sqlite3.SQLITE_FULL or state in ("53100", "53000"):
            return LedgerError(
                f"{where} cannot grow: the disk is full.",
                fix="Free some space and run the same command again: it goes on where it stopped.",
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return LedgerError(
                f"{where} is locked by another process for longer than {_LOCK_SECONDS} seconds.",
                fix="See who has the file open (`lsof` or `fuser`), end that, and run the same command again.",
            )
        if state in ("55P03", "40P01"):
            return LedgerError(
                f"{where} is locked by another session for longer than {_LOCK_SECONDS} seconds.",
                fix="See who waits for whom in pg_stat_activity, end that, and run the same command again.",
            )
        if state == "25006":
            return LedgerError(
                f"{where} is read-only.",
                fix="Point MAILHOUSE_LEDGER_URL at the primary server, not at a replica.",
            )
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return LedgerError(
                f"{where} is read-only.", fix="Make the file and its folder writable for this user."
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return LedgerError(
                f"{where} is damaged: {original}.",
                fix="Restore it from a backup. Do not start with an empty one: it would not know who got what.",
            )
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
            return LedgerError(
                f"{where} cannot be opened or read: {original}.",
                fix="Check that its folder exists, is writable and is on a healthy disk.",
            )
        # never the statement's parameters: they are people's addresses
        detail = str(original).splitlines()[0] if original is not None else type(error).__name__
        return LedgerError(f"{where} failed: {detail}.", fix="Check that its database runs, then try again.")


def _prepare_sqlite(engine: sa.Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        # SQLAlchemy's own BEGIN below, not sqlite3's: DDL belongs into transactions too
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("pragma journal_mode = wal")
        # a claim must outlive a power cut, or its message would be sent again
        cursor.execute("pragma synchronous = full")
        # message_id is random, so any page of its index may be next: keep them, and write each of them back more rarely
        cursor.execute(f"pragma cache_size = -{_CACHE_KIBIBYTES}")
        cursor.execute(f"pragma wal_autocheckpoint = {_WAL_PAGES}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        is_reading = connection.get_execution_options().get("is_reading", False)
        connection.exec_driver_sql("begin" if is_reading else "begin immediate")


def _prepare_postgresql(engine: sa.Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        with connection.cursor() as cursor:
            # a claim must outlive a power cut, or its message would be sent again
            cursor.execute(
                "select set_config('synchronous_commit', 'on', false) "
                "where current_setting('synchronous_commit') = 'off'"
            )
            cursor.execute(f"set lock_timeout = '{_LOCK_SECONDS}s'")
        connection.commit()


def _chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def _storable(text: str) -> str:
    """The text without NUL, which PostgreSQL cannot store."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in text else text


@functools.cache
def _set_statement(statement: str, dialect: str) -> sa.TextClause:
    """`x in :ids` as one parameter: an IN list of a thousand costs SQLAlchemy more than the database."""
    if dialect == "sqlite":
        # SQLite's one write lock is `for update` of everything
        statement = re.sub(r" for update( of \w+)?$", "", statement)
        return sa.text(statement.replace("in :ids", "in (select value from json_each(:ids))"))
    return sa.text(statement.replace("in :ids", "= any(:ids)"))


def _with_ids(
    connection: sa.Connection, statement: str, ids: Sequence[Any], **parameters: Any
) -> sa.CursorResult[Any]:
    """Execute a statement that says `in :ids`."""
    dialect = connection.dialect.name
    values = json.dumps(list(ids)) if dialect == "sqlite" else list(ids)
    return connection.execute(_set_statement(statement, dialect), {"ids": values, **parameters})


@functools.cache
def _driver_statement(statement: str, dialect: str) -> str:
    """A statement with `:name` parameters, perhaps `in :ids`, as the driver wants it."""
    text = str(_set_statement(statement, dialect))
    return text if dialect == "sqlite" else _PARAMETER.sub(r"%(\1)s", text.replace("%", "%%"))


def _directly(
    connection: sa.Connection, statement: str, ids: Sequence[Any] | None = None, **parameters: Any
) -> list[tuple[Any, ...]]:
    """As `_with_ids`, and the rows; for what is done with every window: SQLAlchemy costs more than the database."""
    dialect = connection.dialect.name
    if ids is not None:
        parameters["ids"] = json.dumps(list(ids)) if dialect == "sqlite" else list(ids)
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_driver_statement(statement, dialect), parameters)
        return list(cursor.fetchall()) if cursor.description else []
    finally:
        cursor.close()


@functools.cache
def _insertion(table: str, columns: tuple[str, ...], after: str, dialect: str) -> str:
    names = ", ".join(columns)
    if dialect == "sqlite":
        return f"insert into {table} ({names}) values ({', '.join('?' * len(columns))}) {after}"  # noqa: S608
    # a JSON array a column: one statement, whatever the number of rows, and a quarter of what arrays cost the driver.
    # Text is not cast to varchar(n), which would cut it silently
    columns_of = metadata.tables[table].c
    casts = {sa.Integer: "::bigint", sa.Boolean: "::boolean"}
    values = ", ".join(
        name + next((cast for kind, cast in casts.items() if isinstance(columns_of[name].type, kind)), "")
        for name in columns
    )
    given = ", ".join(["json_array_elements_text(%s)"] * len(columns))
    return (
        f"insert into {table} ({names}) select {values} "  # noqa: S608
        f"from rows from ({given}) with ordinality as given ({names}, place) order by place {after}"
    )


def _insert(
    connection: sa.Connection,
    table: sa.Table,
    columns: tuple[str, ...],
    rows: list[tuple[Any, ...]],
    after: str = "",
) -> None:
    """Insert many rows in their order, without SQLAlchemy's cost for each of them."""
    dialect = connection.dialect.name
    statement = _insertion(table.name, columns, after, dialect)
    if dialect == "sqlite":
        connection.exec_driver_sql(statement, rows)
    else:
        connection.exec_driver_sql(
            statement, tuple(json.dumps(column, ensure_ascii=False) for column in zip(*rows, strict=True))
        )


_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")
_OPEN_STATUSES = frozenset({Status.CLAIMED, Status.DISPATCHING, Status.UNKNOWN})
_COLUMNS = (
    "message_id", "contact_id", "email", "variant", "details", "status", "reason", "sequence", "is_open", "run_id",
    "plan_id", "claimed_at", "changed_at",
)  # fmt: skip
_CHANGE_COLUMNS = (
    "message_row", "sequence", "status", "reason", "subject", "provider_message_id", "provider_reply", "changed_at",
)  # fmt: skip
_NEWEST = "select coalesce(max(id), 0) from messages"
_CREATED = (
    "select id, message_id, status, reason from messages where run_id = :run_id and id > :mark order by id"
)
_SKIPPED_CHANGES = sa.text(
    "insert into message_changes (message_row, sequence, status, reason, changed_at) "
    "select id, sequence, status, reason, changed_at from messages "
    "where run_id = :run_id and id > :mark and status = 'skipped' order by id"
)
# runs that tried a message and were told to come again
_TRIED = "(select count(*) from message_changes t where t.message_row = m.id and t.reason = 'deferred')"
_EXISTING = (
    "select m.id, m.message_id, m.contact_id, m.status, m.reason, m.run_id, m.sequence, m.claimed_at, "  # noqa: S608
    f"case when m.status = 'failed' then {_TRIED} else 0 end as tries "
    "from messages m where m.message_id in :ids"
)
_TAKE_OVER = sa.text(
    "update messages set run_id = :run_id, status = :status, reason = :reason, sequence = :sequence, "
    "is_open = :is_open, plan_id = :plan_id, email = :email, variant = :variant, details = :details, "
    "claimed_at = :claimed_at, changed_at = :changed_at "
    "where id = :id and status = :old_status and run_id = :old_run"
)
_TAKEN = (
    "select id, message_id, status, reason from messages where id in :ids and run_id = :run_id "
    "and status in ('claimed', 'skipped')"
)
_PLANS = "select plan_id, digest from plans where digest in :ids"
_RECENT = (
    "select m.contact_id, count(*) as number from messages m join plans p on p.plan_id = m.plan_id "  # noqa: S608
    "where m.contact_id in :ids and m.claimed_at > :since "
    f"and p.category = 'marketing' and m.status in ({_DELIVERABLE}) group by m.contact_id"
)
_DISPATCH = (
    "update messages set status = 'dispatching', changed_at = :at "
    "where id in :ids and run_id = :run_id and status = 'claimed' returning id"
)
_RELEASE = (
    "update messages set status = 'claimed', changed_at = :at "
    "where id in :ids and run_id = :run_id and status = 'dispatching'"
)
_OWNED = (
    "select id, sequence from messages where id in :ids and run_id = :run_id and status = :before "
    "order by id for update"
)
_RECORD = (
    "update messages set status = :status, reason = :reason, sequence = sequence + 1, is_open = :is_open, "
    "changed_at = :at where id in :ids"
)
_CHANGES = (
    "insert into message_changes (message_row, sequence, status, reason, changed_at) "
    "select id, sequence, status, reason, changed_at from messages where id in :ids order by id"
)
_OPEN = sa.text(
    "select m.id, m.message_id, m.status, m.run_id, p.provider from messages m join plans p on p.plan_id = m.plan_id "
    "where m.is_open and m.status in ('dispatching', 'unknown') order by m.id"
)
_UNKNOWN = sa.text("select message_id from messages where is_open and status = 'unknown' order by id")
_SETTLE = sa.text(
    "update messages set status = :status, reason = :reason, sequence = sequence + :steps, is_open = :is_open, "
    "changed_at = :at where id = :id and status = :old_status and run_id = :old_run"
)
# what the provider said before stays known
_SETTLED_CHANGE = sa.text(
    "insert into message_changes "
    "(message_row, sequence, status, reason, changed_at, subject, provider_message_id, provider_reply) "
    "select m.id, m.sequence, m.status, m.reason, m.changed_at, coalesce(c.subject, ''), "
    "coalesce(nullif(:provider_message_id, ''), c.provider_message_id, ''), "
    "coalesce(nullif(:provider_reply, ''), c.provider_reply, '') "
    "from messages m left join message_changes c on c.message_row = m.id and c.sequence = m.sequence - 1 "
    "where m.id = :id"
)
_LEFT = (
    "select m.id, m.run_id from messages m join plans p on p.plan_id = m.plan_id "
    "where m.is_open and m.status = 'claimed' and p.kind = :kind and p.name = :name and p.occurrence = :occurrence "
    "order by m.id for update of m"
)
_ABANDON = (
    "update messages set status = 'skipped', reason = 'left_audience', sequence = sequence + 1, is_open = false, "
    "changed_at = :at where id in :ids and status = 'claimed'"
)
_STANDING = "select message_id, status, reason from messages where message_id in :ids"
_ABOUT = (
    "select m.message_id, m.contact_id, m.email, p.kind, p.name, p.template, p.occurrence "
    "from messages m join plans p on p.plan_id = m.plan_id where m.message_id in :ids"
)
_SENT_UNEXPORTED = (
    "select m.message_id, m.contact_id, c.changed_at from message_changes c "
    "join messages m on m.id = c.message_row "
    "where not c.is_exported and c.status in ('sent', 'queued') and m.contact_id in :ids"
)
_COUNTS = sa.text(
    "select m.status, count(*) from messages m join plans p on p.plan_id = m.plan_id "
    "where p.kind = :kind and p.name = :name and p.occurrence = :occurrence group by m.status"
)
_TO_EXPORT = sa.text(
    "select c.id as change_id, m.message_id, c.sequence, c.status, c.reason, "
    "p.kind, p.name, p.version, p.occurrence, m.contact_id, m.email, p.channel, p.provider, p.category, p.template, "
    "p.template_version, p.segment, p.segment_version, p.experiment, m.variant, c.subject, "
    "c.provider_message_id, c.provider_reply, c.changed_at, m.details "
    "from message_changes c join messages m on m.id = c.message_row join plans p on p.plan_id = m.plan_id "
    "where not c.is_exported order by c.id limit :limit"
)
_ALLOWANCE = sa.text(
    "insert into allowances (name, day, used) values (:name, :day, 0) on conflict (name, day) do nothing"
)
_USE = sa.text("update allowances set used = used + :taken where name = :name and day = :day")
_USED = sa.text("select used from allowances where name = :name and day = :day")
_DEAD = sa.text(
    "select m.message_id, p.kind, p.name, p.occurrence, m.email, m.status, m.reason, m.changed_at, "  # noqa: S608
    f"{_TRIED} as tries, "
    "coalesce(c.provider_reply, '') as provider_reply "
    "from messages m join plans p on p.plan_id = m.plan_id "
    "left join message_changes c on c.message_row = m.id and c.sequence = m.sequence "
    "where (m.status = 'failed' or m.status = 'rejected' or m.status = 'invalid') and (m.status <> 'failed' "
    f"or m.reason not in {listed((Reason.DEFERRED, *SCHEDULED))} "
    f"or (m.reason = 'deferred' and {_TRIED} >= :tries)) "
    "and (:name = '' or p.name = :name) order by m.changed_at desc, m.id desc limit :limit"
)
_REVIVE = (
    "update messages set status = 'failed', reason = 'revived', sequence = sequence + 1, changed_at = :at "
    "where message_id in :ids and status in ('rejected', 'invalid', 'failed') returning id"
)
_DEFERRED = sa.text(
    "select p.kind, p.name, p.occurrence, "  # noqa: S608
    f"case when m.reason in {listed(AWAITED)} then m.reason else '' end as waits_for, "
    "count(*) as number, max(m.changed_at) as newest "
    "from messages m join plans p on p.plan_id = m.plan_id "
    "where (m.status = 'failed' or m.status = 'rejected' or m.status = 'invalid') and m.status = 'failed' "
    f"and (m.reason in {listed(SCHEDULED)} or (m.reason = 'deferred' and {_TRIED} < :tries)) "
    "group by 1, 2, 3, 4 order by newest"
)
_EXPORTED = "update message_changes set is_exported = true where id in :ids"
_LOCK = sa.text("update locks set taken = taken + 1 where name = :name")
