# ruff: noqa: S608  (queries are put together from names of this module)
"""Whom events concern: the contact that dbt gives them, or will give them once it is built.

As `int_contacts__identified` has it (`dbt_project/macros/identity.sql`). Keys are hashed here, so that what the
warehouse is asked is one look-up by key, and one more each where an event names a message that the ledger does not
know, a record that dbt has not seen, or nothing but a visitor. Merges and splits by hand count before they are built
(`campaigns.merging`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import polars as pl

from campaigns.machines import MachineRules
from campaigns.merging import Merges
from campaigns.siphash import (
    contact_of,
    identity_of,
    identity_of_message,
    normalised_email,
    person_of,
    visitor_of,
)
from warehouse.client import Warehouse

MESSAGE_COLUMNS: Final[dict[str, pl.DataType]] = {
    "message_id": pl.String(),
    "contact_id": pl.Int64(),
    "email": pl.String(),
    "kind": pl.String(),
    "name": pl.String(),
    "template": pl.String(),
    "occurrence": pl.String(),
}
"""What is known of messages that events are about."""

_WORDS = ("kind", "name", "template", "occurrence")
_NOTHING: Final[tuple[Any, ...]] = (0, "", "", "", "", "")
_RULES_SECONDS = 30.0
_MERGES_SECONDS = 10.0
_TOLD_DAYS = 2
"""How far back a visitor's being named may have been loaded and not be built yet."""
_MOST_PARAMETERS = 500  # keys that travel in the query; more go as a table, which costs twice as much for few

Guess = Callable[[Collection[int]], None]
"""Is told which contacts the events will most likely lead to, before the warehouse was asked."""


def keyed_frame(
    warehouse: Warehouse,
    sql: str,
    keys: Collection[Any],
    kind: str = "Int64",
    parameters: dict[str, Any] | None = None,
) -> pl.DataFrame:
    """Run a query with keys; `{keys}` in it stands for what comes after `in`.

    Args:
        kind: ClickHouse type of a key: Int64 or String.
    """
    wanted = list(keys)
    if len(wanted) <= _MOST_PARAMETERS:
        given = {**(parameters or {}), "keys": wanted}
        return warehouse.frame(sql.replace("{keys}", f"{{keys:Array({kind})}}"), given)
    frame = pl.DataFrame({"key": pl.Series(wanted, dtype=pl.Int64() if kind == "Int64" else pl.String())})
    return warehouse.frame(
        sql.replace("{keys}", "(select key from given_keys)"), parameters, external={"given_keys": frame}
    )


class _Known(NamedTuple):
    """What the marts say of an identity."""

    contact_id: int
    named_contact_id: int
    own_contact_id: int
    kind: str


@dataclass
class Resolver:
    """Finds contacts. Safe to share between threads.

    Args:
        prefix: what stands before the names of dbt's databases.
        tables: those of dbt that there are, as `database.table`.
    """

    warehouse: Warehouse
    prefix: str
    tables: Callable[[], frozenset[str]]
    pool: Executor
    _rules: MachineRules = field(default_factory=MachineRules, init=False)
    _rules_at: float = field(default=-1e9, init=False)
    _merges_at: float = field(default=-1e9, init=False)

    def __post_init__(self) -> None:
        self.merges = Merges(self.warehouse, self.prefix, self.tables)

    def resolved(
        self, hints: pl.DataFrame, messages: pl.DataFrame | None = None, *, guess: Guess | None = None
    ) -> pl.DataFrame:
        """Of each row `contact_id`, `is_machine`, and `message_email`, `_kind`, `_name`, `_template`, `_occurrence`.

        Args:
            hints: any of `event_id`, `type`, `source`, `external_id`, `email`, `message_id`, `properties`, and for
                visitors `anonymous_id` with `occurred_at`.
            messages: columns of `MESSAGE_COLUMNS`, of messages that the warehouse may not know.
        """
        height = hints.height
        if time.monotonic() - self._merges_at >= _RULES_SECONDS:
            self._look_at_merges()

        def texts(name: str) -> list[str]:
            if name not in hints.columns:
                return [""] * height
            found = hints[name].to_list()
            return [one or "" for one in found] if hints[name].null_count() else found

        sources, records, emails = texts("source"), texts("external_id"), texts("email")
        about = self._about(texts("message_id"), messages)
        keys: list[tuple[int, int, int, int, int]] = []
        for source, record, email, message in zip(sources, records, emails, about, strict=True):
            address, said = normalised_email(email), normalised_email(message[1])
            keys.append(
                (
                    identity_of(source, record, "") if record else 0,
                    identity_of("", "", address),
                    identity_of_message(message[0], said) if message[0] else 0,
                    identity_of("", "", said),
                    contact_of(address) if address else 0,
                )
            )
        if guess is not None:
            guess({message[0] or own for message, (*_, own) in zip(about, keys, strict=True)} - {0})
        existing = self.pool.submit(self._existing, {message[0] for message in about if message[0]})
        visits = self._visits(hints, [not (key[0] or key[1] or key[2]) for key in keys])
        known = self._known({key for *four, _ in keys for key in four if key})
        contacts = {identity: self._now(identity, one) for identity, one in known.items()}
        accounts = {identity for identity, one in known.items() if one.kind == "account"}
        people = existing.result()
        found: list[int] = []
        unseen: list[int] = []
        for place, (record, email, message, sent, own) in enumerate(keys):
            contact, said = 0, about[place][0]
            if said:
                # as int_contacts__identified: a contact that has merged into another is found by the address
                contact = (
                    self.merges.split(sent)
                    or contacts.get(message, 0)
                    or (said if said in people else contacts.get(sent, said))
                )
            elif record in contacts and record not in accounts:
                contact = contacts[record]
            elif record:
                unseen.append(place)
            # an address says more than an account that no CRM knows
            found.append(contact or contacts.get(email, 0) or own or contacts.get(record, 0))
        if unseen:
            # records that dbt has not seen yet: the first email ever loaded names the contact
            fresh = self._fresh_records({(sources[place], records[place]) for place in unseen})
            for place in unseen:
                found[place] = fresh.get((sources[place], records[place]), found[place])
            nameless = [place for place in unseen if not found[place]]
            if nameless:
                fresh = self._fresh_accounts({(sources[place], records[place]) for place in nameless})
                for place in nameless:
                    found[place] = fresh.get((sources[place], records[place]), 0)
        if visits is not None:
            for place, contact in visits.result().items():
                found[place] = contact
        if self.merges.is_needed:
            found = [self.merges.contact(one) if one else 0 for one in found]
        machines = self._machines(texts("type"), texts("properties"))
        return pl.DataFrame(
            {
                "contact_id": pl.Series(found, dtype=pl.Int64()),
                "is_machine": pl.Series(machines, dtype=pl.Boolean()),
                "message_email": pl.Series([one[1] for one in about], dtype=pl.String()),
                **{
                    f"message_{name}": pl.Series([one[2 + place] for one in about], dtype=pl.String())
                    for place, name in enumerate(_WORDS)
                },
            }
        )

    def _about(self, message_ids: Sequence[str], messages: pl.DataFrame | None) -> list[tuple[Any, ...]]:
        """Contact, email and words of each row's message."""
        if not any(message_ids):
            return [_NOTHING] * len(message_ids)
        known: dict[str, tuple[Any, ...]] = {}
        if messages is not None:
            for message_id, contact, *words in messages.select(*MESSAGE_COLUMNS).iter_rows():
                known.setdefault(message_id, (contact or 0, *(word or "" for word in words)))
        missing = {one for one in message_ids if one and known.get(one, _NOTHING)[0] == 0}
        if missing:
            stored = keyed_frame(
                self.warehouse,
                """
                select message_id, any(contact_id) as contact_id, any(email) as email, any(kind)::String as kind,
                    any(name)::String as name, any(template)::String as template, any(occurrence) as occurrence
                from raw.messages where message_id in {keys} group by message_id
                """,
                missing,
                "String",
            )
            known |= {message_id: (contact, *words) for message_id, contact, *words in stored.iter_rows()}
        return [known.get(one, _NOTHING) for one in message_ids]

    def _known(self, keys: Collection[int]) -> dict[int, _Known]:
        if not keys or "intermediate.int_contacts__identified" not in self.tables():
            return {}
        found = keyed_frame(
            self.warehouse,
            "select identity_id, contact_id, named_contact_id, own_contact_id, kind::String as kind"
            f" from {self.prefix}intermediate.int_contacts__identified where identity_id in {{keys}}",
            keys,
        )
        return {identity: _Known(*rest) for identity, *rest in found.iter_rows()}

    def _now(self, identity: int, known: _Known) -> int:
        """The contact of an identity by what is decided now; the marts' own where nothing ever was."""
        if not self.merges.is_needed:
            return known.contact_id
        named = known.named_contact_id
        if known.kind in ("record", "email", "account"):
            named = self.merges.split(identity) or known.own_contact_id
        return self.merges.contact(named)

    def _visits(self, hints: pl.DataFrame, is_nobody: Sequence[bool]) -> Future[dict[int, int]] | None:
        """Asks for the contacts of rows that name nothing but a visitor, by place; none if there is no such row."""
        if not any(is_nobody) or not {"source", "anonymous_id", "occurred_at"} <= set(hints.columns):
            return None
        rows = hints.select(
            pl.col("source", "anonymous_id").fill_null(""),
            pl.col("occurred_at").cast(pl.Datetime("ms", "UTC")),
        )
        asked = {
            place: (source, anonymous_id, at)
            for place, (nobody, (source, anonymous_id, at)) in enumerate(
                zip(is_nobody, rows.iter_rows(), strict=True)
            )
            if nobody and anonymous_id
        }
        if not asked:
            return None
        # who is named in the same rows is not stored yet
        told = [
            (
                visitor_of(source, anonymous_id),
                at,
                person_of(source, record or "", normalised_email(email or "")),
                email or "",
            )
            for (source, anonymous_id, at), (record, email) in zip(
                rows.iter_rows(), hints.select("external_id", "email").iter_rows(), strict=True
            )
            if anonymous_id and (record or email)
        ] if {"external_id", "email"} <= set(hints.columns) else []  # fmt: skip
        return self.pool.submit(self._visitors, asked, told)

    def _visitors(
        self,
        asked: dict[int, tuple[str, str, datetime]],
        told: list[tuple[int, datetime, int, str]],
    ) -> dict[int, int]:
        """Contacts of visitors, as `int_visitors__shared`: who was named last, before the first the first."""
        visitors = {
            visitor_of(source, anonymous_id): anonymous_id for source, anonymous_id, _ in asked.values()
        }
        turns: dict[int, list[tuple[datetime, int]]] = {visitor: [] for visitor in visitors}
        addresses: dict[int, str] = {}
        fresh = keyed_frame(
            self.warehouse,
            """
            select source::String as source, anonymous_id, occurred_at, external_id,
                lower(trim(both ' \t\r\n' from email)) as email
            from raw.events
            where anonymous_id in {keys} and (external_id != '' or email != '')
                and loaded_at > now64(3, 'UTC') - toIntervalDay({days:UInt16})
            """,
            set(visitors.values()),
            "String",
            {"days": _TOLD_DAYS},
        )
        rows = [
            (visitor_of(source, anonymous_id), at, person_of(source, record, email), email)
            for source, anonymous_id, at, record, email in fresh.iter_rows()
        ]
        for visitor, at, person, email in sorted([*rows, *told], key=lambda one: _utc(one[1])):
            if visitor in turns:
                turns[visitor].append((_utc(at), person))
                if email:
                    # what leads to an account that the marts do not know is the address first told with it
                    addresses.setdefault(person, normalised_email(email))
        built = self._known(visitors)
        if "intermediate.int_visitors__shared" in self.tables():
            stored = keyed_frame(
                self.warehouse,
                "select visitor_id, tupleElement(turn, 1) as at, tupleElement(turn, 2) as person from ("
                " select visitor_id, arrayJoin(turns) as turn"
                f" from {self.prefix}intermediate.int_visitors__shared final where visitor_id in {{keys}})",
                list(visitors),
            )
            for visitor, at, person in stored.iter_rows():
                turns[visitor].append((_utc(at), person))
        people = self._known(
            {person for one in turns.values() for _, person in one}
            | {identity_of("", "", address) for address in addresses.values()}
        )
        made: dict[int, int] = {}
        for place, (source, anonymous_id, at) in asked.items():
            visitor = visitor_of(source, anonymous_id)
            known = sorted(turns[visitor])
            before = [person for moment, person in known if moment <= _utc(at)]
            if not before and visitor in built:
                # the visitor's own identity is that of whoever was named first
                made[place] = self._now(visitor, built[visitor])
                continue
            person = before[-1] if before else known[0][1] if known else 0
            if person in people:
                made[place] = self._now(person, people[person])
            elif address := addresses.get(person):
                identity = identity_of("", "", address)
                made[place] = (
                    self._now(identity, people[identity]) if identity in people else contact_of(address)
                )
            else:
                made[place] = 0
        return made

    def _existing(self, contacts: Collection[int]) -> set[int]:
        """Those of these contacts that marts have."""
        if not contacts or "marts.contact_profiles" not in self.tables():
            return set()
        found = keyed_frame(
            self.warehouse,
            f"select contact_id from {self.prefix}marts.contact_profiles where contact_id in {{keys}}",
            contacts,
        )
        return set(found["contact_id"])

    def _fresh_records(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        found = self.warehouse.frame(
            """
            select source, external_id, argMin(email, (email = '', loaded_at, updated_at)) as first_email
            from (
                select source::String as source, external_id, loaded_at, updated_at,
                    lower(trim(both ' \\t\\r\\n' from coalesce(properties.email::Nullable(String), ''))) as email
                from raw.crm_records
                where object = 'contact' and (source, external_id) in (select source, external_id from keys)
            )
            group by source, external_id
            """,
            external={"keys": pl.DataFrame(list(keys), schema=["source", "external_id"], orient="row")},
        )
        return {
            (source, key): contact_of(email or f"{source}:{key}") for source, key, email in found.iter_rows()
        }

    def _fresh_accounts(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Ids that neither dbt nor a CRM knows, by the address that was first told with them lately."""
        found = self.warehouse.frame(
            """
            select source::String as source, external_id,
                argMin(lower(trim(both ' \\t\\r\\n' from email)), (occurred_at, email)) as first_email
            from raw.events
            where loaded_at > now64(3, 'UTC') - toIntervalDay({days:UInt16}) and email != ''
                and (source, external_id) in (select source, external_id from keys)
            group by source, external_id
            """,
            {"days": _TOLD_DAYS},
            external={"keys": pl.DataFrame(list(keys), schema=["source", "external_id"], orient="row")},
        )
        addresses = {identity_of("", "", email) for *_, email in found.iter_rows()}
        known = self._known(addresses)
        return {
            (source, key): self._now(identity, known[identity])
            if (identity := identity_of("", "", email)) in known
            else contact_of(email)
            for source, key, email in found.iter_rows()
        }

    def _machines(self, types: Sequence[str], properties: Sequence[str]) -> list[bool]:
        if any("user_agent" in one for one in properties):
            self.look()
        judge = self._rules.is_machine
        return [judge(kind, text) for kind, text in zip(types, properties, strict=True)]

    def _look_at_merges(self) -> None:
        self.merges.look()
        self._merges_at = time.monotonic()

    def look(self) -> None:
        """Read the rules about machines, and what was decided by hand, if it is long ago."""
        now = time.monotonic()
        if now - self._merges_at >= _MERGES_SECONDS:
            self._look_at_merges()
        if now - self._rules_at < _RULES_SECONDS:
            return
        if "staging.machine_rules" in self.tables():
            found = self.warehouse.frame(
                f"select field::String, event_type::String, pattern from {self.prefix}staging.machine_rules"
            )
            self._rules = MachineRules.of(found.iter_rows())
        self._rules_at = now


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def loads_of(warehouse: Warehouse, events: pl.DataFrame) -> pl.DataFrame:
    """`event_id` and `loaded_at` of events that `raw.events` has: what a mart has taken in is told by that time.

    Args:
        events: `type`, `occurred_at`, `event_id`.
    """
    return warehouse.frame(
        "select event_id, min(loaded_at) as loaded_at from raw.events"
        " where (type, occurred_at, event_id) in (select type, occurred_at, event_id from hints) group by event_id",
        external={"hints": events.select("type", "occurred_at", "event_id").unique()},
    ).with_columns(pl.col("loaded_at").cast(pl.Datetime("ms", "UTC")))


__all__ = ["MESSAGE_COLUMNS", "Guess", "Resolver", "keyed_frame", "loads_of"]
