"""Who is who, decided by hand: merges, splits, what undoes them, and the whole story of a contact.

A decision is a row of `raw.identity_changes` that names people by a CRM record, an account or an address, never by a
hash alone; nothing is rewritten, so an undo gives back exactly what was before. Marts follow with the next build, the
gateway and triggers within half a minute.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl

from campaigns.siphash import contact_of, identity_of, normalised_email
from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError

KINDS: Final = ("record", "email", "account")
"""What a decision may name a person by, best first: a record stays whatever its address."""
_UNKNOWN = frozenset({60, 81})  # no such table, no such database
_BUILD = "Build the marts first: materialize them in Dagster, or run `dbt build`."


@dataclass(frozen=True)
class Key:
    """What names somebody: `source` and `external_id`, or `email` (normalised)."""

    source: str = ""
    external_id: str = ""
    email: str = ""

    @classmethod
    def parse(cls, text: str) -> Key:
        """`source:external_id` or an address.

        Raises:
            InputError: it is neither.
        """
        source, colon, external_id = text.strip().partition(":")
        if colon and source and external_id and "@" not in source:
            return cls(source, external_id)
        if "@" in text and not colon:
            return cls(email=normalised_email(text))
        raise InputError(
            f"{text!r} names nobody.",
            fix="Give a CRM record or an account as source:external_id, such as hubspot:501, or an email address.",
        )

    @property
    def identity_id(self) -> int:
        """What the warehouse knows it by."""
        return identity_of(self.source, self.external_id, self.email)

    def __str__(self) -> str:
        return self.email or f"{self.source}:{self.external_id}"


@dataclass(frozen=True)
class Change:
    """A decision that was stored.

    Attributes:
        contact_id: who went into another, or of whom something was taken out; 0 for an undo.
        into_contact_id: who stayed, or the new contact; 0 for an undo.
    """

    change_id: str
    action: str
    contact_id: int = 0
    into_contact_id: int = 0
    undoes: str = ""


@dataclass(frozen=True)
class Story:
    """All that is known of who a contact is: rows of `contact_identities`, `contact_emails` and `identity_changes`."""

    contact_id: int
    identities: pl.DataFrame
    emails: pl.DataFrame
    changes: pl.DataFrame


class Identities:
    """Decides who is who.

    Args:
        warehouse: where decisions are stored; its raw tables must be there.
        prefix: what stands before the names of dbt's databases.
        clock: tells when something was decided.
    """

    def __init__(
        self, warehouse: Warehouse, *, prefix: str = "", clock: Callable[[], datetime] | None = None
    ) -> None:
        self.warehouse = warehouse
        self.prefix = prefix
        self._clock = clock or (lambda: datetime.now(UTC))

    def contact(self, text: str) -> int:
        """The contact_id that somebody means by an id, an address or `source:external_id`, as of the last build.

        Raises:
            InputError: nobody is known by that, or the marts are not built.
        """
        given = text.strip()
        if given.isdigit():
            found = self._marts(
                "select contact_id from {marts}.contacts where contact_id = {id:Int64}", {"id": int(given)}
            )
            if found.is_empty():
                # the ids of people who went into others lead to them, as in old links and reports
                found = self._marts(
                    "select distinct contact_id from {intermediate}.int_contacts__identified"
                    " where named_contact_id = {id:Int64}",
                    {"id": int(given)},
                )
        else:
            key = Key.parse(given)
            found = self._marts(
                "select contact_id from {intermediate}.int_contacts__identified where identity_id = {id:Int64}",
                {"id": key.identity_id},
            )
        if found.height != 1:
            raise InputError(
                f"Nobody is known by {given!r}.",
                fix="Give a contact_id, an email address, or a CRM record as source:external_id.",
            )
        return int(found.item())

    def merge(self, one: str, other: str, *, reason: str, actor: str, keep: str = "") -> Change:
        """Make one contact of two. The one that we knew first stays, or the one that is named.

        Args:
            one, other: two contacts, each by contact_id, email or `source:external_id`.
            keep: the one of the two that stays; empty: the one that was created first.

        Raises:
            InputError: one of them is not known, both are one already, or `keep` is neither.
        """
        pair = self.contact(one), self.contact(other)
        if pair[0] == pair[1]:
            raise InputError(
                f"{one} and {other} are one contact already: {pair[0]}.",
                fix=f"See why with `mailhouse contacts history {pair[0]}`.",
            )
        if keep:
            stays = self.contact(keep)
            if stays not in pair:
                raise InputError(f"{keep} is neither of the two.", fix=f"Keep {pair[0]} or {pair[1]}.")
        else:
            stays = int(
                self._marts(
                    "select contact_id from {marts}.contacts where contact_id in {ids:Array(Int64)}"
                    " order by created_at, contact_id limit 1",
                    {"ids": list(pair)},
                ).item()
            )
        goes = pair[0] if stays == pair[1] else pair[1]
        key, into = self._key_of(goes), self._key_of(stays)
        return self._store("merge", reason, actor, key=key, into=into, contact_id=goes, into_contact_id=stays)

    def split(self, contact: str, identity: str, *, reason: str, actor: str) -> Change:
        """Take a record, an account or an address out of a contact; it becomes a contact of its own.

        Args:
            contact: who, by contact_id, email or `source:external_id`.
            identity: what is taken out: `source:external_id` or an email.

        Raises:
            InputError: it is not the contact's, or nothing but it is.
        """
        whole, key = self.contact(contact), Key.parse(identity)
        owned = self._identities_of(whole)
        if key.identity_id not in owned["identity_id"]:
            raise InputError(
                f"{key} does not lead to contact {whole}.",
                fix=f"Choose one of those that `mailhouse contacts history {whole}` lists.",
            )
        # an address that this record alone has goes with it
        gone = {key.identity_id}
        if key.external_id:
            addresses = self._marts(
                "select identity_id, argMax(emails, recorded_at) as emails"
                " from {intermediate}.int_records__combined where identity_id in {ids:Array(Int64)}"
                " group by identity_id",
                {"ids": owned.filter(pl.col("kind") == "record")["identity_id"].to_list()},
            )
            mine = {
                email for one, emails in addresses.iter_rows() if one == key.identity_id for email in emails
            }
            others = {
                email for one, emails in addresses.iter_rows() if one != key.identity_id for email in emails
            }
            gone |= {identity_of("", "", email) for email in mine - others}
        else:
            # and accounts go where the address goes that was first told with them
            accounts = self._marts(
                "select record_identity_id, argMin(email_identity_id, tuple(first_seen_at, email)) as first_email"
                " from {intermediate}.int_contacts__hinted where record_identity_id in {ids:Array(Int64)}"
                " group by record_identity_id",
                {"ids": owned.filter(pl.col("kind") == "account")["identity_id"].to_list()},
            )
            gone |= {account for account, email in accounts.iter_rows() if email == key.identity_id}
        if not set(owned["identity_id"]) - gone:
            raise InputError(
                f"{key} is all that contact {whole} is.",
                fix="There is nothing to take it out of. To give it to another contact, merge the two.",
            )
        return self._store("split", reason, actor, key=key, contact_id=whole)

    def undo(self, change_id: str, *, reason: str, actor: str) -> Change:
        """Take a merge or split back: everything is as if it had not been.

        Raises:
            InputError: there is no such change, it is no merge or split by hand, or it was undone before.
        """
        if change_id.startswith("crm:"):
            raise InputError(
                f"{change_id} is a merge that the CRM made.",
                fix="Undo it in the CRM, or take the record out with `mailhouse contacts split`.",
            )
        found = self.warehouse.frame(
            "select action::String as action, undoes, change_id from raw.identity_changes"
            " where change_id = {id:String} or undoes = {id:String}",
            {"id": change_id},
        )
        target = found.filter(pl.col("change_id") == change_id)
        if target.is_empty():
            raise InputError(
                f"There is no change {change_id!r}.",
                fix="`mailhouse contacts history CONTACT` lists changes.",
            )
        if target["action"][0] == "undo":
            raise InputError(f"{change_id} is an undo itself.", fix="Merge or split again instead.")
        before = found.filter(pl.col("undoes") == change_id)
        if not before.is_empty():
            raise InputError(
                f"{change_id} was undone by {before['change_id'][0]}.", fix="Nothing is left to do."
            )
        return self._store("undo", reason, actor, undoes=change_id)

    def history(self, contact: str) -> Story:
        """Why somebody is one contact: what leads to them, their addresses over time, merges and splits.

        Raises:
            InputError: nobody is known by that, or the marts are not built.
        """
        contact_id = self.contact(contact)
        ids = {"id": contact_id}
        return Story(
            contact_id,
            self._marts(
                "select kind, source, identifier, rule, first_seen_at, split_change_id, merge_change_id"
                " from {marts}.contact_identities where contact_id = {id:Int64}"
                " order by first_seen_at, kind, identifier",
                ids,
            ),
            self._marts(
                "select email, valid_from, valid_to, source, is_current from {marts}.contact_emails"
                " where contact_id = {id:Int64} order by valid_from, email, source",
                ids,
            ),
            self._marts(
                """
                with concerned as (
                    select distinct arrayJoin([contact_id, named_contact_id, own_contact_id]) as concerned_id
                    from {intermediate}.int_contacts__identified where contact_id = {id:Int64}
                ),
                changes as (
                    select change_id from {marts}.identity_changes
                    where contact_id in concerned or into_contact_id in concerned or current_contact_id in concerned
                )
                select change_id, action, decided_by, contact_id, into_contact_id, source, external_id, email,
                    into_source, into_external_id, into_email, undoes, undone_by, reason, actor, occurred_at
                from {marts}.identity_changes
                where change_id in changes or (undoes != '' and undoes in changes)
                order by occurred_at, change_id
                """,
                ids,
            ),
        )

    def _identities_of(self, contact_id: int) -> pl.DataFrame:
        return self._marts(
            "select identity_id, kind::String as kind, source::String as source, identifier, named_contact_id"
            " from {intermediate}.int_contacts__identified"
            " where contact_id = {id:Int64} and kind in {kinds:Array(String)} order by identity_id",
            {"id": contact_id, "kinds": list(KINDS)},
        )

    def _key_of(self, contact_id: int) -> Key:
        """What names a contact best: of its own rather than of one that went into it, a record before an address."""
        found = sorted(
            self._identities_of(contact_id).iter_rows(named=True),
            key=lambda one: (
                one["named_contact_id"] != contact_id,
                KINDS.index(one["kind"]),
                one["source"],
                one["identifier"],
            ),
        )
        if not found:
            raise InputError(f"Nothing names contact {contact_id}.", fix=_BUILD)
        best = found[0]
        if best["kind"] == "email":
            return Key(email=best["identifier"])
        return Key(best["source"], best["identifier"])

    def _store(
        self, action: str, reason: str, actor: str, *, key: Key | None = None, into: Key | None = None,
        contact_id: int = 0, into_contact_id: int = 0, undoes: str = "",
    ) -> Change:  # fmt: skip
        if not reason.strip():
            raise InputError("A decision needs a reason.", fix='Say it: --reason "same person, wrote to us".')
        moment = self._clock()
        change_id = f"{moment:%Y%m%d}-{secrets.token_hex(4)}"
        if action == "split":
            into_contact_id = contact_of(f"split:{change_id}")
        key, into = key or Key(), into or Key()
        row = {
            "change_id": change_id, "action": action, "contact_id": contact_id, "into_contact_id": into_contact_id,
            "source": key.source, "external_id": key.external_id, "email": key.email,
            "into_source": into.source, "into_external_id": into.external_id, "into_email": into.email,
            "undoes": undoes, "reason": " ".join(reason.split()), "actor": actor,
        }  # fmt: skip
        frame = pl.DataFrame(
            [row], schema_overrides={"contact_id": pl.Int64(), "into_contact_id": pl.Int64()}
        ).with_columns(pl.lit(moment).cast(pl.Datetime("ms", "UTC")).alias("occurred_at"))
        self.warehouse.insert("raw.identity_changes", frame)
        return Change(change_id, action, contact_id, into_contact_id, undoes)

    def _marts(self, sql: str, parameters: Mapping[str, Any]) -> pl.DataFrame:
        for name in ("marts", "intermediate"):
            sql = sql.replace(f"{{{name}}}", f"{self.prefix}{name}")
        try:
            return self.warehouse.frame(sql, dict(parameters))
        except WarehouseError as error:
            if error.code in _UNKNOWN:
                raise InputError("The marts do not say who is who yet.", fix=_BUILD) from error
            raise


def described(change: Mapping[str, Any]) -> str:
    """One row of `Story.changes` as a sentence."""

    def named(source: str, external_id: str, email: str) -> str:
        return email or f"{source}:{external_id}"

    goes = named(change["source"], change["external_id"], change["email"])
    stays = named(change["into_source"], change["into_external_id"], change["into_email"])
    if change["action"] == "undo":
        what = f"undid {change['undoes']}"
    elif change["action"] == "split":
        what = f"took {goes} out of {change['contact_id']}, as {change['into_contact_id']}"
    else:
        what = f"merged {change['contact_id']} ({goes}) into {change['into_contact_id']} ({stays})"
    by = f"{change['actor']}: " if change["actor"] else ""
    why = f" because: {change['reason']}" if change["reason"] else ""
    undone = f" [undone by {change['undone_by']}]" if change["undone_by"] else ""
    return f"{change['occurred_at']:%Y-%m-%d %H:%M} {change['change_id']} {by}{what}{why}{undone}"


__all__ = ["Change", "Identities", "Key", "Story", "described"]
