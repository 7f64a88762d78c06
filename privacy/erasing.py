# ruff: noqa: S608  (queries are put together from names of this package and the warehouse's own catalogue)
"""Erasing a person: a plan that is kept until all is done, in steps that may be repeated.

1. restrict: nobody writes to them any more; 2. refuse: hashes keep out what is loaded from now on; 3. find once more
what came meanwhile; 4. ledger; 5. streams; 6. what stays for accounting goes under a pseudonym; 7. rows go from every
table, and parts that held them; 8. logs of queries; 9. files; 10. free pages of databases; then the search for residue,
and last, if that is asked, the records in CRMs: one that does not answer keeps nothing else waiting.

The plan, in `erasures/` of the home folder, holds whom it is about and a secret from which new ids follow, and is the
last thing that goes: a process that dies at any point is taken up by the next `gdpr erase`, of anybody. What stays
cannot be led back to the person once that secret is gone.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import polars as pl
import sqlalchemy as sa

from privacy import files as stored_files
from privacy import restricting, streams
from privacy.person import Person, complete
from privacy.residue import Residue, any_needle, frame_of_needles, in_warehouse, log_tables
from privacy.stores import (
    DBT_ORDERS,
    Relation,
    StoreTable,
    all_tables,
    counted,
    quoted,
    require_registered,
    rows_of,
)
from senders.ledger import Ledger
from senders.settings import SenderSettings
from senders.tables import message_changes, messages, plans, runs, stream_events, trigger_firings
from warehouse.client import Warehouse
from warehouse.erasures import (
    REFRESH_SECONDS,
    erased_people,
    key_fingerprint,
    keyed_hash,
    normalised_email,
    record_key,
)
from warehouse.errors import InputError, MailhouseError, WarehouseError
from warehouse.loads import EVENT_COLUMNS, MAIL_EVENT_TYPES

FOLDER: Final = "erasures"
_WAIT_SECONDS = 30.0
_PURGE_SECONDS = 60.0
_CHUNK = 500
_ROWS = 20_000
_RECENT_MESSAGES = 5_000
_MAIL_PROPERTIES = ("bounce_class", "reject_reason", "is_machine")
_ITEM_TEXTS = ("product_id", "sku", "name", "category", "currency")
_ORDER_TEXTS = ("order_id", "currency", "country", "status")

Progress = Callable[[str], None]


@dataclass
class Plan:
    """One erasure under way.

    Attributes:
        pseudonym: what stands in place of the person's records; in `raw.erasures` and in rows that stay.
        secret: makes new ids of old ones; goes with the plan.
        done: steps that need not be repeated.
        in_crms: whether the records are to be deleted in CRMs, too.
    """

    erasure_id: str
    pseudonym: str
    secret: str
    person: Person
    actor: str = ""
    reason: str = ""
    subject: str = ""
    done: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    in_crms: bool = False

    @classmethod
    def new(
        cls, person: Person, *, actor: str = "", reason: str = "", subject: str = "", in_crms: bool = False
    ) -> Plan:
        """A plan for somebody who was found."""
        return cls(
            str(uuid.uuid4()),
            f"erased-{secrets.token_hex(12)}",
            secrets.token_hex(32),
            person,
            actor,
            reason,
            subject,
            in_crms=in_crms,
        )

    @property
    def contact_id(self) -> int:
        """The contact's number in rows that stay: below 0, as no contact's is."""
        return -(int.from_bytes(self._digest("contact", "")[:8], "big") >> 2) - 1

    def message_id(self, message_id: str) -> str:
        """The new id of a message."""
        return str(uuid.UUID(bytes=self._digest("message", message_id)[:16], version=4))

    def token(self, kind: str, text: str) -> str:
        """What stands in place of any other text."""
        return f"erased-{self._digest(kind, text).hex()[:24]}"

    def digest(self, kind: str, text: str) -> str:
        """The same as 64 hexadecimal digits."""
        return self._digest(kind, text).hex()

    def _digest(self, kind: str, text: str) -> bytes:
        return hmac.digest(bytes.fromhex(self.secret), f"{kind}\0{text}".encode(), "sha256")

    def save(self, home: Path) -> None:
        """Write it, whole or not at all, readable by its owner only."""
        path = self.path(home)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        person = {
            name: sorted([list(one) if isinstance(one, tuple) else one for one in values])
            for name, values in vars(self.person).items()
        }
        said = {**vars(self), "person": person}
        partial = path.with_suffix(f".{os.getpid()}.part")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(said).encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def path(self, home: Path) -> Path:
        """Where it is kept."""
        return home / FOLDER / f"{self.erasure_id}.json"

    def discard(self, home: Path) -> None:
        """Overwrite it and let it go."""
        for path in self.path(home).parent.glob(f"{self.erasure_id}.*"):
            stored_files.overwrite(path)
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path(home).parent.rmdir()


def unfinished(home: Path) -> list[Plan]:
    """Erasures that were begun and not ended, oldest first.

    Raises:
        InputError: a plan cannot be read.
    """
    found: list[Plan] = []
    for path in sorted((home / FOLDER).glob("*.json"), key=lambda one: one.stat().st_mtime):
        try:
            said = json.loads(path.read_bytes())
            person: dict[str, Any] = {
                name: {tuple(one) if isinstance(one, list) else one for one in values}
                for name, values in said.pop("person").items()
            }
            found.append(Plan(**{**said, "person": Person(**person)}))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}, which keeps an erasure that was begun, cannot be read: {type(error).__name__}.",
                fix="Put it back from a backup, or erase the person anew by name and delete the file.",
            ) from error
    return found


@dataclass
class Erased:
    """What an erasure came to: rows by store, and what is left."""

    counts: dict[str, int]
    residue: list[Residue]
    notes: list[str]


class ResidueError(MailhouseError):
    """Something of the person is left after an erasure.

    Args:
        residue: what, and where.
    """

    def __init__(self, residue: Sequence[Residue]) -> None:
        shown = "\n".join(f"  {one}" for one in residue)
        super().__init__(
            f"The person is erased, but for {len(residue)} places where something of them is left:\n{shown}",
            fix="Take it out there, or delete the file, then `mailhouse gdpr erase --resume`; nobody writes to them.",
        )
        self.residue = residue


@dataclass
class Place:
    """All that an erasure works on.

    Attributes:
        relations: what dbt's manifest knows.
        file_columns: see `privacy.files.Finder`.
        on_crm: deletes records, each a source and an id, in CRMs; returns why those that are still there are, '' for
            those that are not, and nothing of those that are in no CRM. Safe to repeat.
    """

    settings: SenderSettings
    warehouse: Warehouse
    ledger: Ledger
    relations: Sequence[Relation] = ()
    finder: stored_files.Finder | None = None
    on_crm: Callable[[Sequence[tuple[str, str]]], Mapping[tuple[str, str], str]] | None = None
    wait: float = 2 * REFRESH_SECONDS

    @property
    def files(self) -> stored_files.Finder:
        """Finds files of a person."""
        if self.finder is None:
            self.finder = stored_files.Finder(self.settings.home)
        return self.finder

    def tables(self) -> list[StoreTable]:
        """Every table of the warehouse."""
        return all_tables(self.warehouse, self.relations)


def planned(place: Place, person: Person) -> dict[str, int]:
    """What an erasure would take away or change: rows and files by store. Changes nothing."""
    require_registered(place.warehouse)
    counts = dict(counted(place.warehouse, place.tables(), person))
    counts |= ledger_counts(place.ledger, person)
    counts |= streams.counts(place.settings, place.ledger, person)
    counts |= Counter(f"files: {one.kind}" for one in place.files.find(person))
    return {name: rows for name, rows in counts.items() if rows}


def erase(place: Place, plan: Plan, on_progress: Progress = lambda _: None) -> Erased:
    """Carry out an erasure, from wherever it stopped. The plan goes when nothing is left.

    Raises:
        MailhouseError: a store or a CRM does not answer, or a message to the person is on its way; begin again later.
    """
    home = place.settings.home
    require_registered(place.warehouse)
    plan.save(home)
    notes: list[str] = []
    steps: list[tuple[str, Callable[[], None]]] = [
        ("restrict", lambda: _restrict(place, plan)),
        ("refuse", lambda: _refuse(place, plan)),
        ("find", lambda: _find_again(place, plan)),
        ("ledger", lambda: _ledger(place, plan)),
        ("streams", lambda: _count(plan, streams.erase(place.settings, place.ledger, plan.person))),
        ("pseudonyms", lambda: _pseudonyms(place, plan)),
        ("rows", lambda: _rows(place, plan)),
        ("logs", lambda: _logs(place, plan)),
        ("files", lambda: notes.extend(_files(place, plan))),
        ("databases", lambda: stored_files.compact(home, place.ledger)),
    ]
    with _no_export(place):
        for name, step in steps:
            on_progress(name)
            if name not in plan.done:
                step()
                plan.done.append(name)
                plan.save(home)
        on_progress("residue")
        left = residue(place, plan.person)
        if left:
            # what was on its way while we were at it
            for name, step in steps[2:]:
                on_progress(f"{name}, again")
                step()
            left = residue(place, plan.person)
    if left:
        plan.done = ["restrict", "refuse"]
        plan.save(home)
    on_progress("crms")
    notes += _crms(place, plan)
    if not left:
        restricting.forget(place.warehouse, plan.person)
        _purge(place.warehouse, ["raw.restrictions"])
        plan.discard(home)
    return Erased(dict(plan.counts), left, list(dict.fromkeys(notes)))


def residue(place: Place, person: Person) -> list[Residue]:
    """Everything that is left of a person, in every store."""
    tables = [
        one for one in place.tables() if one.name not in ("raw.restrictions", "raw.erasures", "raw.audit_log")
    ]
    left = list(in_warehouse(place.warehouse, tables, person))
    left += [
        Residue(name, "rows", rows) for name, rows in ledger_counts(place.ledger, person).items() if rows
    ]
    left += list(_in_ledger_text(place.ledger, person))
    left += [
        Residue(name, "events", rows)
        for name, rows in streams.counts(place.settings, place.ledger, person).items()
        if rows
    ]
    left += [Residue(str(one.path), one.reason) for one in place.files.find(person)]
    return left


@contextlib.contextmanager
def _no_export(place: Place) -> Iterator[None]:
    """Keep others from copying the ledger into the warehouse meanwhile: they would copy what was there before."""
    run = place.ledger.begin_run("export", "raw.messages", "", place.settings.now())
    try:
        until = time.monotonic() + _WAIT_SECONDS
        while not place.ledger.is_first(run):
            if time.monotonic() > until:
                raise InputError(
                    "The ledger is being copied into the warehouse.",
                    fix="Give the same command again in a moment.",
                )
            time.sleep(0.2)
        yield
    finally:
        place.ledger.end_run(run, "finished", place.settings.now())


def _count(plan: Plan, counts: dict[str, int]) -> None:
    for name, rows in counts.items():
        if rows:
            plan.counts[name] = plan.counts.get(name, 0) + rows


def _restrict(place: Place, plan: Plan) -> None:
    restricting.change(
        place.warehouse,
        plan.person,
        is_restricted=True,
        allows_transactional=False,
        reason="erasure",
        actor=plan.actor,
        now=place.settings.now(),
    )


def hashed_names(person: Person) -> Iterator[tuple[str, str]]:
    """All names by which somebody is recognised when they come again: kind and normalised text."""
    for kind, values in (
        ("email", person.emails),
        ("phone", person.phones),
        ("push_token", person.push_tokens),
    ):
        for value in sorted(values):
            yield kind, value
    for source, external_id in sorted(person.records):
        yield "record", record_key(source, external_id)
    for source, visitor in sorted(person.visitors):
        yield "anonymous_id", record_key(source, visitor)
    for contact_id in sorted(person.contact_ids):
        yield "contact_id", str(contact_id)
    for message_id in sorted(person.message_ids)[:_RECENT_MESSAGES]:
        yield "message_id", message_id


def note_hashes(
    warehouse: Warehouse, key: bytes, names: Iterable[tuple[str, str]], *, erasure_id: str, pseudonym: str,
) -> int:  # fmt: skip
    """Write hashes of names to `raw.erasures`; returns how many."""
    frame = pl.DataFrame(
        [(kind, keyed_hash(key, kind, value)) for kind, value in names],
        schema={"kind": pl.String(), "hash": pl.String()},
        orient="row",
    ).unique(maintain_order=True)
    return warehouse.insert(
        "raw.erasures",
        frame.with_columns(
            erasure_id=pl.lit(erasure_id),
            pseudonym=pl.lit(pseudonym),
            key_id=pl.lit(key_fingerprint(key)),
            is_readmitted=pl.lit(False),
        ),
    )


def _refuse(place: Place, plan: Plan) -> None:
    key = place.settings.erasure_secret()
    # under a key that others do not have, nobody would be refused
    erased_people(place.warehouse, max_age=0)
    note_hashes(
        place.warehouse, key, hashed_names(plan.person), erasure_id=plan.erasure_id, pseudonym=plan.pseudonym
    )
    erased_people(place.warehouse, max_age=0)
    # other processes look once in REFRESH_SECONDS, and may be in the midst of a load
    time.sleep(place.wait)


def _find_again(place: Place, plan: Plan) -> None:
    before = set(hashed_names(plan.person))
    complete(place.warehouse, place.ledger, plan.person)
    new = [one for one in hashed_names(plan.person) if one not in before]
    if new:
        note_hashes(
            place.warehouse, place.settings.erasure_secret(), new,
            erasure_id=plan.erasure_id, pseudonym=plan.pseudonym,
        )  # fmt: skip
        erased_people(place.warehouse, max_age=0)


# the ledger


def theirs(person: Person) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions that find the person's rows of `messages`, one after another."""
    for part in parts_of(sorted(person.contact_ids)):
        yield messages.c.contact_id.in_(part)
    for part in parts_of(sorted({*person.emails, *(one.lower() for one in person.spellings)})):
        yield sa.func.lower(messages.c.email).in_(part)
    for part in parts_of(sorted(person.message_ids)):
        yield messages.c.message_id.in_(part)


def parts_of(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many values at a time as a query may list."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def ledger_counts(ledger: Ledger, person: Person) -> dict[str, int]:
    """Rows about the person in the ledger's tables."""
    with ledger.engine.connect().execution_options(is_reading=True) as connection:
        rows = {
            row.id
            for where in theirs(person)
            for row in connection.execute(sa.select(messages.c.id).where(where))
        }
        changes = sum(
            connection.execute(
                sa.select(sa.func.count()).where(message_changes.c.message_row.in_(part))
            ).scalar_one()
            for part in parts_of(sorted(rows))
        )
        firings = len(firings_of(connection, person))
    return {
        name: number
        for name, number in (
            ("ledger messages", len(rows)), ("ledger message_changes", changes), ("ledger trigger_firings", firings)
        )
        if number
    }  # fmt: skip


def firings_of(connection: sa.Connection, person: Person) -> set[int]:
    """Ids of rows of `trigger_firings` about the person."""
    table = trigger_firings
    found: set[int] = set()
    for part in parts_of(sorted(person.contact_ids)):
        found |= set(connection.execute(sa.select(table.c.id).where(table.c.contact_id.in_(part))).scalars())
    for column, values in ((table.c.event_id, person.event_ids), (table.c.firing_id, person.message_ids)):
        for part in parts_of(sorted(values)):
            found |= set(connection.execute(sa.select(table.c.id).where(column.in_(part))).scalars())
    for email in sorted(person.emails):
        found |= set(
            connection.execute(
                sa.select(table.c.id).where(sa.func.lower(table.c.event).contains(email, autoescape=True))
            ).scalars()
        )
    return found


def _ledger(place: Place, plan: Plan) -> None:
    """Messages stay as counts under a pseudonym; the words of providers, subjects and firings go."""
    ledger, person = place.ledger, plan.person
    until = time.monotonic() + _WAIT_SECONDS
    while open_messages(ledger, person):
        if time.monotonic() > until:
            raise InputError(
                "A message to the person is on its way: a sender holds it. Nothing else has begun meanwhile.",
                fix="Wait for the run to end, or pause it, then give the same command again; it goes on from here.",
            )
        time.sleep(0.5)
    counts = ledger_counts(ledger, person)
    with ledger._writing(lock="claims") as connection:
        rows = {
            row.id: (row.message_id, row.plan_id, row.details)
            for where in theirs(person)
            for row in connection.execute(
                sa.select(messages.c.id, messages.c.message_id, messages.c.plan_id, messages.c.details).where(
                    where
                )
            )
        }
        for row_id, (message_id, _, details) in rows.items():
            connection.execute(
                messages.update()
                .where(messages.c.id == row_id)
                .values(
                    message_id=plan.message_id(message_id), contact_id=plan.contact_id, email="",
                    details=json.dumps(_kept_details(details)),
                )
            )  # fmt: skip
        for part in parts_of(sorted(rows)):
            connection.execute(
                message_changes.update()
                .where(message_changes.c.message_row.in_(part))
                .values(subject="", provider_message_id="", provider_reply="")
            )
        for part in parts_of(sorted({plan_id for _, plan_id, _ in rows.values()})):
            for row in connection.execute(sa.select(plans).where(plans.c.plan_id.in_(part))).mappings():
                if row["occurrence"] in person.event_ids:
                    token = plan.token("occurrence", row["occurrence"])
                    connection.execute(
                        plans.update()
                        .where(plans.c.plan_id == row["plan_id"])
                        # nothing is claimed under it again
                        .values(occurrence=token, digest=plan.digest("plan", str(row["plan_id"])))
                    )  # fmt: skip
        for part in parts_of(sorted(person.event_ids)):
            for row in connection.execute(
                sa.select(runs.c.run_id, runs.c.occurrence).where(runs.c.occurrence.in_(part))
            ).all():
                connection.execute(
                    runs.update()
                    .where(runs.c.run_id == row.run_id)
                    .values(occurrence=plan.token("occurrence", row.occurrence))
                )
        for part in parts_of(sorted(firings_of(connection, person))):
            connection.execute(trigger_firings.delete().where(trigger_firings.c.id.in_(part)))
    _count(plan, counts)


def _kept_details(details: str) -> dict[str, Any]:
    try:
        said = json.loads(details or "{}")
    except ValueError:
        return {}
    # whose name it was sent under, for the reputation of the domain
    return {"from_email": said["from_email"]} if isinstance(said, dict) and said.get("from_email") else {}


def open_messages(ledger: Ledger, person: Person) -> int:
    """Messages to the person that a sender who lives holds."""
    live = ledger.live_runs()
    with ledger.engine.connect().execution_options(is_reading=True) as connection:
        return len(
            {
                row.id
                for where in theirs(person)
                for row in connection.execute(
                    sa.select(messages.c.id, messages.c.run_id).where(where, messages.c.is_open)
                )
                if row.run_id in live
            }
        )


def _in_ledger_text(ledger: Ledger, person: Person) -> Iterator[Residue]:
    needles = person.needles()
    texts = [
        (messages, messages.c.email), (messages, messages.c.details), (message_changes, message_changes.c.subject),
        (message_changes, message_changes.c.provider_reply), (trigger_firings, trigger_firings.c.event),
        (trigger_firings, trigger_firings.c.event_id), (plans, plans.c.occurrence),
    ]  # fmt: skip
    with ledger.engine.connect().execution_options(is_reading=True) as connection:
        for table, column in texts:
            rows = 0
            for part in parts_of(needles):
                condition = sa.or_(
                    *(sa.func.lower(column).contains(one.lower(), autoescape=True) for one in part[:_CHUNK])
                )
                rows += connection.execute(
                    sa.select(sa.func.count()).select_from(table).where(condition)
                ).scalar_one()
            if rows:
                yield Residue(f"ledger {table.name}", f"column {column.name}", rows)
        pattern = any_needle(needles)
        waiting = sum(
            1
            for (payload,) in connection.execute(sa.select(stream_events.c.payload))
            if pattern.search(bytes(payload))
        )
        if waiting:
            yield Residue("ledger stream_events", "column payload", waiting)


# the warehouse


def _pseudonyms(place: Place, plan: Plan) -> None:
    """Copies of what must stay, under a pseudonym; those that are there already stay."""
    keys = plan.person.keys()
    by_name = {one.name: one for one in place.tables()}
    _copy_messages(place.warehouse, plan, by_name["raw.messages"], keys)
    _copy_events(place.warehouse, plan, by_name["raw.events"], keys)
    orders = next((one for one in by_name.values() if one.name.endswith(f".{DBT_ORDERS}")), None)
    if orders is not None and orders.condition:
        with scratch(place.warehouse, keys) as name:
            identity = f"toInt64(bitShiftRight(sipHash64(source::String, '{plan.pseudonym}', ''), 1))"
            _mutate(
                place.warehouse, orders, name,
                f"update identity_id = {identity}, identity_ids = [{identity}] where",
            )  # fmt: skip


def _copy_messages(warehouse: Warehouse, plan: Plan, table: StoreTable, keys: pl.DataFrame) -> None:
    there = warehouse.frame(
        "select message_id, sequence from raw.messages where contact_id = {contact_id:Int64}",
        {"contact_id": plan.contact_id},
    )
    names = [
        one
        for one in table.columns
        if one not in ("message_hash", "details", "email", "contact_id", "subject", "provider_message_id",
                       "provider_reply")
    ]  # fmt: skip
    listed = ", ".join(
        f"`{one}`::String as `{one}`" if "LowCardinality" in table.columns[one] else f"`{one}`"
        for one in names
    )
    found = rows_of(
        warehouse, table, keys, f"{listed}, ifNull(details.from_email::Nullable(String), '') as from_email"
    )
    if found.is_empty():
        return
    made = found.with_columns(
        message_id=pl.Series([plan.message_id(one) for one in found["message_id"]], dtype=pl.String()),
        occurrence=pl.Series(
            [
                plan.token("occurrence", one) if one in plan.person.event_ids else one
                for one in found["occurrence"]
            ],
            dtype=pl.String(),
        ),
        contact_id=pl.lit(plan.contact_id),
        details=pl.Series(
            [json.dumps({"from_email": one} if one else {}) for one in found["from_email"]], dtype=pl.String()
        ),
    ).drop("from_email")
    made = made.join(
        there.select("message_id", pl.col("sequence").cast(made.schema["sequence"])),
        on=["message_id", "sequence"],
        how="anti",
    )
    for part in made.iter_slices(_ROWS):
        warehouse.insert("raw.messages", part)


def _copy_events(warehouse: Warehouse, plan: Plan, table: StoreTable, keys: pl.DataFrame) -> None:
    """Orders keep products, amounts and days; what became of messages keeps what is counted. `loaded_at` stays, so that
    models that have taken them in do not take them in again.
    """
    there = set(
        warehouse.frame(
            "select event_id from raw.events where run_id = {run:String}", {"run": plan.pseudonym}
        )["event_id"].to_list()
    )
    kept = ", ".join(f"'{one}'" for one in MAIL_EVENT_TYPES)
    found = rows_of(
        warehouse,
        StoreTable(
            table.name, table.rule,
            f"({table.condition}) and (startsWith(type, 'order.') or (type in ({kept}) and {_MESSAGE_KNOWN}))",
            table.engine, table.columns,
        ),
        keys,
        "event_id, type::String as type, source::String as source, message_id, occurred_at, received_at,"
        " toJSONString(properties) as properties, loaded_at",
    )  # fmt: skip
    pattern = any_needle(plan.person.needles())
    rows: list[dict[str, Any]] = []
    for row in found.iter_rows(named=True):
        is_order = row["type"].startswith("order.")
        said = orjson.loads(row["properties"] or "{}")
        properties = _order_properties(said) if is_order else _mail_properties(said)
        text = orjson.dumps(properties)
        if pattern.search(text):
            text = pattern.sub(b"", text)
        is_telling = not is_order or pattern.search(row["event_id"].encode())
        event_id = plan.token("event", row["event_id"]) if is_telling else row["event_id"]
        if event_id in there:
            continue
        rows.append(
            {
                **row, "event_id": event_id, "external_id": plan.pseudonym if is_order else "", "email": "",
                "anonymous_id": "", "esp_event": "", "properties": text.decode(), "run_id": plan.pseudonym,
                "message_id": "" if is_order else plan.message_id(row["message_id"]),
            }
        )  # fmt: skip
    if rows:
        frame = pl.DataFrame(rows, infer_schema_length=None).select(*EVENT_COLUMNS, "loaded_at", "run_id")
        for part in frame.iter_slices(_ROWS):
            warehouse.insert("raw.events", part)


_MESSAGE_KNOWN: Final = "message_id in (select value from keys where kind = 'message')"


def _order_properties(said: Any) -> dict[str, Any]:
    """What of an order's properties says nothing of who ordered: numbers, products, ids of the invoice, the country."""
    if not isinstance(said, dict):
        return {}
    kept: dict[str, Any] = {
        name: value
        for name, value in said.items()
        if isinstance(value, bool | int | float) or (name in _ORDER_TEXTS and isinstance(value, str))
    }
    items = said.get("items")
    if isinstance(items, list):
        kept["items"] = [
            {
                name: value
                for name, value in one.items()
                if isinstance(value, bool | int | float)
                or (isinstance(value, str) and (name in _ITEM_TEXTS or _is_number(value)))
            }
            for one in items
            if isinstance(one, dict)
        ]
    # amounts are written as text where digits must not be lost
    kept |= {
        name: value for name, value in said.items() if isinstance(value, str) and _is_amount(name, value)
    }
    return kept


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_amount(name: str, value: str) -> bool:
    return _is_number(value) and name in (
        "total",
        "revenue",
        "tax",
        "shipping",
        "discount",
        "subtotal",
        "amount",
    )


def _mail_properties(said: Any) -> dict[str, Any]:
    return {name: said[name] for name in _MAIL_PROPERTIES if name in said} if isinstance(said, dict) else {}


def _rows(place: Place, plan: Plan) -> None:
    """Delete the person's rows from every table, and see to it that no part keeps them."""
    warehouse, keys = place.warehouse, plan.person.keys()
    tables = [
        one
        for one in place.tables()
        if one.rule.action in ("delete", "pseudonymise") and not one.name.endswith(f".{DBT_ORDERS}")
    ]
    counts = counted(warehouse, tables, plan.person)
    with scratch(warehouse, keys) as name:
        # what others are made of goes last: a crash leaves enough to find the rest by
        order = sorted(
            (one for one in tables if one.name in counts),
            key=lambda one: (
                one.name == "intermediate.int_contacts__identified",
                one.name.startswith("raw."),
            ),
        )
        for table in order:
            _mutate(warehouse, table, name, "delete where")
    _count(plan, counts)
    orders = [one.name for one in place.tables() if one.name.endswith(f".{DBT_ORDERS}")]
    _purge(warehouse, [*counts, *orders])


@contextlib.contextmanager
def scratch(warehouse: Warehouse, keys: pl.DataFrame) -> Iterator[str]:
    """The keys as a table that mutations can read: in memory alone, so that neither it nor the text of a mutation,
    which the server keeps on its disk, has anything of the person.
    """
    name = f"raw.erasing_{uuid.uuid4().hex}"
    engine = "MergeTree order by kind" if warehouse.cluster.has_replicas else "Memory"
    warehouse.define(f"create table {name} (kind String, value String, number Int64) engine = {engine}")
    try:
        warehouse.insert(name, keys)
        yield name
    finally:
        warehouse.define(f"drop table {name} sync")


def _mutate(warehouse: Warehouse, table: StoreTable, keys_table: str, what: str) -> None:
    condition = _from_keys(table.condition, keys_table)
    settings = {
        "mutations_sync": "2", "max_query_size": "10000000", "allow_nondeterministic_mutations": "1",
        "transform_null_in": "0", "validate_mutation_query": "0",
    }  # fmt: skip
    warehouse.execute(f"alter table {quoted(table.name)} {what} {condition}", settings=settings)


def _from_keys(condition: str, keys_table: str) -> str:
    return condition.replace(" from keys", f" from {keys_table}")


def _purge(warehouse: Warehouse, names: Iterable[str]) -> None:
    """Let parts that have been replaced go now rather than in minutes, and rows that were only marked as deleted."""
    names = [
        one for one in sorted(set(names))
        if warehouse.value(
            "select count() from system.tables where concat(database, '.', name) = {name:String}", {"name": one}
        )
    ]  # fmt: skip
    masked = warehouse.frame(
        """
        select distinct concat(database, '.', table) as name from system.parts
        where active and has_lightweight_delete and concat(database, '.', table) in {names:Array(String)}
        """,
        {"names": names},
    )
    for name in masked["name"].to_list():
        warehouse.execute(f"alter table {quoted(name)} apply deleted mask", settings={"mutations_sync": "2"})
    lingering = _inactive(warehouse, names)
    for name in lingering:
        warehouse.define(f"alter table {name} modify setting old_parts_lifetime = 1")
    try:
        until = time.monotonic() + _PURGE_SECONDS
        while (left := _inactive(warehouse, lingering)) and time.monotonic() < until:
            time.sleep(1.1)
            for name in left:
                # there is no such partition: what a table does after dropping one is to delete old parts, and else it
                # may sleep for minutes; where that is not allowed, it is waited for
                with contextlib.suppress(WarehouseError):
                    warehouse.execute(f"alter table {quoted(name)} drop partition id 'nobody'")
    finally:
        for name in lingering:
            warehouse.define(f"alter table {name} reset setting old_parts_lifetime")


def _inactive(warehouse: Warehouse, names: Sequence[str]) -> list[str]:
    rows = warehouse.frame(
        """
        select distinct concat(database, '.', table) as name from system.parts
        where not active and rows > 0 and concat(database, '.', table) in {names:Array(String)} order by name
        """,
        {"names": list(names)},
    )
    return rows["name"].to_list()


def _logs(place: Place, plan: Plan) -> None:
    """Queries that name the person, where the server keeps a log of queries."""
    needles = plan.person.needles()
    for name, columns in log_tables(place.warehouse):
        keys = frame_of_needles(needles).select(
            kind=pl.lit("needle"), value="needle", number=pl.lit(0, pl.Int64())
        )
        with scratch(place.warehouse, keys) as kept:
            texts = " or ".join(
                f"multiSearchAnyCaseInsensitive(toString(`{column}`),"
                f" (select groupArray(value) from {kept} where kind = 'needle'))"
                for column in columns
            )
            found = place.warehouse.value(f"select count() from system.`{name}` where {texts}")
            if found:
                place.warehouse.execute(
                    f"alter table system.`{name}` delete where {texts}",
                    settings={"mutations_sync": "2", "log_queries": "0"},
                )
                _count(plan, {f"system.{name}": int(found)})


# files


def _files(place: Place, plan: Plan) -> list[str]:
    notes: list[str] = []
    for one in place.files.find(plan.person):
        place.files.erase(one, plan.person)
        _count(plan, {f"files: {one.kind}": 1})
    waiting = place.warehouse.value(
        "select count() from system.parts where not active and database != 'system'"
    )
    dropped = place.warehouse.value("select count() from system.dropped_tables where database != 'system'")
    if waiting or dropped:
        notes.append(
            f"The server still has {waiting} parts that were replaced and {dropped} tables that were dropped, for all"
            " reasons, on its disk; it deletes them by itself within minutes."
        )
    notes += [
        f"{path} lies outside of the home folder and has rows of the person: take them out where it comes from."
        for path in place.files.outside(plan.person)
    ]
    return notes


def _crms(place: Place, plan: Plan) -> list[str]:
    """Delete the person's records where they come from; what is left to be done by hand."""
    records = sorted(one for one in plan.person.records if one[0])
    told = place.on_crm(records) if place.on_crm and plan.in_crms and records else {}
    away = Counter(source for (source, _), reason in told.items() if not reason)
    # no sum: whoever goes on with a plan deletes again what is deleted
    plan.counts |= {f"crm: {source}": count for source, count in away.items()}
    return [
        f"Delete {external_id} in {source}, and with it what {source} itself holds"
        + (f": {told[source, external_id].rstrip('.')}." if (source, external_id) in told else ".")
        for source, external_id in sorted(plan.person.records)
        if told.get((source, external_id)) != ""
    ]


def readmit(place: Place, *, email: str = "", record: str = "") -> int:
    """Let somebody who was erased be loaded again, under all names that were erased with this one; returns how many.

    Args:
        record: `source:external_id`.
    """
    key = place.settings.erasure_secret()
    erased_people(place.warehouse, max_age=0)
    hashes = []
    if email:
        hashes.append(keyed_hash(key, "email", normalised_email(email)))
    if record:
        source, _, external_id = record.partition(":")
        hashes.append(keyed_hash(key, "record", record_key(source, external_id)))
    rows = place.warehouse.frame(
        """
        select kind::String as kind, hash, any(made.erasure_id) as erasure_id, any(made.pseudonym) as pseudonym,
            any(made.key_id::String) as key_id
        from raw.erasures as made
        where made.erasure_id in (select erasure_id from raw.erasures where hash in {hashes:Array(String)})
        group by kind, hash having not argMax(is_readmitted, recorded_at)
        """,
        {"hashes": hashes},
    )
    place.warehouse.insert("raw.erasures", rows.with_columns(is_readmitted=pl.lit(True)))
    erased_people(place.warehouse, max_age=0)
    return rows.height
