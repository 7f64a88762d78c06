"""Two-way sync: read the CRMs, decide what differs, write it where it is missing.

Everything that is decided follows from what is stored (`crm.conflicts`), so a sync may be broken off anywhere and run
again. What a write needs beyond that is stored first: a row that says it is *sent*, and after the answer one that says
what became of it. A write without an answer may have happened; its value, read again, is nobody's edit.

How far records have been looked at moves on only when every CRM answered: a CRM that is away for an hour gets all of it
an hour later.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import polars as pl

from crm.base import Change, Connector, CrmError, Kind, Pushed, Scalar
from crm.conflicts import CHANGES, OWN, Resolution, resolve
from crm.rules import OPT_OUTS, CrmRules, FieldType
from warehouse.loads import LoadResult

logger = logging.getLogger(__name__)

CONTACTS_A_ROUND: Final = 50_000
"""Contacts that are decided together: all versions of their records are in memory."""
CHANGES_A_PUSH: Final = 5_000
"""Changes handed to a connector at once, about."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
PENDING: Final = frozenset({"sent", "failed", "conflict"})
"""What became of a write that is to be tried again."""

PUSH_ROWS: Final[Mapping[str, pl.DataType]] = {
    "push_id": pl.String(),
    "object": pl.String(),
    "source": pl.String(),
    "external_id": pl.String(),
    "contact_id": pl.Int64(),
    "key": pl.String(),
    "names": pl.List(pl.String),  # pyright: ignore[reportAssignmentType]
    "texts": pl.List(pl.String),  # pyright: ignore[reportAssignmentType]
    "is_new": pl.Boolean(),
    "known_at": pl.Datetime("ms", "UTC"),
    "status": pl.String(),
    "reason": pl.String(),
    "record_at": pl.Datetime("ms", "UTC"),
    "run_id": pl.String(),
    "recorded_at": pl.Datetime("ms", "UTC"),
}
"""Columns of what is stored of a write: once before it, once after the answer."""


@dataclass(frozen=True)
class Mark:
    """How far a sync came.

    Attributes:
        started_at: when it began.
        records_through: records loaded until then have been looked at.
        identities_through: so have contacts whose identity moved until then.
        consents_through: and those whose consent changed.
        rules_version: of the rules that it went by.
        profiles_version: which build of the profiles has been pushed to every CRM.
        is_complete: whether every CRM answered.
        counts: see `Report.counts`.
        failures: by CRM, what went wrong.
    """

    started_at: datetime = EPOCH
    records_through: datetime = EPOCH
    identities_through: datetime = EPOCH
    consents_through: datetime = EPOCH
    rules_version: str = ""
    profiles_version: str = ""
    is_complete: bool = True
    counts: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Touched:
    """Who has to be looked at.

    Attributes:
        contact_ids: column `contact_id`, each once.
        mark: how far that goes.
        waiting: records that belong to no contact yet, since the models have not been built.
    """

    contact_ids: pl.DataFrame
    mark: Mark
    waiting: int = 0


@dataclass(frozen=True)
class History:
    """All that decisions about some contacts follow from: see `crm.conflicts`.

    Attributes:
        versions: columns of `VERSIONS` and a column a field; also `email`.
        pushes: columns of `PUSHES`.
        decided: columns of `DECIDED`.
        own: columns of `CANDIDATES`.
        corrections: columns of `CORRECTIONS`; none if left out.
    """

    versions: pl.DataFrame
    pushes: pl.DataFrame
    decided: pl.DataFrame
    own: pl.DataFrame
    corrections: pl.DataFrame | None = None


@dataclass(frozen=True)
class Shown:
    """What a CRM shall show of one contact.

    Attributes:
        contact_id: the contact.
        external_id: its record; '' where one is to be made.
        values: by the CRM's names, texts, those that differ from what it shows.
        wanted: all of them; what it shows once they are written.
        before: of those that differ, what it shows.
    """

    contact_id: int
    external_id: str
    values: Mapping[str, str]
    wanted: Mapping[str, str]
    before: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task to be made in a CRM; `key` is the event that asks for it."""

    key: str
    contact_id: int
    external_id: str
    fields: Mapping[str, Scalar]


class Store(Protocol):
    """Where a sync reads and keeps what it goes by: the warehouse, or frames in a test."""

    def pull(self, connector: Connector, kind: Kind) -> LoadResult:
        """Store what changed in a CRM."""
        ...

    def last(self) -> Mark:
        """Where the last sync came to."""
        ...

    def touched(self, since: Mark, rules: CrmRules) -> Touched:
        """Contacts that something has happened to since."""
        ...

    def history(self, contact_ids: pl.DataFrame, rules: CrmRules) -> History:
        """What is known of some contacts."""
        ...

    def add_decisions(self, decisions: pl.DataFrame) -> None:
        """Store decisions: columns of `DECISIONS`."""
        ...

    def add_withdrawals(self, candidates: pl.DataFrame, versions: pl.DataFrame) -> int:
        """Store opt-outs that CRMs told us of as withdrawn consents, each once; returns how many were new."""
        ...

    def add_pushes(self, rows: pl.DataFrame) -> None:
        """Store columns of `PUSH_ROWS`."""
        ...

    def profiles_version(self) -> str:
        """Which build of the profiles stands there; '' if there is none."""
        ...

    def differing(self, crm: str, rules: CrmRules) -> Iterator[list[Shown]]:
        """What a CRM shows that is no longer so, in batches."""
        ...

    def missing(self, crm: str, rules: CrmRules) -> Iterator[list[Shown]]:
        """Contacts whom a CRM shall have and has not, in batches."""
        ...

    def add_shown(self, crm: str, shown: Sequence[Shown]) -> None:
        """Store what a CRM shows now."""
        ...

    def tasks(self, crm: str, within: timedelta) -> list[Task]:
        """Tasks that are asked for and have not been made."""
        ...

    def finish(self, mark: Mark) -> None:
        """Store how far we came."""
        ...


@dataclass
class Report:
    """What a sync did; of a dry run, what it would do.

    Attributes:
        counts: pulled, loaded, contacts, decisions, waiting, withdrawals; written, created, conflicts, gone, invalid,
            failed (changes of contacts), tasks.
        changes: columns of `CHANGES`, with `rule` `engagement` and `new contact`, too; filled by a dry run alone.
        tasks: tasks that a dry run would make.
        failures: by CRM, what went wrong.
        mark: how far it came.
    """

    counts: dict[str, int] = field(default_factory=dict)
    changes: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=dict(CHANGES)))
    tasks: list[tuple[str, Task]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    mark: Mark = field(default_factory=Mark)

    def add(self, name: str, number: int = 1) -> None:
        """Count."""
        self.counts[name] = self.counts.get(name, 0) + number


_COUNTED: Final[Mapping[str, str]] = {
    "written": "written",
    "created": "created",
    "conflict": "conflicts",
    "gone": "gone",
    "invalid": "invalid",
    "failed": "failed",
}
COUNTS: Final = (
    "pulled", "loaded", "contacts", "waiting", "decisions", "withdrawals", *_COUNTED.values(), "tasks",
)  # fmt: skip


class Sync:
    """One sync.

    Args:
        store: what it goes by.
        connectors: the CRMs that are set up.
        rules: whose value counts, and what is pushed.
        now: the time.
        run_id: who syncs.
        dry_run: decide and tell, and write nothing anywhere.
        on_progress: told what is being done and how many are done.
    """

    def __init__(
        self,
        store: Store,
        connectors: Sequence[Connector],
        rules: CrmRules,
        *,
        now: Callable[[], datetime],
        run_id: str = "",
        dry_run: bool = False,
        kinds: Callable[[Connector], Sequence[Kind]] | None = None,
        on_progress: Callable[[str, int], None] | None = None,
    ) -> None:
        self._store, self._rules, self._now = store, rules, now
        self._connectors = {connector.name: connector for connector in connectors}
        self._run_id, self._is_dry = run_id, dry_run
        self._kinds = kinds or _contacts
        self._tell = on_progress or _nobody
        self._report = Report(dict.fromkeys(COUNTS, 0))
        self._planned: list[pl.DataFrame] = []
        self._conflicted: set[str] = set()

    def run(self) -> Report:
        """Read, decide, write. A CRM that fails is told in `failures`; the others are served.

        Raises:
            WarehouseError: ClickHouse refused; running again goes on.
        """
        report, started_at = self._report, self._now()
        for connector in self._connectors.values():
            self._pull(connector)
        self._leave_out()
        last = self._store.last()
        if self._rules.is_idle:
            report.mark = replace(last, started_at=started_at, counts=report.counts, failures=report.failures)
            self._store.finish(report.mark)
            return report
        touched = self._store.touched(last, self._rules)
        report.counts["contacts"] = touched.contact_ids.height
        report.counts["waiting"] = touched.waiting
        again: set[int] = set()
        for contact_ids in touched.contact_ids.iter_slices(CONTACTS_A_ROUND):
            again |= self._reconcile(contact_ids)
            self._tell("contacts decided", contact_ids.height)
        if again and not self._is_dry:
            # somebody wrote while we did: read that, and decide once more
            for name in sorted(self._conflicted - report.failures.keys()):
                self._pull(self._connectors[name])
            self._reconcile(pl.DataFrame({"contact_id": sorted(again)}, schema={"contact_id": pl.Int64}))
        profiles = self._store.profiles_version()
        # a build that has been shown to all CRMs need not be looked at again
        is_new_build = profiles != last.profiles_version or last.rules_version != self._rules.version
        for name, spec in self._rules.push.items():
            connector = self._connectors.get(name)
            if connector is None or name in report.failures:
                continue
            if is_new_build and spec.engagement:
                self._show(connector)
            if is_new_build and spec.create:
                self._create(connector)
            if spec.tasks:
                self._push_tasks(connector)
        is_complete = not report.failures
        mark = replace(
            touched.mark if is_complete else last,
            started_at=started_at,
            rules_version=self._rules.version if is_complete else last.rules_version,
            profiles_version=profiles
            if is_complete and not report.counts["failed"]
            else last.profiles_version,
            is_complete=is_complete,
            counts=dict(report.counts),
            failures=dict(report.failures),
        )
        report.mark = mark
        if self._planned:
            report.changes = pl.concat(self._planned)
        self._store.finish(mark)
        return report

    def _pull(self, connector: Connector) -> None:
        for kind in self._kinds(connector):
            try:
                result = self._store.pull(connector, kind)
            except CrmError as error:
                self._report.failures[connector.name] = error.message
                logger.warning("%s could not be read: %s", connector.name, error.message)
                return
            self._report.add("pulled", result.read)
            self._report.add("loaded", result.loaded)
            self._tell(f"records read from {connector.name}", result.read)

    def _leave_out(self) -> None:
        """Push no field to a CRM that has no place for it: all else of a change is to be written.

        A place that is made later makes other rules, by which all contacts are looked at again.
        """
        for name in self._rules.push:
            connector = self._connectors.get(name)
            fields = [field for field in self._rules.pushed_fields(name) if field in self._rules.fields]
            if connector is None or not fields or name in self._report.failures:
                continue
            try:
                lacking = connector.unwritable(fields)
            except CrmError as error:
                self._report.failures[name] = error.message
                logger.warning("%s does not say what it takes: %s", name, error.message)
                continue
            self._rules = self._rules.without(name, lacking)

    def _reconcile(self, contact_ids: pl.DataFrame) -> set[int]:
        """Decide and write the fields of some contacts; those who must be looked at once more."""
        rules = self._rules.rules()
        if not rules:
            return set()
        history = self._store.history(contact_ids, self._rules)
        pushed = {
            name: self._rules.pushed_fields(name)
            for name, connector in self._connectors.items()
            if name not in self._report.failures and "contact" in connector.capabilities.pushes
        }
        found = resolve(
            rules, pushed, history.versions, history.pushes, history.decided, history.own, history.corrections
        )
        self._report.add("decisions", found.decisions.height)
        if self._is_dry:
            self._planned.append(found.changes)
            return set()
        self._store.add_decisions(found.decisions)
        outs = found.golden.filter(
            pl.col("field").is_in(list(OPT_OUTS.values()))
            & (pl.col("value") == "true")
            & (pl.col("source") != OWN)
        )
        self._report.add(
            "withdrawals", self._store.add_withdrawals(outs, history.versions) if outs.height else 0
        )
        return self._write(found)

    def _write(self, found: Resolution) -> set[int]:
        again: set[int] = set()
        for (name,), changes in found.changes.group_by("source", maintain_order=True):
            connector = self._connectors[str(name)]
            entries = [
                _Entry(
                    contact_id=contact_id,
                    external_id=external_id,
                    texts={
                        self._rules.name_at(connector.name, field_): value
                        for field_, value in zip(fields, values, strict=True)
                    },
                    logged=dict(zip(fields, values, strict=True)),
                    known_at=known_at,
                    source=connector.name,
                )
                for contact_id, external_id, known_at, fields, values in changes.group_by(
                    "contact_id", "external_id", "known_at", maintain_order=True
                )
                .agg("field", "value")
                .iter_rows()
            ]
            for entry, status in self._push(connector, entries):
                if status == "conflict":
                    again.add(entry.contact_id)
                    self._conflicted.add(connector.name)
        return again

    def _push(self, connector: Connector, entries: Sequence[_Entry]) -> Iterator[tuple[_Entry, str]]:
        """Write, in the largest batches; what became of each. A CRM that fails gets no more in this sync."""
        size = _size(connector)
        types = self._rules.types_at(connector.name)
        for start in range(0, len(entries), size):
            batch = {f"{uuid.uuid4().hex}": entry for entry in entries[start : start + size]}
            before = [(key, entry) for key, entry in batch.items() if entry.is_new or entry.logged]
            self._store.add_pushes(self._rows([(key, entry, None) for key, entry in before]))
            changes = [
                Change(
                    key,
                    entry.external_id,
                    {name: _scalar(text, types.get(name)) for name, text in entry.texts.items()},
                    entry.known_at,
                )
                for key, entry in batch.items()
            ]
            try:
                answers = connector.push("contact", changes)
            except CrmError as error:
                self._report.failures[connector.name] = error.message
                logger.warning("%s could not be written: %s", connector.name, error.message)
                return
            self._store.add_pushes(self._rows([(one.key, batch[one.key], one) for one in answers]))
            for one in answers:
                self._report.add(_COUNTED[one.status])
                batch[one.key].found_id = one.external_id
                yield batch[one.key], one.status
            self._tell(f"records written to {connector.name}", len(answers))

    def _rows(
        self, written: Sequence[tuple[str, _Entry, Pushed | None]], object_: str = "contact"
    ) -> pl.DataFrame:
        now = self._now()
        rows = [
            {
                "push_id": push_id,
                "object": object_,
                "source": entry.source,
                "external_id": entry.external_id or (answer.external_id if answer else ""),
                "contact_id": entry.contact_id,
                "key": entry.key or str(entry.contact_id),
                "names": list(entry.kept),
                "texts": list(entry.kept.values()),
                "is_new": entry.is_new,
                "known_at": entry.known_at or EPOCH,
                "status": answer.status if answer else "sent",
                "reason": answer.reason[:500] if answer else "",
                "record_at": answer.updated_at if answer else None,
                "run_id": self._run_id,
                "recorded_at": now,
            }
            for push_id, entry, answer in written
        ]
        return pl.DataFrame(rows, schema=dict(PUSH_ROWS))

    def _show(self, connector: Connector) -> None:
        """Push what we know about contacts where it differs from what the CRM shows."""
        for batch in self._gathered(connector, self._store.differing(connector.name, self._rules)):
            self._serve(connector, batch, "engagement")
            if connector.name in self._report.failures:
                return

    def _create(self, connector: Connector) -> None:
        """Make the contacts that the CRM shall have and has not."""
        for batch in self._gathered(connector, self._store.missing(connector.name, self._rules)):
            self._serve(connector, batch, "new contact")
            if connector.name in self._report.failures:
                return

    def _gathered(self, connector: Connector, batches: Iterator[list[Shown]]) -> Iterator[list[Shown]]:
        """The same, in multiples of what the CRM takes at once, until the last."""
        size = _size(connector)
        held: list[Shown] = []
        for batch in batches:
            held += batch
            while len(held) >= size:
                yield held[:size]
                held = held[size:]
        if held:
            yield held

    def _serve(self, connector: Connector, batch: Sequence[Shown], rule: str) -> None:
        if self._is_dry:
            self._planned.append(
                pl.DataFrame(
                    [
                        {"contact_id": one.contact_id, "source": connector.name, "external_id": one.external_id,
                         "field": name, "old": one.before.get(name, ""), "value": value, "known_at": None,
                         "rule": rule, "why": ""}
                        for one in batch for name, value in one.values.items()
                    ],
                    schema=dict(CHANGES),
                )
            )  # fmt: skip
            return
        own = {key for key in self._rules.fields if rule == "new contact"}
        by_entry = [
            (
                _Entry(
                    contact_id=one.contact_id,
                    external_id=one.external_id,
                    texts=dict(one.values),
                    logged={name: text for name, text in one.values.items() if name in own},
                    known_at=None,
                    is_new=one.external_id == "",
                    source=connector.name,
                ),
                one,
            )
            for one in batch
        ]
        shown = {id(entry): one for entry, one in by_entry}
        done = [
            replace(shown[id(entry)], external_id=entry.found_id or entry.external_id)
            for entry, status in self._push(connector, [entry for entry, _ in by_entry])
            # who is gone, and what will never be taken, is not tried again before it changes
            if status in ("written", "created", "gone", "invalid") and entry.external_id
        ]
        self._store.add_shown(connector.name, done)

    def _push_tasks(self, connector: Connector) -> None:
        """Make tasks that are asked for, each once: its key goes with it."""
        spec = self._rules.push[connector.name]
        tasks = self._store.tasks(connector.name, spec.tasks_within)
        if self._is_dry:
            self._report.tasks += [(connector.name, task) for task in tasks]
            return
        entries = {
            task.key: _Entry(
                contact_id=task.contact_id,
                external_id="",
                texts={name: str(value) for name, value in task.fields.items() if value is not None},
                logged={},
                known_at=None,
                source=connector.name,
                key=task.key,
            )
            for task in tasks
        }
        if not entries:
            return
        changes = [Change(task.key, "", task.fields) for task in tasks]
        ids = {key: uuid.uuid4().hex for key in entries}
        self._store.add_pushes(
            self._rows([(ids[key], entry, None) for key, entry in entries.items()], "task")
        )
        try:
            answers = connector.push("task", changes)
        except CrmError as error:
            self._report.failures[connector.name] = error.message
            logger.warning("%s took no tasks: %s", connector.name, error.message)
            return
        self._store.add_pushes(self._rows([(ids[one.key], entries[one.key], one) for one in answers], "task"))
        self._report.add("tasks", sum(one.status in ("written", "created") for one in answers))
        self._report.add("failed", sum(one.status in ("failed", "conflict") for one in answers))


@dataclass
class _Entry:
    """One record to be written; `logged` are the fields that decisions follow from, by our names."""

    contact_id: int
    external_id: str
    texts: Mapping[str, str]
    logged: Mapping[str, str]
    known_at: datetime | None
    is_new: bool = False
    source: str = ""
    key: str = ""
    found_id: str = ""

    @property
    def kept(self) -> Mapping[str, str]:
        """What is stored of it: fields by our names, others by the CRM's."""
        return {**{name: text for name, text in self.texts.items() if name not in self.logged}, **self.logged}


def _size(connector: Connector) -> int:
    """How many changes a connector is handed at once: whole batches of its own."""
    most = max(1, connector.capabilities.most_per_push)
    return most * math.ceil(CHANGES_A_PUSH / most)


def _contacts(connector: Connector) -> Sequence[Kind]:
    return ("contact",) if "contact" in connector.capabilities.kinds else ()


def _nobody(what: str, done: int) -> None:
    del what, done


def _scalar(text: str, type_: FieldType | None) -> Scalar:
    if text == "":
        return None
    if type_ == "boolean":
        return text == "true"
    if type_ == "number":
        number = float(text)
        return int(number) if number.is_integer() else number
    return text
