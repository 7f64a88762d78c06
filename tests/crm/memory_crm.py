"""A CRM in memory that misbehaves when told to: a clock of its own, lost answers, partial failure, limits, merges."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal

import pyarrow as pa

from crm.base import (
    PULLED,
    Capabilities,
    Change,
    Connector,
    CrmUnavailableError,
    CustomField,
    Kind,
    Pulled,
    Pushed,
    Scalar,
    SetUp,
    Usage,
)  # fmt: skip

Trouble = Literal["", "away", "limit", "lost", "half", "slow"]
"""What goes wrong: no answer to any call; no answer to a write that was not made; to one that was made; every other
change fails; only half of what changed is listed before it breaks off."""


@dataclass
class Record:
    """One contact of the CRM."""

    fields: dict[str, Scalar]
    updated_at: datetime
    is_deleted: bool = False
    merged_into: str = ""


class MemoryCrm(Connector):
    """The CRM, with its connector: what is written here is what people see there.

    Args:
        name: of the CRM.
        clock: the time, UTC, without skew.
        skew: how far its clock is ahead.
        says_time: whether it tells when a record was written.
        tells_conflicts: whether it refuses a write to a record that has changed since.
    """

    name: ClassVar[str] = "memory"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds=frozenset({"contact"}),
        pushes=frozenset({"contact", "task"}),
        can_set_up=True,
        tells_deletes=True,
        tells_merges=True,
        most_per_push=100,
    )

    def __init__(
        self,
        name: str,
        clock: Callable[[], datetime],
        *,
        skew: timedelta = timedelta(),
        tells_conflicts: bool = True,
    ) -> None:
        self.name = name  # pyright: ignore[reportAttributeAccessIssue]
        self.usage = Usage()
        self.records: dict[str, Record] = {}
        self.tasks: dict[str, Mapping[str, Scalar]] = {}
        self.custom: dict[str, CustomField] = {}
        self.trouble: Trouble = ""
        self.before_push: Callable[[], None] = lambda: None
        self.on_listed: Callable[[str, Record], None] = lambda external_id, record: None
        self.pushed: list[Change] = []
        self.refused: Callable[[str, Scalar], bool] = lambda name, value: value == "refused"
        self._clock, self._skew, self._tells_conflicts = clock, skew, tells_conflicts
        self._last = datetime(2000, 1, 1, tzinfo=UTC)
        self._number = 0

    @classmethod
    def is_configured(cls, settings: Any) -> bool:
        """Never by settings."""
        return False

    @classmethod
    def from_settings(cls, settings: Any, **_: Any) -> MemoryCrm:
        """Nothing to read."""
        raise NotImplementedError

    def now(self) -> datetime:
        """The CRM's clock; no two changes are of the same millisecond."""
        moment = self._clock() + self._skew
        moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
        self._last = max(moment, self._last + timedelta(milliseconds=1))
        return self._last

    # what people do

    def add(self, external_id: str, **fields: Scalar) -> None:
        """Somebody enters a contact."""
        self.records[external_id] = Record(dict(fields), self.now())

    def edit(self, external_id: str, **fields: Scalar) -> None:
        """Somebody edits a contact."""
        record = self.records[external_id]
        record.fields.update(fields)
        record.updated_at = self.now()

    def delete(self, external_id: str, merged_into: str = "") -> None:
        """Somebody deletes a contact, or merges it into another."""
        record = self.records[external_id]
        record.is_deleted, record.merged_into, record.updated_at = True, merged_into, self.now()
        if merged_into:
            self.records[merged_into].updated_at = self.now()

    # the connector

    def pull(self, kind: Kind, since: str | None) -> Iterator[Pulled]:
        """What changed since, with what changed a second before, in batches of three."""
        assert kind == "contact"
        self.usage.add("pull")
        if self.trouble == "away":
            raise CrmUnavailableError(f"{self.name} is away.")
        start = datetime.fromisoformat(json.loads(since)) - timedelta(seconds=1) if since else None
        found = sorted(
            (record.updated_at, external_id)
            for external_id, record in self.records.items()
            if start is None or record.updated_at > start
        )
        for place in range(0, len(found), 3):
            if self.trouble == "slow" and place * 2 >= len(found):
                raise CrmUnavailableError(f"{self.name} broke off.")
            batch = found[place : place + 3]
            rows = []
            for updated_at, external_id in batch:
                record = self.records[external_id]
                self.on_listed(external_id, record)
                known = {name: value for name, value in record.fields.items() if value not in (None, "")}
                rows.append(
                    {
                        "external_id": external_id, "updated_at": updated_at, "is_deleted": record.is_deleted,
                        "merged_into": record.merged_into,
                        "properties": json.dumps({} if record.is_deleted else known),
                    }
                )  # fmt: skip
            yield Pulled(pa.Table.from_pylist(rows, schema=PULLED), json.dumps(batch[-1][0].isoformat()))

    def push(self, kind: Kind, changes: Sequence[Change]) -> list[Pushed]:
        """Write, with whatever trouble there is."""
        self.usage.add("push")
        self.before_push()
        if self.trouble in ("away", "limit"):
            raise CrmUnavailableError(f"{self.name} lets nobody in.")
        self.pushed += changes
        answers = [
            Pushed(change.key, "failed", change.external_id, reason="try later")
            if self.trouble == "half" and index % 2
            else self._task(change) if kind == "task" else self._write(change)
            for index, change in enumerate(changes)
        ]  # fmt: skip
        if self.trouble == "lost":
            raise CrmUnavailableError(f"{self.name} took it and did not answer.")
        return answers

    def set_up(self, fields: Sequence[CustomField]) -> SetUp:
        """Make fields."""
        made = [one for one in fields if one.name not in self.custom]
        self.custom |= {one.name: one for one in made}
        names = {one.name for one in made}
        return SetUp(
            tuple(one.name for one in made), tuple(one.name for one in fields if one.name not in names)
        )

    def _task(self, change: Change) -> Pushed:
        status = "written" if change.key in self.tasks else "created"
        self.tasks.setdefault(change.key, dict(change.fields))
        return Pushed(change.key, status, f"task-{change.key}", self.now())

    def _write(self, change: Change) -> Pushed:
        if any(self.refused(name, value) for name, value in change.fields.items()):
            return Pushed(change.key, "invalid", change.external_id, reason="not a value")
        external_id = change.external_id or next(
            (
                key for key, one in self.records.items()
                if not one.is_deleted and one.fields.get("email") == change.fields["email"]
            ),
            "",
        )  # fmt: skip
        if not external_id:
            self._number += 1
            external_id = f"{self.name}-new-{self._number}"
            self.records[external_id] = Record(dict(change.fields), self.now())
            return Pushed(change.key, "created", external_id, self.records[external_id].updated_at)
        record = self.records.get(external_id)
        if record is None or record.is_deleted:
            return Pushed(change.key, "gone", external_id)
        if (
            self._tells_conflicts
            and change.known_updated_at is not None
            and record.updated_at > change.known_updated_at
        ):
            return Pushed(change.key, "conflict", external_id, record.updated_at)
        record.fields.update(change.fields)
        record.updated_at = self.now()
        return Pushed(change.key, "written", external_id, record.updated_at)
