"""What a sync goes by, in frames: the warehouse's part for tests that try thousands of syncs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import polars as pl
from memory_crm import MemoryCrm

from crm.base import Kind
from crm.conflicts import CANDIDATES, DECIDED, DECISIONS, PUSHES, UTC_MS, VERSIONS
from crm.rules import OPT_OUTS, CrmRules
from crm.sync import EPOCH, PENDING, PUSH_ROWS, History, Mark, Shown, Task, Touched
from warehouse.loads import LoadResult


class MemoryStore:
    """A `crm.sync.Store`.

    Args:
        clock: the time; it never stands still.
        before: called before each write with what is written: a test dies there.
    """

    def __init__(self, clock: Callable[[], datetime], before: Callable[[str], None]) -> None:
        self.clock, self.before = clock, before
        self.rows: dict[tuple[str, str, datetime], dict] = {}
        self.cursors: dict[str, str] = {}
        # (source, external id) -> contact, as last built
        self.identity: dict[tuple[str, str], int] = {}
        self.moved: dict[tuple[str, str], datetime] = {}
        self.pushes = pl.DataFrame(schema=dict(PUSH_ROWS))
        self.decisions = pl.DataFrame(schema={**DECISIONS, "number": pl.Int64})
        self.marks: list[Mark] = []
        self.withdrawn: set[tuple[str, str, str, datetime]] = set()

    def build(self, contact_of: Callable[[str, str], int | None]) -> None:
        """Identity as of now."""
        for source, external_id, _ in self.rows:
            contact_id = contact_of(source, external_id)
            if contact_id is not None and self.identity.get((source, external_id)) != contact_id:
                self.identity[(source, external_id)] = contact_id
                self.moved[(source, external_id)] = self.clock()

    def pull(self, connector: MemoryCrm, kind: Kind) -> LoadResult:
        """As `crm.pulling.load`."""
        read = loaded = 0
        for pulled in connector.pull(kind, self.cursors.get(connector.name)):
            self.before("records")
            for row in pulled.rows.to_pylist():
                read += 1
                key = (connector.name, row["external_id"], row["updated_at"])
                if key not in self.rows:
                    loaded += 1
                    self.rows[key] = {
                        **row, "source": connector.name, "loaded_at": self.clock(),
                        "properties": json.loads(row["properties"]),
                    }  # fmt: skip
            self.before("cursor")
            self.cursors[connector.name] = pulled.cursor
        return LoadResult(read=read, loaded=loaded)

    def last(self) -> Mark:
        """The last mark."""
        return self.marks[-1] if self.marks else Mark()

    def touched(self, since: Mark, rules: CrmRules) -> Touched:
        """As of the warehouse, without an overlap."""
        mark = replace(
            since,
            records_through=max((row["loaded_at"] for row in self.rows.values()), default=EPOCH),
            identities_through=max(self.moved.values(), default=EPOCH),
        )
        ids, waiting = set(), []
        for (source, external_id, _), row in self.rows.items():
            if row["loaded_at"] > since.records_through:
                contact_id = self.identity.get((source, external_id))
                if contact_id is None:
                    waiting.append(row["loaded_at"])
                else:
                    ids.add(contact_id)
        if waiting:
            mark = replace(mark, records_through=min(waiting) - timedelta(milliseconds=1))
        ids |= {self.identity[key] for key, at in self.moved.items() if at > since.identities_through}
        recent = self.pushes.filter(pl.col("recorded_at") >= since.started_at)
        outcomes = recent.group_by("push_id", maintain_order=True).agg(
            pl.last("status"), pl.last("contact_id")
        )
        ids |= set(outcomes.filter(pl.col("status").is_in(list(PENDING)))["contact_id"])
        return Touched(
            pl.DataFrame({"contact_id": sorted(ids)}, schema={"contact_id": pl.Int64}), mark, len(waiting)
        )

    def history(self, contact_ids: pl.DataFrame, rules: CrmRules) -> History:
        """All of it."""
        wanted = set(contact_ids["contact_id"])
        names = [rule.field for rule in rules.rules()]
        versions = [
            {
                **{name: row[name] for name in VERSIONS if name != "contact_id"}, "contact_id": contact_id,
                **{name: _text(row["properties"].get(rules.name_at(source, name))) for name in (*names, "email")},
            }
            for (source, external_id, _), row in self.rows.items()
            if (contact_id := self.identity.get((source, external_id))) in wanted
        ]  # fmt: skip
        records = {(row["source"], row["external_id"]) for row in versions}
        pushes = [
            {
                "contact_id": rows["contact_id"][-1], "source": rows["source"][0],
                "external_id": rows["external_id"][-1], "field": field, "value": value, "known_at": rows["known_at"][0],
                "status": rows["status"][-1], "record_at": rows["record_at"][-1], "pushed_at": rows["recorded_at"][0],
            }
            for rows in self.pushes.filter(pl.col("object") == "contact").group_by("push_id", maintain_order=True)
            .agg(pl.all()).iter_rows(named=True)
            if (rows["source"][0], rows["external_id"][-1]) in records
            or (rows["external_id"][-1] == "" and rows["contact_id"][-1] in wanted)
            for field, value in [("", ""), *zip(rows["names"][0], rows["texts"][0], strict=True)]
        ]  # fmt: skip
        decided = (
            self.decisions.sort("number")
            .group_by("contact_id", "field")
            .agg(pl.last("content_hash"))
            .select(*DECIDED)
        )
        return History(
            pl.DataFrame(
                versions, schema={**VERSIONS, **dict.fromkeys(names, pl.String), "email": pl.String}
            ),
            pl.DataFrame(pushes, schema=dict(PUSHES)),
            decided,
            pl.DataFrame(schema=dict(CANDIDATES)),
        )

    def add_decisions(self, decisions: pl.DataFrame) -> None:
        """Append."""
        self.before("decisions")
        start = self.decisions.height
        rows = decisions.with_row_index("number", start).select(*DECISIONS, pl.col("number").cast(pl.Int64))
        self.decisions = pl.concat([self.decisions, rows.select(self.decisions.columns)])

    def add_withdrawals(self, candidates: pl.DataFrame, versions: pl.DataFrame) -> int:
        """Remember."""
        self.before("withdrawals")
        found = set(candidates.select("source", "external_id", "field", "at").rows())
        assert set(candidates["field"]) <= set(OPT_OUTS.values())
        new = len(found - self.withdrawn)
        self.withdrawn |= found
        return new

    def add_pushes(self, rows: pl.DataFrame) -> None:
        """Append."""
        self.before("pushes")
        self.pushes = pl.concat([self.pushes, rows.with_columns(pl.col("recorded_at").cast(UTC_MS))])

    def profiles_version(self) -> str:
        """There are none."""
        return ""

    def differing(self, crm: str, rules: CrmRules) -> Iterator[list[Shown]]:
        """Nothing."""
        yield from ()

    def missing(self, crm: str, rules: CrmRules) -> Iterator[list[Shown]]:
        """Nobody."""
        yield from ()

    def add_shown(self, crm: str, shown: Sequence[Shown]) -> None:
        """Nothing."""

    def tasks(self, crm: str, within: timedelta) -> list[Task]:
        """None."""
        return []

    def finish(self, mark: Mark) -> None:
        """Append."""
        self.before("mark")
        self.marks.append(mark)


def _text(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
