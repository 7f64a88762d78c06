# ruff: noqa: S608  (queries are put together from names of this module)
"""Finding a person: from one name to all names under which rows of theirs may stand.

What dbt has settled comes first (`int_contacts__identified`): which records and addresses lead to a contact. What was
loaded since is followed in the raw tables: records with an address of the person that dbt has given to nobody else, and
all addresses that their records ever had. So somebody who shares an address with another contact, or had one that is
another's now, is not taken for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl
import sqlalchemy as sa

from campaigns.siphash import identity_of, identity_of_message, sip_hash
from senders.ledger import Ledger
from senders.tables import messages
from warehouse.client import Warehouse
from warehouse.erasures import (
    EMAIL_PROPERTIES,
    PHONE_PROPERTIES,
    normalised_email,
    normalised_phone,
    record_key,
)
from warehouse.errors import InputError

IDENTITIES: Final = "intermediate.int_contacts__identified"
KEY_SCHEMA: Final = {"kind": pl.String(), "value": pl.String(), "number": pl.Int64()}
_SHORTEST_PHONE, _LONG_PHONE = 7, 9
_ROUNDS = 20


@dataclass
class Person:
    """All names of one person, normalised.

    Attributes:
        records: (source, external_id). visitors: (source, anonymous_id).
        event_ids: of events about the person. order_ids: those of them that are orders, which stay under a pseudonym.
        identity_ids: what dbt calls the person in tables between raw and marts.
        spellings: addresses and numbers as they stand in raw rows, where that is not how they are normalised.
    """

    contact_ids: set[int] = field(default_factory=set)
    emails: set[str] = field(default_factory=set)
    phones: set[str] = field(default_factory=set)
    push_tokens: set[str] = field(default_factory=set)
    records: set[tuple[str, str]] = field(default_factory=set)
    visitors: set[tuple[str, str]] = field(default_factory=set)
    message_ids: set[str] = field(default_factory=set)
    event_ids: set[str] = field(default_factory=set)
    order_ids: set[str] = field(default_factory=set)
    identity_ids: set[int] = field(default_factory=set)
    spellings: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.contact_ids or self.emails or self.records)

    def keys(self) -> pl.DataFrame:
        """The names as rows of `kind`, `value`, `number`, which conditions of `privacy.stores` look up."""
        rows: list[tuple[str, str, int]] = [("contact", "", one) for one in sorted(self.contact_ids)]
        rows += [("identity", "", one) for one in sorted(self.identity_ids)]
        rows += [("record", record_key(*one), 0) for one in sorted(self.records)]
        rows += [("visitor", record_key(*one), 0) for one in sorted(self.visitors)]
        for kind, values in (
            ("email", self.emails), ("phone", self.phones), ("token", self.push_tokens),
            ("message", self.message_ids), ("event", self.event_ids - self.order_ids), ("order", self.order_ids),
        ):  # fmt: skip
            rows += [(kind, one, 0) for one in sorted(values)]
        return pl.DataFrame(rows, schema=KEY_SCHEMA, orient="row")

    def needles(self) -> list[str]:
        """Texts that name this person and hardly anybody else, wherever they stand: what residue is searched for.

        Ids of a few characters and names of people are in everybody's rows, and are looked for in their columns alone.
        """
        wide = {*self.emails, *self.push_tokens, *self.message_ids, *self.spellings}
        wide |= {one for one in self.phones if len(one) >= _LONG_PHONE}
        wide |= {str(one) for one in self.contact_ids}
        wide |= {one for _, one in (*self.records, *self.visitors) if len(one) >= 12 and not one.isdigit()}
        return sorted(one for one in wide if len(one) >= 6)


def find_person(
    warehouse: Warehouse,
    ledger: Ledger,
    *,
    contact_id: int = 0,
    email: str = "",
    phone: str = "",
    record: str = "",
) -> Person:
    """All names of the person that one name leads to.

    Args:
        record: `source:external_id`.

    Raises:
        InputError: nothing is held of anybody by that name, or no name was given.
    """
    person = Person()
    if contact_id:
        person.contact_ids.add(contact_id)
    if email:
        person.emails.add(normalised_email(email))
    if phone:
        person.phones.add(normalised_phone(phone))
    if record:
        source, colon, external_id = record.partition(":")
        if not colon or not external_id:
            raise InputError(f"{record!r} is no record.", fix="Write source:external_id, like hubspot:151.")
        person.records.add((source, external_id))
    if not (contact_id or email or phone or record):
        raise InputError("Nobody was named.", fix="Give --contact, --email, --phone or --record.")
    complete(warehouse, ledger, person)
    if not is_held(warehouse, person):
        raise InputError(
            "Nothing is held of anybody by that name.",
            fix="Try another: --contact ID, --email ADDRESS, --phone NUMBER or --record SOURCE:ID.",
        )
    return person


def complete(warehouse: Warehouse, ledger: Ledger, person: Person) -> None:
    """Follow the names of a person to all others, until none is new."""
    has_identities = _has(warehouse, IDENTITIES)
    for _ in range(_ROUNDS):
        before = _size(person)
        if person.phones:
            _by_phone(warehouse, person)
        if has_identities:
            _by_identity(warehouse, person)
        _by_records(warehouse, person, has_identities=has_identities)
        _by_ledger(warehouse, ledger, person, has_identities=has_identities)
        if _size(person) == before:
            break
    _hints(warehouse, person)
    if has_identities:
        # a contact that dbt gave to the person before it merged into today's; unless somebody is it today
        rows = _asked(
            warehouse,
            person,
            f"""
            select distinct previous_contact_id from {IDENTITIES}
            where contact_id in (select number from keys where kind = 'contact') and previous_contact_id != 0
                and previous_contact_id not in (select contact_id from {IDENTITIES})
            """,
        )
        person.contact_ids |= set(rows["previous_contact_id"].to_list())
    _by_ledger(warehouse, ledger, person, has_identities=has_identities)
    _identity_ids(warehouse, person, has_identities=has_identities)


def is_held(warehouse: Warehouse, person: Person) -> bool:
    """Whether anything is held of a person, rather than their name being made up."""
    found = _asked(
        warehouse,
        person,
        f"""
        select
            (select count() from raw.crm_records where {RECORD_SQL})
            + (select count() from raw.events where {HINT_SQL} or message_id in {_of("message")})
            + (select count() from raw.consents where {HINT_SQL})
            + (select count() from raw.messages where contact_id in (select number from keys where kind = 'contact'))
            as rows
        """,
    )
    return bool(found.item()) or bool(person.message_ids)


def _of(kind: str) -> str:
    return f"(select value from keys where kind = '{kind}')"


def email_sql(column: str) -> str:
    """A column's address, normalised as by `normalised_email`."""
    return f"lower(trim(both ' \\t\\r\\n' from ifNull({column}, '')))"


def phone_sql(column: str) -> str:
    """A column's telephone number, normalised as by `normalised_phone`."""
    return f"replaceRegexpOne(replaceRegexpAll(ifNull({column}, ''), '[^0-9]', ''), '^00', '')"


def property_emails(columns: str = "properties") -> list[str]:
    """SQL: the addresses that stand in a JSON column."""
    return [email_sql(f"{columns}.{name}::Nullable(String)") for name in EMAIL_PROPERTIES]


def property_phones(columns: str = "properties") -> list[str]:
    """SQL: the telephone numbers that stand in a JSON column."""
    return [phone_sql(f"{columns}.{name}::Nullable(String)") for name in PHONE_PROPERTIES]


_RECORD_KEY = "concat(source::String, '\\x1f', external_id)"
HINT_SQL: Final = f"""(
    {email_sql("email")} in {_of("email")} or (external_id != '' and {_RECORD_KEY} in {_of("record")})
)"""
"""Whether a row with email, source and external_id is about the person; needs the table `keys`."""
RECORD_SQL: Final = f"(object = 'contact' and {_RECORD_KEY} in {_of('record')})"


_SAID = " or ".join(
    [f"{one} in {_of('email')}" for one in property_emails()]
    + [f"{one} in {_of('phone')}" for one in property_phones()]
)
EVENT_SQL: Final = f"""(
    {HINT_SQL} or message_id in {_of("message")}
    or (email = '' and external_id = '' and (
        (anonymous_id != '' and concat(source::String, '\\x1f', anonymous_id) in {_of("visitor")})
        or ((type in ('unsubscribed', 'subscribed', 'inbound', 'bounced', 'complained') or startsWith(type, 'contact.'))
            and ({_SAID}))
    ))
)"""
"""Whether a row of `raw.events` is about the person; telephones and the like stand in properties."""


def _asked(warehouse: Warehouse, person: Person, sql: str) -> pl.DataFrame:
    return warehouse.frame(
        sql,
        external={"keys": person.keys()},
        settings={"join_use_nulls": "0", "transform_null_in": "0"},
    )


def _size(person: Person) -> tuple[int, ...]:
    return tuple(
        len(one)
        for one in (person.contact_ids, person.emails, person.phones, person.push_tokens, person.records,
                    person.visitors, person.message_ids)
    )  # fmt: skip


def _by_identity(warehouse: Warehouse, person: Person) -> None:
    rows = _asked(
        warehouse,
        person,
        f"""
        select contact_id, kind::String as kind, source::String as source, identifier, identity_id
        from {IDENTITIES}
        where contact_id in (
            select contact_id from {IDENTITIES}
            where contact_id in (select number from keys where kind = 'contact')
                or (kind = 'record' and concat(source::String, '\\x1f', identifier) in {_of("record")})
                or (kind = 'email' and identifier in {_of("email")})
        )
        """,
    )
    for contact_id, kind, source, identifier, identity_id in rows.iter_rows():
        person.contact_ids.add(contact_id)
        person.identity_ids.add(identity_id)
        if kind == "email" and identifier:
            person.emails.add(identifier)
        elif kind == "record" and identifier:
            person.records.add((source, identifier))


def _by_records(warehouse: Warehouse, person: Person, *, has_identities: bool) -> None:
    mails = " or ".join(f"{one} in {_of('email')}" for one in property_emails())
    free = (
        f"and {_RECORD_KEY} not in (select concat(source::String, '\\x1f', identifier) from {IDENTITIES}"
        " where kind = 'record' and contact_id not in (select number from keys where kind = 'contact'))"
        if has_identities
        else ""
    )
    first, *others = property_emails()
    rows = _asked(
        warehouse,
        person,
        f"""
        select distinct source::String as source, external_id, {first} as email,
            {others[0]} as other_email,
            [{", ".join(f"ifNull(properties.{name}::Nullable(String), '')" for name in PHONE_PROPERTIES)}] as phones,
            ifNull(properties.push_token::Nullable(String), '') as push_token,
            trim(ifNull(properties.email::Nullable(String), '')) as spelt
        from raw.crm_records
        where object = 'contact' and ({_RECORD_KEY} in {_of("record")} or (({mails}) {free}))
        """,
    )
    seen: set[str] = set()
    for source, external_id, email, other, phones, token, spelt in rows.iter_rows():
        person.records.add((source, external_id))
        seen |= {one for one in (email, other) if one}
        for phone in phones:
            if len(known := normalised_phone(phone)) >= _SHORTEST_PHONE:
                person.phones.add(known)
                person.spellings |= {phone.strip()} - {known}
        if token:
            person.push_tokens.add(token.strip())
        if spelt != email:
            person.spellings.add(spelt)
    person.emails |= seen - _of_others(warehouse, person, seen) if has_identities else seen


def _of_others(warehouse: Warehouse, person: Person, emails: Iterable[str]) -> set[str]:
    """Addresses that dbt gives to another contact: they are another's now."""
    frame = pl.DataFrame({"email": sorted(emails)}, schema={"email": pl.String()})
    if frame.is_empty():
        return set()
    rows = warehouse.frame(
        f"""
        select identifier from {IDENTITIES}
        where kind = 'email' and identifier in (select email from asked)
            and contact_id not in (select number from keys where kind = 'contact')
        """,
        external={"asked": frame, "keys": person.keys()},
    )
    return set(rows["identifier"].to_list())


def _by_phone(warehouse: Warehouse, person: Person) -> None:
    """Records with a number of the person, if nobody was found by a better name: families share telephones."""
    if person.contact_ids or person.emails or person.records:
        return
    numbers = " or ".join(f"{one} in {_of('phone')}" for one in property_phones())
    rows = _asked(
        warehouse,
        person,
        f"select distinct source::String as source, external_id from raw.crm_records"
        f" where object = 'contact' and ({numbers})",
    )
    found = {(str(source), str(external_id)) for source, external_id in rows.iter_rows()}
    if len(found) > 1:
        shown = ", ".join(f"{source}:{external_id}" for source, external_id in sorted(found)[:5])
        raise InputError(
            f"{len(found)} records have that number: {shown}.", fix="Name one of them: --record SOURCE:ID."
        )
    person.records |= found


def _by_ledger(warehouse: Warehouse, ledger: Ledger, person: Person, *, has_identities: bool) -> None:
    """Messages of the ledger, and contacts that an address led to when they were written, unless they are others'."""
    found: list[tuple[str, int, str]] = []
    columns = (messages.c.message_id, messages.c.contact_id, messages.c.email)
    with ledger.engine.connect().execution_options(is_reading=True) as connection:
        for column, values in (
            (messages.c.contact_id, person.contact_ids),
            (sa.func.lower(messages.c.email), person.emails),
        ):
            for part in _parts(sorted(values)):  # pyright: ignore[reportArgumentType]
                found += [
                    tuple(row) for row in connection.execute(sa.select(*columns).where(column.in_(part)))
                ]
    strange = {contact_id for _, contact_id, _ in found if contact_id > 0} - person.contact_ids
    if strange and has_identities:
        known = warehouse.frame(
            f"select distinct contact_id from {IDENTITIES} where contact_id in (select contact_id from asked)",
            external={
                "asked": pl.DataFrame({"contact_id": sorted(strange)}, schema={"contact_id": pl.Int64()})
            },
        )
        strange -= set(known["contact_id"].to_list())
    person.contact_ids |= strange
    for message_id, contact_id, email in found:
        if contact_id in person.contact_ids:
            person.message_ids.add(message_id)
            if email and email not in person.emails:
                person.spellings.add(email)


def _parts(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), 500):
        yield values[start : start + 500]


def _hints(warehouse: Warehouse, person: Person) -> None:
    """Visitors, spellings, messages and events that rows about the person name."""
    rows = _asked(
        warehouse,
        person,
        f"""
        select source::String as source, anonymous_id, email from raw.events
        where {HINT_SQL} group by source, anonymous_id, email
        union distinct
        select '' as source, '' as anonymous_id, email from raw.consents where {HINT_SQL}
        """,
    )
    for source, visitor, email in rows.iter_rows():
        if visitor:
            person.visitors.add((source, visitor))
        if email and email not in person.emails and normalised_email(email) in person.emails:
            person.spellings.add(email)
    stored = _asked(
        warehouse,
        person,
        f"""
        select distinct message_id from raw.messages
        where contact_id in (select number from keys where kind = 'contact')
            or {email_sql("email")} in {_of("email")}
        """,
    )
    person.message_ids |= set(stored["message_id"].to_list())
    found = _asked(
        warehouse,
        person,
        f"""
        select event_id, startsWith(any(type), 'order.') as is_order from raw.events where {EVENT_SQL} group by event_id
        """,
    )
    person.event_ids |= set(found["event_id"].to_list())
    person.order_ids |= set(found.filter(pl.col("is_order") == 1)["event_id"].to_list())


def _identity_ids(warehouse: Warehouse, person: Person, *, has_identities: bool) -> None:
    """What `macros/identity.sql` makes of the names, alone and as they stand together in rows."""
    if has_identities:
        rows = _asked(
            warehouse,
            person,
            f"select identity_id from {IDENTITIES}"
            " where contact_id in (select number from keys where kind = 'contact')",
        )
        person.identity_ids |= set(rows["identity_id"].to_list())
    for email in person.emails:
        person.identity_ids.add(identity_of("", "", email))
    for source, external_id in person.records:
        person.identity_ids |= {identity_of(source, external_id, one) for one in ("", *person.emails)}
    for source, visitor in person.visitors:
        person.identity_ids.add(-(sip_hash(source, visitor) >> 1))
    for contact_id in person.contact_ids:
        person.identity_ids |= {identity_of_message(contact_id, one) for one in ("", *person.emails)}
    person.identity_ids.discard(0)


def _has(warehouse: Warehouse, table: str) -> bool:
    database, _, name = table.partition(".")
    return bool(
        warehouse.value(
            "select count() from system.tables where database = {database:String} and name = {name:String}",
            {"database": database, "name": name},
        )
    )
