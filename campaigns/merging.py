# ruff: noqa: S608  (queries are put together from names of this module)
"""Which contacts are one, by the merges and splits that stand now: as `int_contacts__identified` works it out.

What was decided by hand since the marts were built counts here at once (`raw.identity_changes`): contacts are told by
the ids that their sources give them (`own_contact_id` of the last build), and merged anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from warehouse.client import Warehouse


def survivors(edges: Iterable[tuple[int, int, datetime]]) -> dict[int, int]:
    """Of each contact that merges speak of, the one that stays.

    Contacts that merges hold together are one, in whatever order and direction they were made. Who never went into
    another stays; of several such, or if they went round in a circle, the one that was named last, then the smallest
    id.

    Args:
        edges: who went, who stayed, and when.
    """
    parents: dict[int, int] = {}

    def root(one: int) -> int:
        parents.setdefault(one, one)
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        return one

    goers: set[int] = set()
    named: dict[int, float] = {}
    for goes, stays, at in edges:
        parents[root(goes)] = root(stays)
        if goes != stays:
            goers.add(goes)
        named[stays] = max(named.get(stays, 0.0), at.timestamp())
    best: dict[int, tuple[bool, float, int]] = {}
    for one in list(parents):
        rank = (one in goers, -named.get(one, 0.0), one)
        top = root(one)
        best[top] = min(best.get(top, rank), rank)
    return {one: best[root(one)][2] for one in list(parents)}


@dataclass
class Merges:
    """Merges and splits that stand, read again when one was decided or the marts were built. Nothing before `look`.

    Args:
        prefix: what stands before the names of dbt's databases.
        tables: those of dbt that there are, as `database.table`.
    """

    warehouse: Warehouse
    prefix: str
    tables: Callable[[], frozenset[str]]
    _seen: tuple[Any, ...] = field(default=(), init=False)
    _known: tuple[Mapping[int, int], Mapping[int, int], bool] = field(default=({}, {}, False), init=False)

    @property
    def is_needed(self) -> bool:
        """Whether anything was ever decided by hand; if not, the marts say all there is to say."""
        return self._known[2]

    def contact(self, named_contact_id: int) -> int:
        """The contact that one has become, by the id that its sources give it."""
        return self._known[0].get(named_contact_id, named_contact_id)

    def split(self, identity_id: int) -> int:
        """The contact that was made of an identity by a split; 0 if none was."""
        return self._known[1].get(identity_id, 0)

    def is_split(self, contact_id: int) -> bool:
        """Whether a contact was made by a split."""
        return contact_id in self._known[1].values()

    def look(self) -> None:
        """Read what was decided, if that has changed."""
        needed = {"intermediate.int_identities__merged", "intermediate.int_contacts__identified"}
        if not needed <= self.tables():
            return
        database = f"{self.prefix}intermediate"
        seen = self.warehouse.frame(
            "select (select count() from raw.identity_changes) as changes, toString(uuid) as built"
            " from system.tables where database = {database:String} and name = 'int_contacts__identified'",
            {"database": database},
        ).rows()
        if not seen or seen[0] == self._seen:
            return
        if not seen[0][0]:
            self._known, self._seen = ({}, {}, False), seen[0]
            return
        splits: dict[int, list[tuple[datetime, int]]] = {}
        for identity, at, contact in self.warehouse.frame(
            "select identity_id, tupleElement(split, 1) as at, tupleElement(split, 2) as contact_id from ("
            f" select identity_id, arrayJoin(split_contacts) as split from {database}.int_identities__split)"
            " order by identity_id, at, contact_id"
        ).iter_rows():
            splits.setdefault(identity, []).append((at, contact))
        merges = self.warehouse.frame(
            f"select identity_id, into_identity_id, merged_at from {database}.int_identities__merged"
        ).rows()
        ends = dict(
            self.warehouse.frame(
                f"""
                select identity_id, own_contact_id from {database}.int_contacts__identified
                where identity_id in (
                    select arrayJoin([identity_id, into_identity_id]) from {database}.int_identities__merged
                )
                """
            ).iter_rows()
        )

        def then(identity: int, at: datetime) -> int:
            # what the last split before the merge had made of it, else its own
            before = [contact for split_at, contact in splits.get(identity, []) if split_at <= at]
            return before[-1] if before else ends[identity]

        edges = [
            (then(goes, at), then(stays, at), at)
            for goes, stays, at in merges
            if goes in ends and stays in ends
        ]
        split_contacts = {identity: made[-1][1] for identity, made in splits.items()}
        self._known, self._seen = (survivors(edges), split_contacts, True), seen[0]


__all__ = ["Merges", "survivors"]
